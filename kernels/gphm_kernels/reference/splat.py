"""Tile-based alpha blending in plain JAX: CPU, GPU and TPU, float32 and float64.

Splats are sorted by depth once, listed per 16x16 tile, and blended in blocks of matrix products. With
alpha_i = min(0.99, o_i exp(-sigma_i)), T_i = prod_{j<i} (1 - alpha_j) and w_i = alpha_i T_i,

    image = W C + T_end background                                  W [pixels, splats], C [splats, channels]
    g = G C^T,  dC = W^T G                                          G = d_image, gA = d_alpha
    dalpha_i = T_i g_i - (sum_{j>i} w_j g_j + T_end (G . background - gA)) / (1 - alpha_i)

Gradients are stored per (tile, splat) and summed by splat in a fixed order: the same bits on every run.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from gphm_kernels.reference.tiles import (
    TILE,
    Bins,
    Layout,
    Rectangles,
    Touches,
    bound,
    capacity,
    chunk_size,
    from_tiles,
    lists,
    make_layout,
    pixels,
    sum_by_primitive,
    sweep,
    to_tiles,
)
from gphm_kernels.varying import promote, varying_axes

ALPHA_MAX = 0.99
ALPHA_MIN = 1.0 / 255.0
TRANSMITTANCE_MIN = 1e-4
BLOCK = 32  # splats blended at once: one product of matrices
GEOMETRY = 6  # columns: mean x, mean y, conic a, b, c, opacity


class DepthOrdered(NamedTuple):
    """All splats of the batch, depth-ordered within each image, with the tiles their bounding boxes cover."""

    geometry: Float[Array, "m 6"]
    features: Float[Array, "m c"]
    rectangles: Rectangles


class _Block(NamedTuple):
    """One block of splats seen from the pixels of a chunk of tiles, [tiles, splats, pixels]."""

    position: Int[Array, "t k"]
    valid: Bool[Array, "t k"]
    geometry: Float[Array, "t k 6"]
    features: Float[Array, "t k c"]
    alpha: Float[Array, "t k p"]
    clamped: Bool[Array, "t k p"]
    transmittance: Float[Array, "t k p"]
    remaining: Float[Array, "t p"]
    ended: Bool[Array, "t p"]


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
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w"]]:
    """Blends projected splats front to back over the background; returns the image and its alpha.

    Splats with an opacity below 1/255 are inert, whatever their other values, as long as those are finite.
    """
    if not opacities.size:
        return _empty(background, width, height)
    layout = make_layout(means2d.shape[0], width, height)
    splats, _ = arrange(layout, means2d, conics, opacities, depths, features)
    dtype, channels = features.dtype, features.shape[-1]
    padded = layout.tiles + chunk_size()  # a chunk may start at the last tile

    def visit(carry: Any, bins: Bins, tiles: Array, last: Array) -> Any:
        colour, remaining = _blend_chunk(layout, splats, bins, tiles, last)
        at = tiles[0]
        return (
            lax.dynamic_update_slice_in_dim(carry[0], colour, at, 0),
            lax.dynamic_update_slice_in_dim(carry[1], remaining, at, 0),
        )

    empty = (jnp.zeros((padded, TILE * TILE, channels), dtype), jnp.ones((padded, TILE * TILE), dtype))
    carry = promote(empty, varying_axes(splats))
    colour, remaining = sweep(layout, splats.rectangles, touches(splats), carry, visit)
    colour = from_tiles(layout, colour[: layout.tiles])
    remaining = from_tiles(layout, remaining[: layout.tiles, :, None])
    return colour + remaining * background[:, None, None, :], 1 - remaining[..., 0]


def blend_bwd(
    means2d: Float[Array, "b n 2"],
    conics: Float[Array, "b n 3"],
    opacities: Float[Array, "b n"],
    depths: Float[Array, "b n"],
    features: Float[Array, "b n c"],
    background: Float[Array, "b c"],
    image: Float[Array, "b h w c"],
    alpha: Float[Array, "b h w"],
    d_image: Float[Array, "b h w c"],
    d_alpha: Float[Array, "b h w"],
    *,
    width: int,
    height: int,
) -> tuple[Array, Array, Array, Array, Array]:
    """Cotangents of means2d, conics, opacities, features and background; the depths only sort and have none."""
    if not opacities.size:
        return means2d, conics, opacities, features, jnp.sum(d_image, (1, 2))
    layout = make_layout(means2d.shape[0], width, height)
    splats, order = arrange(layout, means2d, conics, opacities, depths, features)
    remaining = 1 - alpha
    d_background = jnp.einsum("bhw,bhwc->bc", remaining, d_image, precision=lax.Precision.HIGHEST)
    behind = jnp.einsum("bhwc,bc->bhw", d_image, background, precision=lax.Precision.HIGHEST)
    # sum_j w_j g_j over all splats of a pixel, and T_end times the cotangent of T_end.
    total = jnp.einsum("bhwc,bhwc->bhw", d_image, image, precision=lax.Precision.HIGHEST) - remaining * behind
    per_pixel = jnp.stack([total, remaining * (behind - d_alpha)], -1)
    cotangent = to_tiles(layout, jnp.concatenate([d_image, per_pixel], -1))
    cotangent = jnp.pad(cotangent, ((0, chunk_size()), (0, 0), (0, 0)))

    def visit(buffer: Array, bins: Bins, tiles: Array, last: Array) -> Array:
        local = lax.dynamic_slice_in_dim(cotangent, tiles[0], chunk_size(), 0)
        return _differentiate_chunk(layout, splats, bins, tiles, last, local, buffer)

    size, columns = capacity(layout, splats.rectangles), GEOMETRY + features.shape[-1]
    axes = varying_axes(splats, cotangent)

    def begin() -> Array:
        return promote(jnp.zeros((size, columns), features.dtype), axes)

    def end(total: Array, buffer: Array, bins: Bins) -> Array:
        return total + sum_by_primitive(buffer, bins)

    gradient = promote(jnp.zeros((splats.geometry.shape[0], columns), features.dtype), axes)
    gradient = sweep(layout, splats.rectangles, touches(splats), gradient, visit, begin, end)
    gradient = jnp.zeros_like(gradient).at[order].set(gradient, unique_indices=True)
    gradient = gradient.reshape(*opacities.shape, columns)
    return gradient[..., :2], gradient[..., 2:5], gradient[..., 5], gradient[..., GEOMETRY:], d_background


def _empty(background: Array, width: int, height: int) -> tuple[Array, Array]:
    shape = (background.shape[0], height, width)
    image = jnp.broadcast_to(background[:, None, None], (*shape, background.shape[1]))
    return image, jnp.zeros_like(image[..., 0])


def arrange(
    layout: Layout, means2d: Array, conics: Array, opacities: Array, depths: Array, features: Array
) -> tuple[DepthOrdered, Array]:
    """Sorts by depth within each image and bounds each splat's tiles; also returns the order, [m]."""
    batch, number = opacities.shape
    # Positive floats order as the integers with the same bits; integer keys sort faster on GPU.
    key = lax.bitcast_convert_type(depths, jnp.int32 if depths.dtype == jnp.float32 else jnp.int64)
    order = jnp.argsort(key, axis=1, stable=True) + number * jnp.arange(batch, dtype=jnp.int32)[:, None]
    order = order.astype(jnp.int32).reshape(-1)
    geometry = jnp.concatenate([means2d, conics, opacities[..., None]], -1).reshape(-1, GEOMETRY)[order]
    image = jnp.arange(batch * number, dtype=jnp.int32) // number
    rectangles = _bounds(layout, geometry, image)
    return DepthOrdered(geometry, features.reshape(batch * number, -1)[order], rectangles), order


