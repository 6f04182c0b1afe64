"""Triangle rasterization, without clipping (Olano and Greer 1997), and interpolation in plain JAX.

With p_i = (x_i, y_i, w_i), edges e_i = p_j x p_k (i, j, k cyclic) and a pixel's centre P = (X, Y, 1),

    a_i = e_i . P,  b_i = a_i / sum_j a_j,  z/w = sum_i a_i z_i / sum_i a_i w_i,

b_i are the perspective-correct barycentrics, and the pixel is inside where all a_i have the determinant's sign.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from gphm_kernels.reference.tiles import (
    TILE,
    Bins,
    Layout,
    Rectangles,
    bound,
    chunk_size,
    from_tiles,
    lists,
    make_layout,
    pixels,
    sweep,
)
from gphm_kernels.rows import take_rows
from gphm_kernels.varying import promote, varying_axes

BLOCK = 64  # faces tested at once
MAX_POSITION = 1e18  # coordinates of this size and more count as infinite


def rasterize_fwd(
    clip_positions: Float[Array, "b v 4"], faces: Int[Array, "f 3"], *, width: int, height: int
) -> Float[Array, "b h w 4"]:
    """(u, v, z/w, face index + 1) of the nearest face at each pixel centre; 0 where none."""
    batch, number = clip_positions.shape[0], faces.shape[0]
    if not (batch and number and clip_positions.shape[1]):
        return jnp.zeros((batch, height, width, 4), clip_positions.dtype)
    layout = make_layout(batch, width, height)
    corners = gather_corners(clip_positions, faces)
    rectangles = bounds(layout, corners, faces, clip_positions.shape[1])
    corners = balanced(corners.reshape(batch * number, 3, 4), (-2, -1))

    def visit(carry: Array, bins: Bins, tiles: Array, last: Array) -> Array:
        nearest = _draw_chunk(layout, corners, bins, tiles, last)
        return lax.dynamic_update_slice_in_dim(carry, nearest, tiles[0], 0)

    axes = varying_axes(corners, rectangles)
    empty = promote(jnp.full((layout.tiles + chunk_size(), TILE * TILE), -1, jnp.int32), axes)
    nearest = sweep(layout, rectangles, lambda face, column, row: jnp.ones_like(face, bool), empty, visit)
    face = from_tiles(layout, nearest[: layout.tiles, :, None])[..., 0]
    seen = face >= 0
    x, y = centres(width, height, clip_positions.dtype)
    coordinates = barycentrics(corners[jnp.maximum(face, 0)], x[None, None], y[None, :, None], seen)
    # A face without area, which only rounding can have drawn, has no coordinates.
    seen &= jnp.all(jnp.isfinite(coordinates), -1)
    coordinates = jnp.where(seen[..., None], coordinates, 0)
    # Faces are numbered through the batch here, and within their mesh outside.
    index = jnp.where(seen, face % number + 1, 0).astype(clip_positions.dtype)
    return jnp.concatenate([coordinates, index[..., None]], -1)


def rasterize_bwd(
    clip_positions: Float[Array, "b v 4"],
    faces: Int[Array, "f 3"],
    raster: Float[Array, "b h w 4"],
    d_raster: Float[Array, "b h w 4"],
    *,
    width: int,
    height: int,
) -> Float[Array, "b v 4"]:
    """The cotangent of clip_positions, through u, v and z/w of the faces that the raster names."""
    face = raster[..., 3].reshape(raster.shape[0], -1).astype(jnp.int32) - 1
    x, y = centres(width, height, clip_positions.dtype)
    x, y = (jnp.broadcast_to(c, (height, width)).reshape(1, -1) for c in (x[None, :], y[:, None]))

    def recompute(positions: Array) -> Array:
        return barycentrics(_seen_corners(positions, faces, face), x, y, face >= 0)

    _, pullback = jax.vjp(recompute, clip_positions)
    return pullback(d_raster[..., :3].reshape(*face.shape, 3))[0]


def interpolate_fwd(
    attributes: Float[Array, "b v c"], raster: Float[Array, "b h w 4"], faces: Int[Array, "f 3"]
) -> Float[Array, "b h w c"]:
    """u A_0 + v A_1 + (1 - u - v) A_2 at each pixel; zero where no face is seen."""
    pixels = raster.reshape(raster.shape[0], -1, 4)
    seen = pixels[..., 3] > 0
    face = lax.stop_gradient(pixels[..., 3]).astype(jnp.int32) - 1
    u, v = pixels[..., 0], pixels[..., 1]
    weights = jnp.where(seen[..., None], jnp.stack([u, v, 1 - u - v], -1), 0)
    corners = _seen_corners(attributes, faces, face)
    image = jnp.einsum("bmi,bmic->bmc", weights, corners, precision=lax.Precision.HIGHEST)
    return image.reshape(*raster.shape[:3], attributes.shape[-1])


def interpolate_bwd(
    attributes: Float[Array, "b v c"],
    raster: Float[Array, "b h w 4"],
    faces: Int[Array, "f 3"],
    d_image: Float[Array, "b h w c"],
) -> tuple[Float[Array, "b v c"], Float[Array, "b h w 4"]]:
    """Cotangents of attributes and raster."""
    _, pullback = jax.vjp(lambda table, raster: interpolate_fwd(table, raster, faces), attributes, raster)
    return pullback(d_image)


def _seen_corners(table: Float[Array, "b v c"], faces: Int[Array, "f 3"], face: Int[Array, "b m"]) -> Array:
    """Rows of the three vertices of each face, [b, m, 3, c]; zeros, without gradient, where the face is negative."""
    vertex = jnp.where((face >= 0)[..., None], faces[jnp.clip(face, 0, faces.shape[0] - 1)], -1)
    rows = take_rows(table, vertex.reshape(vertex.shape[0], -1))
    return rows.reshape(*vertex.shape, table.shape[-1])


def centres(width: int, height: int, dtype: jnp.dtype) -> tuple[Float[Array, "w"], Float[Array, "h"]]:
    """Pixel centres in normalised device coordinates: x rightwards, y from +1 at the top row downwards."""
    x, y = jnp.arange(width, dtype=dtype) + 0.5, jnp.arange(height, dtype=dtype) + 0.5
    return _normalised(x, y, width, height)


def _normalised(pixel_x: Array, pixel_y: Array, width: int, height: int) -> tuple[Array, Array]:
    # One formula, so that a centre has the same bits wherever it is asked whether an edge passes through it.
    return 2 * pixel_x / width - 1, 1 - 2 * pixel_y / height


def edge_functions(
    corners: Float[Array, "*n 3 4"], x: Float[Array, "..."], y: Float[Array, "..."]
) -> tuple[Array, Array, Array]:
    """a_0, a_1, a_2 at the points (x, y), each [*n]: products about the point itself, which cancel least."""
    p = [corners[..., i, 0] - x * corners[..., i, 3] for i in range(3)]
    q = [corners[..., i, 1] - y * corners[..., i, 3] for i in range(3)]
    return p[1] * q[2] - q[1] * p[2], p[2] * q[0] - q[2] * p[0], p[0] * q[1] - q[0] * p[1]


def barycentrics(
    corners: Float[Array, "*n 3 4"], x: Float[Array, "..."], y: Float[Array, "..."], seen: Array
) -> Float[Array, "*n 3"]:
    """(u, v, z/w) at points of the corners' faces; zero, with zero gradient, where not seen. Differentiable."""
    harmless = jnp.array([[0, 1, 0, 1], [-1, -1, 0, 1], [1, -1, 0, 1]], corners.dtype)
    harmless = harmless.reshape((1,) * (corners.ndim - 2) + (3, 4))
    corners = balanced(jnp.where(seen[..., None, None], corners, harmless), (-2, -1))
    a = edge_functions(corners, jnp.where(seen, x, 0), jnp.where(seen, y, 0))
    depth = sum(e * corners[..., i, 2] for i, e in enumerate(a))
    scale = sum(e * corners[..., i, 3] for i, e in enumerate(a))
    whole = a[0] + a[1] + a[2]
    result = jnp.stack([_ratio(a[0], whole), _ratio(a[1], whole), _ratio(depth, scale)], -1)
    return jnp.where(seen[..., None], result, 0)


