"""Differentiable triangle meshes: rasterization, interpolation and antialiasing (after Laine et al. 2020)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gphm_kernels import backends
from gphm_kernels.arguments import as_faces, check_arrays, check_devices, check_image_size, flatten_batch
from gphm_kernels.varying import promote, varying_axes

MAX_FACES = 2**24 - 1  # face index + 1 must be exact in a float32 raster


def rasterize_mesh(
    clip_positions: Float[Array, "*b v 4"],
    faces: Int[Array, "f 3"],
    *,
    width: int,
    height: int,
    backend: str = "auto",
) -> Float[Array, "*b h w 4"]:
    """The nearest triangle at each pixel centre: (u, v, z/w, face index + 1), all zero where there is none.

    u, v and 1 - u - v are the perspective-correct weights of the face's vertices 0, 1 and 2. Clip space: x/w = -1
    at the image's left edge, y/w = +1 at its top edge, seen where -w <= z <= w; faces that reach behind the camera
    are cut there. Both windings are drawn; the least z/w wins, the lower face index among equals. A pixel centre
    exactly on an edge belongs to the face for which it is a left edge or a level top edge.

    Differentiable in clip_positions through u, v and z/w; coverage has no gradient here (see `antialias`). Faces
    with a repeated vertex (padding), an index out of range or a position that is not finite are skipped. Raises
    ValueError on wrong shapes, and in float32 on more than 16,777,215 faces.
    """
    arrays, batch, _ = check_arrays("rasterize_mesh", {"clip_positions": (clip_positions, "v 4")})
    faces = as_faces("rasterize_mesh", faces)
    check_devices("rasterize_mesh", {**arrays, "faces": faces})
    check_image_size("rasterize_mesh", width, height)
    positions = flatten_batch(arrays["clip_positions"], batch, 2)
    backends.check(backend, positions.dtype)
    if positions.dtype == jnp.float32 and faces.shape[0] > MAX_FACES:
        raise ValueError(
            f"rasterize_mesh: faces has {faces.shape[0]} rows; a float32 raster tells {MAX_FACES} apart"
        )
    if not (positions.shape[1] and faces.shape[0]):
        return jnp.zeros((*batch, height, width, 4), positions.dtype)
    positions = promote(positions, varying_axes(positions, faces))
    return _rasterize(width, height, backend, positions, faces).reshape(*batch, height, width, 4)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _rasterize(width: int, height: int, backend: str, positions: Array, faces: Array) -> Array:
    forward = backends.dispatch("rasterize_fwd", backend, positions.dtype)
    return forward(positions, faces, width=width, height=height)


def _rasterize_fwd(width: int, height: int, backend: str, positions: Array, faces: Array) -> tuple[Array, Any]:
    raster = _rasterize(width, height, backend, positions, faces)
    return raster, (positions, faces, raster)


def _rasterize_bwd(width: int, height: int, backend: str, residuals: Any, d_raster: Array) -> tuple[Array, None]:
    positions, faces, raster = residuals
    backward = backends.dispatch("rasterize_bwd", backend, positions.dtype)
    return backward(positions, faces, raster, d_raster, width=width, height=height), None


_rasterize.defvjp(_rasterize_fwd, _rasterize_bwd)


def interpolate(
    attributes: Float[Array, "*#b v c"],
    raster: Float[Array, "*#b h w 4"],
    faces: Int[Array, "f 3"],
    *,
    backend: str = "auto",
) -> Float[Array, "*b h w c"]:
    """Vertex attributes at each pixel, u A_0 + v A_1 + (1 - u - v) A_2; zero where no face is seen.

    Leading dimensions broadcast. Differentiable in attributes and, through u and v, in what made the raster.
    """
    named = {"attributes": (attributes, "v c"), "raster": (raster, "h w 4")}
    arrays, batch, sizes = check_arrays("interpolate", named)
    faces = as_faces("interpolate", faces)
    check_devices("interpolate", {**arrays, "faces": faces})
    table, pixels = (flatten_batch(x, batch, rank) for x, rank in zip(arrays.values(), (2, 3), strict=True))
    backends.check(backend, table.dtype)
    if not (table.size and faces.shape[0]):
        return jnp.zeros((*batch, sizes["h"], sizes["w"], sizes["c"]), table.dtype)
    table, pixels = promote((table, pixels), varying_axes(table, pixels, faces))
    image = _interpolate(backend, table, pixels, faces)
    return image.reshape(*batch, *image.shape[1:])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _interpolate(backend: str, attributes: Array, raster: Array, faces: Array) -> Array:
    return backends.dispatch("interpolate_fwd", backend, attributes.dtype)(attributes, raster, faces)


def _interpolate_fwd(backend: str, *inputs: Array) -> tuple[Array, Any]:
    return _interpolate(backend, *inputs), inputs


def _interpolate_bwd(backend: str, inputs: Any, d_image: Array) -> tuple[Array, Array, None]:
    backward = backends.dispatch("interpolate_bwd", backend, d_image.dtype)
    return (*backward(*inputs, d_image), None)


_interpolate.defvjp(_interpolate_fwd, _interpolate_bwd)


def antialias(
    image: Float[Array, "*#b h w c"],
    raster: Float[Array, "*#b h w 4"],
    clip_positions: Float[Array, "*#b v 4"],
    faces: Int[Array, "f 3"],
    *,
    backend: str = "auto",
) -> Float[Array, "*b h w c"]:
    """Blends neighbouring pixels across silhouettes, which gives these their gradient.

    For each horizontal and vertical pair of pixels with different faces, the segment between the two centres leaves
    the nearer face at a fraction t of its length, counted from that face's pixel. If the edge there is a silhouette
    (no neighbour, or one that folds back behind it; by shared vertex ids), (t - 1/2) (C_near - C_far) is added to the
    far pixel if t > 1/2 and to the near pixel otherwise: coverage goes from one to the other linearly in t.

    Leading dimensions broadcast. Differentiable in image and, through t, in clip_positions; `raster` only says
    which face is seen and which is nearer.
    """
    named = {"image": (image, "h w c"), "raster": (raster, "h w 4"), "clip_positions": (clip_positions, "v 4")}
    arrays, batch, _ = check_arrays("antialias", named)
    faces = as_faces("antialias", faces)
    check_devices("antialias", {**arrays, "faces": faces})
    ranks = (3, 3, 2)
    image, raster, positions = (flatten_batch(x, batch, r) for x, r in zip(arrays.values(), ranks, strict=True))
    backends.check(backend, image.dtype)
    if not (image.size and positions.shape[1] and faces.shape[0]):
        return image.reshape(*batch, *image.shape[1:])
    image, raster, positions = promote((image, raster, positions), varying_axes(image, raster, positions, faces))
    return _antialias(backend, image, raster, positions, faces).reshape(*batch, *image.shape[1:])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _antialias(backend: str, image: Array, raster: Array, positions: Array, faces: Array) -> Array:
    return backends.dispatch("antialias_fwd", backend, image.dtype)(image, raster, positions, faces)


def _antialias_fwd(backend: str, *inputs: Array) -> tuple[Array, Any]:
    return _antialias(backend, *inputs), inputs


def _antialias_bwd(backend: str, inputs: Any, d_result: Array) -> tuple[Array, None, Array, None]:
    backward = backends.dispatch("antialias_bwd", backend, d_result.dtype)
    d_image, d_positions = backward(*inputs, d_result)
    return d_image, None, d_positions, None


_antialias.defvjp(_antialias_fwd, _antialias_bwd)