def _bounds(layout: Layout, geometry: Array, image: Array) -> Rectangles:
    """The tiles around each ellipse alpha >= 1/255; none if the splat is inert."""
    x, y, a, b, c, opacity = geometry.T
    epsilon = jnp.finfo(geometry.dtype).eps
    # The determinant's rounding error is of order epsilon a c: a needle may bound too much, never too little.
    inverse = 1 / jnp.maximum(a * c - b * b - 4 * epsilon * a * c, jnp.finfo(geometry.dtype).tiny)
    reach = jnp.maximum(_level(opacity), 0)
    half_width = jnp.sqrt(reach * jnp.minimum(c * inverse, 1e30))
    half_height = jnp.sqrt(reach * jnp.minimum(a * inverse, 1e30))
    return bound(
        layout, (x - half_width, x + half_width), (y - half_height, y + half_height), image, opacity >= ALPHA_MIN
    )


def _level(opacity: Array) -> Array:
    """The quadratic form's value where alpha falls to 1/255, with slack for rounding."""
    return 2 * jnp.log(jnp.maximum(opacity, ALPHA_MIN) * (1 / ALPHA_MIN)) + 1e-3


def touches(splats: DepthOrdered) -> Touches:
    return lambda splat, column, row: _touches_tile(splats.geometry[splat], column, row)