@jax.custom_jvp
def _ratio(x: Array, y: Array) -> Array:
    """x / y, with a derivative that does not square y, which may vanish."""
    return x / y


@_ratio.defjvp
def _ratio_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    ratio = _ratio(*primals)
    return ratio, (tangents[0] - ratio * tangents[1]) / primals[1]


def balanced(points: Float[Array, "*n 4"], axes: int | tuple[int, int]) -> Float[Array, "*n 4"]:
    """Points times the power of two that brings the largest number along the axes into [1/2, 1).

    Homogeneous coordinates mean the same then, to the bit, and no product of three leaves the range of float32.
    """
    largest = jnp.max(jnp.abs(lax.stop_gradient(points)), axes, keepdims=True)
    exponent = jnp.clip(jnp.frexp(largest)[1], -100, 100)  # what is not finite is not drawn, but must not hurt
    return points * jnp.ldexp(jnp.ones((), points.dtype), -exponent)


def drawable(faces: Int[Array, "f 3"], vertices: int) -> Bool[Array, "f"]:
    """Whether a face has three different vertices, all of them in range; others are padding and are skipped."""
    distinct = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    return distinct & jnp.all((faces >= 0) & (faces < vertices), -1)


def gather_corners(clip_positions: Array, faces: Array) -> Float[Array, "b f 3 4"]:
    return clip_positions[:, jnp.clip(faces, 0, clip_positions.shape[1] - 1)]


