"""Differentiable triangle meshes: rasterization, interpolation and antialiasing (after Laine et al. 2020)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from gphm_kernels import backends
from gphm_kernels.arguments import check_arrays, check_image_size, flatten_batch
from gphm_kernels.reference.mesh import barycentrics, centres
from gphm_kernels.rows import take_rows
from gphm_kernels.silhouettes import Pairs, crossing_pairs, first_of, pair_centres, second_of
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
    _check_faces("rasterize_mesh", faces)
    check_image_size("rasterize_mesh", width, height)
    positions = flatten_batch(arrays["clip_positions"], batch, 2)
    backends.check(backend, positions.dtype)
    if positions.dtype == jnp.float32 and jnp.shape(faces)[0] > MAX_FACES:
        raise ValueError(
            f"rasterize_mesh: faces has {jnp.shape(faces)[0]} rows; a float32 raster tells {MAX_FACES} apart"
        )
    if not (positions.shape[1] and jnp.shape(faces)[0]):
        return jnp.zeros((*batch, height, width, 4), positions.dtype)
    faces = jnp.asarray(faces, jnp.int32)
    positions = promote(positions, varying_axes(positions, faces))
    return _rasterize(width, height, backend, positions, faces).reshape(*batch, height, width, 4)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _rasterize(width: int, height: int, backend: str, positions: Array, faces: Array) -> Array:
    forward = backends.dispatch("rasterize_fwd", backend, positions.dtype)
    return forward(positions, faces, width=width, height=height)


def _rasterize_fwd(width: int, height: int, backend: str, positions: Array, faces: Array) -> tuple[Array, Any]:
    raster = _rasterize(width, height, backend, positions, faces)
    return raster, (positions, faces, raster[..., 3])


def _rasterize_bwd(width: int, height: int, backend: str, residuals: Any, d_raster: Array) -> tuple[Array, None]:
    positions, faces, index = residuals
    face = index.reshape(index.shape[0], -1).astype(jnp.int32) - 1
    seen = face >= 0
    x, y = (jnp.broadcast_to(c, (height, width)).reshape(1, -1) for c in _grid(width, height, positions.dtype))

    def recompute(positions: Array) -> Array:
        return barycentrics(_corners(positions, faces, face), x, y, seen)

    _, pullback = jax.vjp(recompute, positions)
    return pullback(d_raster[..., :3].reshape(*face.shape, 3))[0], None


_rasterize.defvjp(_rasterize_fwd, _rasterize_bwd)


def interpolate(
    attributes: Float[Array, "*#b v c"],
    raster: Float[Array, "*#b h w 4"],
    faces: Int[Array, "f 3"],
) -> Float[Array, "*b h w c"]:
    """Vertex attributes at each pixel, u A_0 + v A_1 + (1 - u - v) A_2; zero where no face is seen.

    Leading dimensions broadcast. Differentiable in attributes and, through u and v, in what made the raster.
    """
    named = {"attributes": (attributes, "v c"), "raster": (raster, "h w 4")}
    arrays, batch, sizes = check_arrays("interpolate", named)
    _check_faces("interpolate", faces)
    table, pixels = (flatten_batch(x, batch, rank) for x, rank in zip(arrays.values(), (2, 3), strict=True))
    faces = jnp.asarray(faces, jnp.int32)
    if not (sizes["v"] and faces.shape[0]):
        return jnp.zeros((*batch, sizes["h"], sizes["w"], sizes["c"]), table.dtype)
    table, pixels = promote((table, pixels), varying_axes(table, pixels, faces))
    pixels = pixels.reshape(pixels.shape[0], -1, 4)
    seen = pixels[..., 3] > 0
    face = lax.stop_gradient(pixels[..., 3]).astype(jnp.int32) - 1
    u, v = pixels[..., 0], pixels[..., 1]
    weights = jnp.where(seen[..., None], jnp.stack([u, v, 1 - u - v], -1), 0)
    corners = _corners(table, faces, face)
    image = jnp.einsum("bmi,bmic->bmc", weights, corners, precision=lax.Precision.HIGHEST)
    return image.reshape(*batch, sizes["h"], sizes["w"], sizes["c"])


def antialias(
    image: Float[Array, "*#b h w c"],
    raster: Float[Array, "*#b h w 4"],
    clip_positions: Float[Array, "*#b v 4"],
    faces: Int[Array, "f 3"],
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
    _check_faces("antialias", faces)
    ranks = (3, 3, 2)
    image, raster, positions = (flatten_batch(x, batch, r) for x, r in zip(arrays.values(), ranks, strict=True))
    faces = jnp.asarray(faces, jnp.int32)
    if not (positions.shape[1] and faces.shape[0]):
        return image.reshape(*batch, *image.shape[1:])
    image, raster, positions = promote((image, raster, positions), varying_axes(image, raster, positions, faces))
    height, width = image.shape[1:3]
    result = image
    for axis, pairs in crossing_pairs(lax.stop_gradient(raster), lax.stop_gradient(positions), faces):
        t = _crossing_fraction(positions, faces, pairs, axis, (height, width))
        result = result + _blend_pairs(image, t, pairs.active, pairs.first_nearer, axis)
    return result.reshape(*batch, *image.shape[1:])


def _check_faces(operation: str, faces: Any) -> None:
    shape, dtype = jnp.shape(faces), jnp.result_type(faces)
    if len(shape) != 2 or shape[1] != 3:
        raise ValueError(f"{operation}: faces has shape {shape}; it must be [f 3], shared by the whole batch")
    if not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"{operation}: faces is {dtype}; it must be integer vertex indices")


def _grid(width: int, height: int, dtype: jnp.dtype) -> tuple[Array, Array]:
    x, y = centres(width, height, dtype)
    return x[None, :], y[:, None]


def _corners(table: Float[Array, "b v c"], faces: Int[Array, "f 3"], face: Int[Array, "b m"]) -> Array:
    """Rows of the three vertices of each face, [b, m, 3, c]; zeros, without gradient, where the face is negative."""
    vertex = jnp.where((face >= 0)[..., None], faces[jnp.clip(face, 0, faces.shape[0] - 1)], -1)
    rows = take_rows(table, vertex.reshape(vertex.shape[0], -1))
    return rows.reshape(*vertex.shape, table.shape[-1])


def _crossing_fraction(
    positions: Float[Array, "b v 4"],
    faces: Int[Array, "f 3"],
    pairs: Pairs,
    axis: int,
    size: tuple[int, int],
) -> Float[Array, "b y x"]:
    """How far along the segment from the near centre to the far one the crossed edge lies, in [0, 1]; else 1/2.

    An edge function is affine along the segment: t = a(near) / (a(near) - a(far)).
    """
    ends = [jnp.where(pairs.active, faces[pairs.face, (pairs.edge + i) % 3], -1) for i in (1, 2)]
    batch = positions.shape[0]
    rows = take_rows(positions, jnp.stack(ends, -1).reshape(batch, -1))
    rows = rows.reshape(*pairs.active.shape, 2, 4)
    near, far = pair_centres(size[1], size[0], pairs.first_nearer, axis, positions.dtype)
    a_near, a_far = _edge_function(rows, *near), _edge_function(rows, *far)
    active = pairs.active & (a_near != a_far)
    return jnp.where(active, a_near / jnp.where(active, a_near - a_far, 1), 0.5)


def _edge_function(ends: Float[Array, "b y x 2 4"], x: Float[Array, "b y x"], y: Float[Array, "b y x"]) -> Array:
    p, q = (ends[..., 0] - x[..., None] * ends[..., 3], ends[..., 1] - y[..., None] * ends[..., 3])
    return p[..., 0] * q[..., 1] - q[..., 0] * p[..., 1]


def _blend_pairs(
    image: Float[Array, "b h w c"],
    t: Float[Array, "b y x"],
    active: Bool[Array, "b y x"],
    first_nearer: Bool[Array, "b y x"],
    axis: int,
) -> Float[Array, "b h w c"]:
    """What the pairs along one axis add to the image."""
    toward_far = t > 0.5
    amount = jnp.where(active, jnp.where(first_nearer, t - 0.5, 0.5 - t), 0)[..., None]
    change = amount * (first_of(image, axis) - second_of(image, axis))
    to_second = (toward_far == first_nearer)[..., None]
    before, after = [(0, 0)] * 4, [(0, 0)] * 4
    before[axis], after[axis] = (1, 0), (0, 1)
    return jnp.pad(jnp.where(to_second, change, 0), before) + jnp.pad(jnp.where(to_second, 0, change), after)