def _touches_tile(geometry: Array, column: Array, row: Array) -> Array:
    """Whether the ellipse alpha >= 1/255 reaches the rectangle of the tile's pixel centres.

    The least value of the quadratic form on a rectangle lies on an edge that faces the mean (or is zero).
    """
    x, y, a, b, c, opacity = geometry.T
    low_x, low_y = column * TILE + 0.5 - x, row * TILE + 0.5 - y
    high_x, high_y = low_x + (TILE - 1), low_y + (TILE - 1)
    near_x, near_y = jnp.clip(0, low_x, high_x), jnp.clip(0, low_y, high_y)
    epsilon = 8 * jnp.finfo(geometry.dtype).eps

    def reaches(dx: Array, dy: Array) -> Array:
        squares = a * dx * dx + c * dy * dy
        # The slack covers the rounding of a difference of large terms, as needles have.
        return squares + 2 * b * dx * dy <= _level(opacity) + epsilon * squares

    along_y = jnp.clip(-b / c * near_x, low_y, high_y)
    along_x = jnp.clip(-b / a * near_y, low_x, high_x)
    return reaches(near_x, along_y) | reaches(along_x, near_y)


def _block(
    splats: DepthOrdered,
    bins: Bins,
    start: Array,
    length: Array,
    index: Array,
    x: Array,
    y: Array,
    remaining: Array,
    ended: Array,
) -> _Block:
    """Alphas and transmittances of the `index`-th block of each tile's list."""
    offset = index * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32)
    valid = offset[None] < length[:, None]
    position = jnp.minimum(start[:, None] + offset[None], bins.slot.shape[0] - 1)
    splat = bins.primitive[bins.slot[position]]
    geometry = splats.geometry[splat]
    mean_x, mean_y, a, b, c, opacity = (geometry[..., i, None] for i in range(GEOMETRY))
    dx, dy = x[:, None] - mean_x, y[:, None] - mean_y
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    raw = opacity * jnp.exp(-jnp.maximum(sigma, 0))  # rounding can make a needle's exponent negative
    # Barriers, or XLA computes the exponentials again for each of their uses.
    raw = lax.optimization_barrier(jnp.where(valid[..., None] & (raw >= ALPHA_MIN), raw, 0))
    alpha = jnp.minimum(raw, ALPHA_MAX)
    after = remaining[:, None] * _running(jnp.multiply, 1 - alpha)
    # Transmittance falls along the list, so the stop rule is one comparison per splat.
    alive = (after > TRANSMITTANCE_MIN) & ~ended[:, None]
    return _Block(
        position=position,
        valid=valid,
        geometry=geometry,
        # A padded lane names some other splat, whose features need not be finite.
        features=jnp.where(valid[..., None], splats.features[splat], 0),
        alpha=jnp.where(alive, alpha, 0),
        clamped=raw >= ALPHA_MAX,
        transmittance=after / (1 - alpha),
        remaining=jnp.min(jnp.where(alive, after, remaining[:, None]), 1),
        ended=ended | ~alive[:, -1],
    )


def _running(combine: Callable[[Array, Array], Array], x: Float[Array, "t k p"]) -> Float[Array, "t k p"]:
    """Inclusive products or sums along a block, by doubling strides: few steps, each over whole rows of pixels."""
    stride = 1
    while stride < x.shape[1]:
        x = jnp.concatenate([x[:, :stride], combine(x[:, stride:], x[:, :-stride])], 1)
        x = lax.optimization_barrier(x)
        stride *= 2
    return x