def bounds(layout: Layout, corners: Array, faces: Array, vertices: int) -> Rectangles:
    """Tiles that a face may reach; none for faces that are degenerate, not finite or outside the view volume."""
    batch, number = corners.shape[:2]
    position, w = corners[..., :3], corners[..., 3:]
    finite = jnp.all(jnp.abs(corners) < MAX_POSITION, (-2, -1))
    outside = jnp.any(jnp.all(position > w, -2) | jnp.all(position < -w, -2), -1)
    before = jnp.all(w > 0, (-2, -1))
    projected = position[..., :2] / jnp.where(before[..., None, None], w, 1)
    # A face that reaches behind the camera may project to anywhere.
    low = jnp.where(before[..., None], jnp.min(projected, -2), -1)
    high = jnp.where(before[..., None], jnp.max(projected, -2), 1)
    slack = 1e-3  # px, for rounding
    x = (low[..., 0] + 1) * (layout.width / 2) - slack, (high[..., 0] + 1) * (layout.width / 2) + slack
    y = (1 - high[..., 1]) * (layout.height / 2) - slack, (1 - low[..., 1]) * (layout.height / 2) + slack
    image = jnp.broadcast_to(jnp.arange(batch, dtype=jnp.int32)[:, None], (batch, number))
    drawn = drawable(faces, vertices)[None] & finite & ~outside
    return bound(
        layout, (x[0].ravel(), x[1].ravel()), (y[0].ravel(), y[1].ravel()), image.ravel(), drawn.ravel()
    )


def _draw_chunk(layout: Layout, corners: Array, bins: Bins, tiles: Array, last: Array) -> Int[Array, "t p"]:
    """The nearest face (numbered through the batch) at each pixel of a chunk of tiles; -1 where none."""
    dtype = corners.dtype
    x, y = _normalised(*pixels(layout, tiles, dtype), layout.width, layout.height)
    # Edges about the tile's middle: small numbers, and the same ones for both faces at an edge.
    middle_x, middle_y = (x[:, :1] + x[:, -1:]) / 2, (y[:, :1] + y[:, -1:]) / 2
    start, length = lists(bins, tiles, last)
    blocks = (jnp.max(length) + BLOCK - 1) // BLOCK

    def body(state: Any) -> Any:
        index, nearest_depth, nearest_face = state
        offset = index * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32)
        position = jnp.minimum(start[:, None] + offset[None], bins.slot.shape[0] - 1)
        face = bins.primitive[bins.slot[position]]
        depth = _depths(corners[face], x - middle_x, y - middle_y, middle_x, middle_y)
        listed = offset[None] < length[:, None]
        # Barriers, or XLA computes depths again for each of their uses.
        depth = lax.optimization_barrier(jnp.where(listed[..., None], depth, jnp.inf))
        best_depth = lax.optimization_barrier(jnp.min(depth, 1))
        # The lowest index among equals, here and, since lists are in face order, below.
        best_face = jnp.min(jnp.where(depth == best_depth[:, None], face[..., None], jnp.iinfo(jnp.int32).max), 1)
        nearer = best_depth < nearest_depth
        return index + 1, jnp.where(nearer, best_depth, nearest_depth), jnp.where(nearer, best_face, nearest_face)

    initial = (jnp.zeros((), jnp.int32), jnp.full(x.shape, jnp.inf, dtype), jnp.full(x.shape, -1, jnp.int32))
    initial = promote(initial, varying_axes(corners, tiles, bins))
    return lax.while_loop(lambda state: state[0] < blocks, body, initial)[2]


