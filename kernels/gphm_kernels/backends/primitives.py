"""The primitives of the native library, each described once: what the C++ takes and gives, whoever calls it.

One batch dimension, float32. `native`, `callback` and `nvdiffrast` in `gphm_kernels.backends` make functions of these:
the same arguments, and the primitive's results instead of its description.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gphm_kernels.reference.dmtet import cube_table

NAMES = (
    "project_fwd",
    "project_bwd",
    "blend_fwd",
    "blend_bwd",
    "rasterize_fwd",
    "rasterize_bwd",
    "interpolate_fwd",
    "interpolate_bwd",
    "antialias_fwd",
    "antialias_bwd",
    "marching_tetrahedra",
    "mlp_fwd",
    "mlp_bwd",
)
Attribute = int | tuple[int, ...]
Results = jax.ShapeDtypeStruct | tuple[jax.ShapeDtypeStruct, ...]


class Primitive(NamedTuple):
    """One use of a primitive: the FFI handler `gphm_<name>`, and the C function `gphm_c_<name>`."""

    name: str
    inputs: tuple[Array | np.ndarray, ...]  # float32, indices int32
    results: Results
    counts: tuple[int, ...]  # for C, which sees no shapes; the attributes follow them there
    attributes: dict[str, Attribute]


def project_fwd(
    means: Float[Array, "b n 3"],
    quats: Float[Array, "b n 4"],
    scales: Float[Array, "b n 3"],
    opacities: Float[Array, "b n"],
    features: Float[Array, "b n c"],
    world_to_camera: Float[Array, "b 4 4"],
    intrinsics: Float[Array, "b 3 3"],
    *,
    near: float,
    far: float,
    eps2d: float,
) -> Primitive:
    """Projects Gaussians into the image; returns means2d, conics, opacities and depths, as `blend_fwd` takes them.

    A splat that cannot be drawn (see `gphm_kernels.splat`) gets opacity zero. The features are only looked at: one
    that is not a finite number makes its splat undrawable.
    """
    inputs = (means, quats, scales, opacities, features, world_to_camera, intrinsics)
    batch, number, _ = means.shape
    results = _floats(batch, number, 2), _floats(batch, number, 3), _floats(batch, number), _floats(batch, number)
    return _describe("project_fwd", (*inputs, _limits(near, far, eps2d)), results, features.shape)


def project_bwd(
    means: Float[Array, "b n 3"],
    quats: Float[Array, "b n 4"],
    scales: Float[Array, "b n 3"],
    opacities: Float[Array, "b n"],
    features: Float[Array, "b n c"],
    world_to_camera: Float[Array, "b 4 4"],
    intrinsics: Float[Array, "b 3 3"],
    d_means2d: Float[Array, "b n 2"],
    d_conics: Float[Array, "b n 3"],
    d_opacities: Float[Array, "b n"],
    *,
    near: float,
    far: float,
    eps2d: float,
) -> Primitive:
    """Cotangents of means, quats, scales, opacities, world_to_camera and intrinsics; depths only sort and have none."""
    inputs = (means, quats, scales, opacities, features, world_to_camera, intrinsics)
    results = tuple(_floats(*x.shape) for x in inputs if x is not features)
    cotangents = d_means2d, d_conics, d_opacities
    return _describe("project_bwd", (*inputs, _limits(near, far, eps2d), *cotangents), results, features.shape)


def blend_fwd(
    means2d: Float[Array, "b n 2"],
    conics: Float[Array, "b n 3"],
    opacities: Float[Array, "b n"],
    depths: Float[Array, "b n"],
    features: Float[Array, "b n c"],
    background: Float[Array, "b c"],
    *,
    width: int,
    height: int,
) -> Primitive:
    """Blends projected splats front to back over the background; returns the image and its alpha.

    alpha_i = min(0.99, opacity exp(-sigma)); a splat below 1/255 is skipped, one that would bring the transmittance
    to 1e-4 or less ends the pixel and is not added. Depths are positive. Splats whose geometry is not finite, or whose
    conic is not positive definite, are inert; features that are not finite reach the image, near the pixels that their
    splat covers.
    """
    inputs = (means2d, conics, opacities, depths, features, background)
    batch, _, channels = features.shape
    results = _floats(batch, height, width, channels), _floats(batch, height, width)
    return _describe("blend_fwd", inputs, results, features.shape, width=width, height=height)


def blend_bwd(
    means2d: Float[Array, "b n 2"],
    conics: Float[Array, "b n 3"],
    opacities: Float[Array, "b n"],
    depths: Float[Array, "b n"],
    features: Float[Array, "b n c"],
    background: Float[Array, "b c"],
    image: Float[Array, "b h w c"] | None,
    alpha: Float[Array, "b h w"] | None,
    d_image: Float[Array, "b h w c"],
    d_alpha: Float[Array, "b h w"],
    *,
    width: int,
    height: int,
) -> Primitive:
    """Cotangents of means2d, conics, opacities, features and background; the depths only sort and have none.

    The sweep is done again, so `image` and `alpha`, which other backends need, are not read and may be None.
    """
    del image, alpha
    inputs = (means2d, conics, opacities, depths, features, background, d_image, d_alpha)
    results = tuple(_floats(*x.shape) for x in (means2d, conics, opacities, features, background))
    return _describe("blend_bwd", inputs, results, features.shape, width=width, height=height)


def rasterize_fwd(
    clip_positions: Float[Array, "b v 4"], faces: Int[Array, "f 3"], *, width: int, height: int
) -> Primitive:
    """Rasterizes triangles: (u, v, z/w, face index + 1) of the nearest face at each pixel centre; 0 where none.

    u, v and 1 - u - v are the perspective-correct weights of the face's vertices 0, 1 and 2. A face is seen where
    -w <= z <= w, from both sides; equal depths go to the lower index. A pixel centre exactly on an edge belongs to the
    face for which it is a left edge or a level top edge of the image. Degenerate faces, faces with an index out
    of range and faces with a position that is not finite are skipped.
    """
    inputs = (clip_positions, faces.astype(jnp.int32))
    batch, vertices, _ = clip_positions.shape
    raster = _floats(batch, height, width, 4)
    return _describe(
        "rasterize_fwd", inputs, raster, (batch, vertices, faces.shape[0]), width=width, height=height
    )


def rasterize_bwd(
    clip_positions: Float[Array, "b v 4"],
    faces: Int[Array, "f 3"],
    raster: Float[Array, "b h w 4"],
    d_raster: Float[Array, "b h w 4"],
    *,
    width: int,
    height: int,
) -> Primitive:
    """The cotangent of clip_positions, through u, v and z/w of the faces that the raster names."""
    inputs = (clip_positions, faces.astype(jnp.int32), raster, d_raster)
    batch, vertices, _ = clip_positions.shape
    counts = (batch, vertices, faces.shape[0])
    return _describe(
        "rasterize_bwd", inputs, _floats(*clip_positions.shape), counts, width=width, height=height
    )


def interpolate_fwd(
    attributes: Float[Array, "b v c"], raster: Float[Array, "b h w 4"], faces: Int[Array, "f 3"]
) -> Primitive:
    """u A_0 + v A_1 + (1 - u - v) A_2 at each pixel; zero where no face is seen.

    A vertex out of range counts as a row of zeros; a face out of range as the last.
    """
    image = _floats(*raster.shape[:3], attributes.shape[-1])
    counts = _mesh_counts(attributes, attributes.shape[-1], raster, faces)
    return _describe("interpolate_fwd", (attributes, raster, faces.astype(jnp.int32)), image, counts)


def interpolate_bwd(
    attributes: Float[Array, "b v c"],
    raster: Float[Array, "b h w 4"],
    faces: Int[Array, "f 3"],
    d_image: Float[Array, "b h w c"],
) -> Primitive:
    """Cotangents of attributes and raster."""
    inputs = (attributes, raster, faces.astype(jnp.int32), d_image)
    results = _floats(*attributes.shape), _floats(*raster.shape)
    return _describe("interpolate_bwd", inputs, results, _mesh_counts(attributes, attributes.shape[-1], raster, faces))


def antialias_fwd(
    image: Float[Array, "b h w c"],
    raster: Float[Array, "b h w 4"],
    clip_positions: Float[Array, "b v 4"],
    faces: Int[Array, "f 3"],
) -> Primitive:
    """The image with neighbouring pixels blended across silhouettes; see `gphm_kernels.antialias`."""
    inputs = (image, raster, clip_positions, faces.astype(jnp.int32))
    counts = _mesh_counts(clip_positions, image.shape[-1], image, faces)
    return _describe("antialias_fwd", inputs, _floats(*image.shape), counts)


def antialias_bwd(
    image: Float[Array, "b h w c"],
    raster: Float[Array, "b h w 4"],
    clip_positions: Float[Array, "b v 4"],
    faces: Int[Array, "f 3"],
    d_result: Float[Array, "b h w c"],
) -> Primitive:
    """Cotangents of image and clip_positions."""
    inputs = (image, raster, clip_positions, faces.astype(jnp.int32), d_result)
    results = _floats(*image.shape), _floats(*clip_positions.shape)
    counts = _mesh_counts(clip_positions, image.shape[-1], image, faces)
    return _describe("antialias_bwd", inputs, results, counts)


def marching_tetrahedra(sdf: Float[Array, "b x y z"], *, max_vertices: int, max_faces: int) -> Primitive:
    """Edges, faces and counts of the zero surface; see `gphm_kernels.marching_tetrahedra`."""
    batch = sdf.shape[0]
    results = _integers(batch, max_vertices, 2), _integers(batch, max_faces, 3), _integers(batch, 2)
    limits = {"max_vertices": max_vertices, "max_faces": max_faces}
    return _describe("marching_tetrahedra", (sdf, *cube_table()), results, sdf.shape, **limits)


def mlp_fwd(
    features: Float[Array, "i n d"],
    parameters: Float[Array, "p"],
    first_bias: Float[Array, "i f w"],
    *,
    sizes: tuple[int, ...],
) -> Primitive:
    """A fully connected network at every row of the features, for each of the f frames' biases of its first layer.

    `sizes` is d and the width after each layer; `parameters` is, per layer, its row-major weights and its bias. Every
    layer but the last is followed by a ReLU.
    """
    counts = (*first_bias.shape[:2], features.shape[1], len(sizes) - 1)
    result = _floats(*counts[:3], sizes[-1])
    return _describe("mlp_fwd", (features, parameters, first_bias), result, counts, sizes=sizes)


def mlp_bwd(
    features: Float[Array, "i n d"],
    parameters: Float[Array, "p"],
    first_bias: Float[Array, "i f w"],
    d_result: Float[Array, "i f n e"],
    *,
    sizes: tuple[int, ...],
) -> Primitive:
    """Cotangents of features, parameters and first_bias; the activations are computed again."""
    inputs = (features, parameters, first_bias, d_result)
    results = tuple(_floats(*x.shape) for x in inputs[:3])
    return _describe("mlp_bwd", inputs, results, (*d_result.shape[:3], len(sizes) - 1), sizes=sizes)


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _limits(*values: float) -> np.ndarray:
    """Options that are not integers."""
    return np.array(values, np.float32)


def _integers(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _mesh_counts(
    table: Float[Array, "b v _"], channels: int, image: Float[Array, "b h w _"], faces: Int[Array, "f 3"]
) -> tuple[int, ...]:
    """Batch, vertices, channels, faces, width, height."""
    return *table.shape[:2], channels, faces.shape[0], image.shape[2], image.shape[1]


def _describe(
    name: str,
    inputs: tuple[Array | np.ndarray, ...],
    results: Results,
    counts: tuple[int, ...],
    **attributes: Attribute,
) -> Primitive:
    for array in inputs:
        if array.dtype not in (jnp.float32, jnp.int32):
            raise TypeError(f"{name}: the native code takes float32, not {array.dtype}; use backend='xla'")
    return Primitive(name, inputs, results, counts, attributes)