def _blend_chunk(layout: Layout, splats: DepthOrdered, bins: Bins, tiles: Array, last: Array) -> tuple[Array, Array]:
    """Colour without background and remaining transmittance of a chunk of tiles."""
    dtype = splats.features.dtype
    x, y = pixels(layout, tiles, dtype)
    start, length = lists(bins, tiles, last)
    blocks = (jnp.max(length) + BLOCK - 1) // BLOCK

    def body(state: Any) -> Any:
        index, colour, remaining, ended = state
        block = _block(splats, bins, start, length, index, x, y, remaining, ended)
        weight = lax.optimization_barrier(block.alpha * block.transmittance)
        colour = colour + jnp.einsum("tkp,tkc->tpc", weight, block.features, precision=lax.Precision.HIGHEST)
        return index + 1, colour, block.remaining, block.ended

    def unfinished(state: Any) -> Any:
        return (state[0] < blocks) & ~jnp.all(state[3])

    colour = jnp.zeros((*x.shape, splats.features.shape[-1]), dtype)
    initial = (jnp.zeros((), jnp.int32), colour, jnp.ones_like(x), jnp.zeros(x.shape, bool))
    _, colour, remaining, _ = lax.while_loop(unfinished, body, promote(initial, varying_axes(splats, tiles)))
    return colour, remaining


def _differentiate_chunk(
    layout: Layout, splats: DepthOrdered, bins: Bins, tiles: Array, last: Array, cotangent: Array, buffer: Array
) -> Array:
    """Writes the gradient of every (tile, splat) of a chunk of tiles to its slot of the buffer."""
    dtype = splats.features.dtype
    x, y = pixels(layout, tiles, dtype)
    start, length = lists(bins, tiles, last)
    blocks = (jnp.max(length) + BLOCK - 1) // BLOCK
    d_image, total, d_end = cotangent[..., :-2], cotangent[..., -2], cotangent[..., -1]

    def body(state: Any) -> Any:
        index, before, remaining, ended, buffer = state
        block = _block(splats, bins, start, length, index, x, y, remaining, ended)
        weight = lax.optimization_barrier(block.alpha * block.transmittance)
        g = jnp.einsum("tpc,tkc->tkp", d_image, block.features, precision=lax.Precision.HIGHEST)
        running = _running(jnp.add, weight * g) + before[:, None]
        behind = (total + d_end)[:, None] - running
        d_alpha = block.transmittance * g - behind / (1 - block.alpha)
        d_log = jnp.where((block.alpha > 0) & ~block.clamped, d_alpha * block.alpha, 0)
        d_log = lax.optimization_barrier(d_log)
        gradient = jnp.concatenate(
            [
                _geometry_gradient(block.geometry, x, y, d_log),
                jnp.einsum("tkp,tpc->tkc", weight, d_image, precision=lax.Precision.HIGHEST),
            ],
            -1,
        )
        slot = jnp.where(block.valid, bins.slot[block.position], buffer.shape[0])
        # Slots belong to one (tile, splat): plain stores, no sums whose order could differ between runs.
        buffer = buffer.at[slot].set(gradient, mode="drop", unique_indices=True)
        return index + 1, running[:, -1], block.remaining, block.ended, buffer

    def unfinished(state: Any) -> Any:
        return (state[0] < blocks) & ~jnp.all(state[3])

    initial = (jnp.zeros((), jnp.int32), jnp.zeros_like(x), jnp.ones_like(x), jnp.zeros(x.shape, bool), buffer)
    axes = varying_axes(splats, tiles, cotangent)
    return lax.while_loop(unfinished, body, promote(initial, axes))[-1]


def _geometry_gradient(geometry: Array, x: Array, y: Array, d_log: Array) -> Array:
    """Cotangents of mean, conic and opacity from d_log [t, k, p], the cotangent of log alpha."""
    # Moments about the tile's middle are one small product; they are then moved to each splat's mean.
    middle_x, middle_y = (x[:, :1] + x[:, -1:]) / 2, (y[:, :1] + y[:, -1:]) / 2
    u, v = x - middle_x, y - middle_y
    monomials = jnp.stack([jnp.ones_like(u), u, v, u * u, u * v, v * v], -1)
    moments = jnp.einsum("tkp,tpm->tkm", d_log, monomials, precision=lax.Precision.HIGHEST)
    s0, su, sv, suu, suv, svv = (moments[..., i] for i in range(6))
    mean_x, mean_y, a, b, c, opacity = (geometry[..., i] for i in range(GEOMETRY))
    p, q = mean_x - middle_x, mean_y - middle_y
    sx, sy = su - p * s0, sv - q * s0
    sxx, sxy = suu - 2 * p * su + p * p * s0, suv - p * sv - q * su + p * q * s0
    syy = svv - 2 * q * sv + q * q * s0
    columns = (a * sx + b * sy, b * sx + c * sy, -0.5 * sxx, -sxy, -0.5 * syy, s0 / opacity)
    return jnp.stack(columns, -1)