def _depths(corners: Array, x: Array, y: Array, middle_x: Array, middle_y: Array) -> Float[Array, "t k p"]:
    """z/w where a face [t, k] covers a pixel [t, p] (relative to the tile's middle), infinity elsewhere."""
    z, w = corners[..., 2], corners[..., 3]
    px, py = corners[..., 0] - middle_x[..., None] * w, corners[..., 1] - middle_y[..., None] * w
    edges = [_edge(px, py, w, (i + 1) % 3, (i + 2) % 3) for i in range(3)]
    determinant = sum(px[..., i] * e[0] + py[..., i] * e[1] + w[..., i] * e[2] for i, e in enumerate(edges))
    sign = jnp.sign(determinant)
    oriented = jnp.stack([sign * component for e in edges for component in e], 1)
    depth_of, scale_of = (
        jnp.stack([sum(sign * e[n] * v[..., i] for i, e in enumerate(edges)) for n in range(3)], 1) for v in (z, w)
    )
    planes = jnp.concatenate([oriented, depth_of, scale_of], 1)  # [t 15 k]: five affine functions of the pixel
    # A barrier, or XLA computes them again for each of a tile's pixels.
    planes = lax.optimization_barrier(planes)

    def value(n: int) -> Array:
        ex, ey, one = (planes[:, 3 * n + m, :, None] for m in range(3))
        return ex * x[:, None] + ey * y[:, None] + one

    inside = jnp.not_equal(determinant, 0)[..., None]
    for i in range(3):
        edge = value(i)
        ex, ey = planes[:, 3 * i, :, None], planes[:, 3 * i + 1, :, None]
        # Top-left rule: a left edge has the inside at greater X, a top edge is level with the inside at smaller Y.
        inside &= (edge > 0) | ((edge == 0) & ((ex > 0) | ((ex == 0) & (ey < 0))))
    scale = value(4)
    depth = value(3) / jnp.where(inside, scale, 1)
    return jnp.where(inside & (scale > 0) & (jnp.abs(depth) <= 1), depth, jnp.inf)


def _edge(x: Array, y: Array, w: Array, j: int, k: int) -> tuple[Array, Array, Array]:
    """p_j x p_k, with the exact negative for the face on the edge's other side: no cracks, no pixel drawn twice.

    The product is taken in an order that both faces share, from the lesser corner to the greater; then rounding,
    and fused multiply-adds, do the same on both sides. Of corners close to each other it is a x (b - a): the rounding
    of a x b would send the edges of collapsed faces through anywhere.
    """
    x0, y0, w0, x1, y1, w1 = x[..., j], y[..., j], w[..., j], x[..., k], y[..., k], w[..., k]
    swap = (x0 > x1) | ((x0 == x1) & ((y0 > y1) | ((y0 == y1) & (w0 > w1))))
    a = [jnp.where(swap, second, first) for first, second in ((x0, x1), (y0, y1), (w0, w1))]
    b = [jnp.where(swap, first, second) for first, second in ((x0, x1), (y0, y1), (w0, w1))]
    d = [second - first for first, second in zip(a, b, strict=True)]
    close = sum(jnp.abs(e) for e in d) < sum(jnp.abs(e) for e in b)
    d = [jnp.where(close, difference, second) for difference, second in zip(d, b, strict=True)]
    sign = jnp.where(swap, -1, 1).astype(x.dtype)
    return (
        sign * (a[1] * d[2] - a[2] * d[1]),
        sign * (a[2] * d[0] - a[0] * d[2]),
        sign * (a[0] * d[1] - a[1] * d[0]),
    )
