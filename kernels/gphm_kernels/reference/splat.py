"""Tile-based alpha blending in plain JAX: CPU, GPU and TPU, float32 and float64.

Splats are sorted by depth once, listed per 16x16 tile, and blended in blocks of matrix products. With
alpha_i = min(0.99, o_i exp(-sigma_i)), T_i = prod_{j<i} (1 - alpha_j) and w_i = alpha_i T_i,

    image = W C + T_end background                                  W [pixels, splats], C [splats, channels]
    g = G C^T,  dC = W^T G                                          G = d_image, gA = d_alpha
    dalpha_i = T_i g_i - (sum_{j>i} w_j g_j + T_end (G . background - gA)) / (1 - alpha_i)

No list has a capacity that a scene can exceed: tiles are taken in groups whose lists fit a buffer of fixed
size, and the buffer is never smaller than the longest list one tile can have. Crowded scenes take more groups.
Gradients are stored per (tile, splat) and summed by splat in a fixed order: the same bits on every run.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from gphm_kernels.varying import promote, varying_axes

TILE = 16
ALPHA_MAX = 0.99
ALPHA_MIN = 1.0 / 255.0
TRANSMITTANCE_MIN = 1e-4
# Tiles blended together and splats per block: the working set of a block stays in a core's cache.
CHUNK = 8
BLOCK = 64
# Slots of the intersection buffer per splat; more intersections than this take another group of tiles.
SLOTS_PER_SPLAT = 4
GEOMETRY = 6  # columns: mean x, mean y, conic a, b, c, opacity


class _Layout(NamedTuple):
    """Static sizes. The images of a batch are stacked vertically, so that a tile index names image and tile."""

    batch: int
    width: int
    height: int
    columns: int
    rows: int

    @property
    def tiles(self) -> int:
        return self.batch * self.rows * self.columns


class _Splats(NamedTuple):
    """All splats of the batch, depth-ordered within each image, with the tiles their bounding boxes cover."""

    geometry: Float[Array, "m 6"]
    features: Float[Array, "m c"]
    left: Int[Array, "m"]
    top: Int[Array, "m"]
    columns: Int[Array, "m"]
    rows: Int[Array, "m"]


class _Bins(NamedTuple):
    """The intersections of one group of tiles, sorted by tile, then depth."""

    slot: Int[Array, "s"]  # sorted position -> slot; slots are ordered by splat
    splat: Int[Array, "s"]  # slot -> splat
    count: Int[Array, "m"]  # splat -> its slots
    start: Int[Array, "tiles+1"]  # tile -> its first sorted position


class _Block(NamedTuple):
    """One block of splats seen from the pixels of a chunk of tiles, [tiles, pixels, splats]."""

    position: Int[Array, "t k"]
    valid: Bool[Array, "t k"]
    geometry: Float[Array, "t k 6"]
    features: Float[Array, "t k c"]
    alpha: Float[Array, "t p k"]
    clamped: Bool[Array, "t p k"]
    transmittance: Float[Array, "t p k"]
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
    layout = _layout(means2d.shape[0], width, height)
    splats, _ = _arrange(layout, means2d, conics, opacities, depths, features)
    dtype, channels = features.dtype, features.shape[-1]
    padded = layout.tiles + CHUNK  # a chunk may start at the last tile

    def visit(carry: Any, bins: _Bins, tiles: Array, last: Array) -> Any:
        colour, remaining = _blend_chunk(layout, splats, bins, tiles, last)
        at = tiles[0]
        return (
            lax.dynamic_update_slice_in_dim(carry[0], colour, at, 0),
            lax.dynamic_update_slice_in_dim(carry[1], remaining, at, 0),
        )

    empty = (jnp.zeros((padded, TILE * TILE, channels), dtype), jnp.ones((padded, TILE * TILE), dtype))
    carry = promote(empty, varying_axes(splats))
    colour, remaining = _sweep(layout, splats, carry, visit)
    colour = _from_tiles(layout, colour[: layout.tiles])
    remaining = _from_tiles(layout, remaining[: layout.tiles, :, None])
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
    layout = _layout(means2d.shape[0], width, height)
    splats, order = _arrange(layout, means2d, conics, opacities, depths, features)
    remaining = 1 - alpha
    d_background = jnp.einsum("bhw,bhwc->bc", remaining, d_image)
    behind = jnp.einsum("bhwc,bc->bhw", d_image, background)
    # sum_j w_j g_j over all splats of a pixel, and T_end times the cotangent of T_end.
    total = jnp.einsum("bhwc,bhwc->bhw", d_image, image) - remaining * behind
    per_pixel = jnp.stack([total, remaining * (behind - d_alpha)], -1)
    cotangent = _to_tiles(layout, jnp.concatenate([d_image, per_pixel], -1))
    cotangent = jnp.pad(cotangent, ((0, CHUNK), (0, 0), (0, 0)))

    def visit(buffer: Array, bins: _Bins, tiles: Array, last: Array) -> Array:
        local = lax.dynamic_slice_in_dim(cotangent, tiles[0], CHUNK, 0)
        return _differentiate_chunk(layout, splats, bins, tiles, last, local, buffer)

    size, columns = _capacity(layout, splats), GEOMETRY + features.shape[-1]
    axes = varying_axes(splats, cotangent)

    def begin() -> Array:
        return promote(jnp.zeros((size, columns), features.dtype), axes)

    def end(total: Array, buffer: Array, bins: _Bins) -> Array:
        return total + _sum_by_splat(buffer, bins)

    gradient = promote(jnp.zeros((splats.left.shape[0], columns), features.dtype), axes)
    gradient = _sweep(layout, splats, gradient, visit, begin=begin, end=end)
    gradient = jnp.zeros_like(gradient).at[order].set(gradient, unique_indices=True)
    gradient = gradient.reshape(*opacities.shape, columns)
    return gradient[..., :2], gradient[..., 2:5], gradient[..., 5], gradient[..., GEOMETRY:], d_background


def _layout(batch: int, width: int, height: int) -> _Layout:
    return _Layout(batch, width, height, -(-width // TILE), -(-height // TILE))


def _capacity(layout: _Layout, splats: _Splats) -> int:
    """Slots of the intersection buffer: never fewer than the splats of one image, the longest list of a tile."""
    total = splats.left.shape[0]
    per_image = total // layout.batch
    return max(1, min(SLOTS_PER_SPLAT * total + 4096, total * layout.rows * layout.columns), per_image)


def _arrange(
    layout: _Layout, means2d: Array, conics: Array, opacities: Array, depths: Array, features: Array
) -> tuple[_Splats, Array]:
    """Sorts by depth within each image and bounds each splat's tiles; also returns the order, [m]."""
    batch, number = opacities.shape
    # Positive floats order as the integers with the same bits; integer keys sort faster on GPU.
    key = lax.bitcast_convert_type(depths, jnp.int32 if depths.dtype == jnp.float32 else jnp.int64)
    order = jnp.argsort(key, axis=1, stable=True) + number * jnp.arange(batch, dtype=jnp.int32)[:, None]
    order = order.astype(jnp.int32).reshape(-1)
    geometry = jnp.concatenate([means2d, conics, opacities[..., None]], -1).reshape(-1, GEOMETRY)[order]
    image = jnp.repeat(jnp.arange(batch, dtype=jnp.int32), number, total_repeat_length=batch * number)
    bounds = _bounds(layout, geometry, image)
    return _Splats(geometry, features.reshape(batch * number, -1)[order], *bounds), order


def _bounds(layout: _Layout, geometry: Array, image: Array) -> tuple[Array, Array, Array, Array]:
    """The tile rectangle around each ellipse alpha >= 1/255: left, top, columns, rows; empty if inert."""
    x, y, a, b, c, opacity = geometry.T
    level = _level(opacity)
    epsilon = jnp.finfo(geometry.dtype).eps
    # The determinant's rounding error is of order epsilon a c: a needle may bound too much, never too little.
    inverse = 1 / jnp.maximum(a * c - b * b - 4 * epsilon * a * c, jnp.finfo(geometry.dtype).tiny)
    half_width = jnp.sqrt(jnp.maximum(level, 0) * jnp.minimum(c * inverse, 1e30))
    half_height = jnp.sqrt(jnp.maximum(level, 0) * jnp.minimum(a * inverse, 1e30))

    def tile_range(centre: Array, half: Array, tiles: int) -> tuple[Array, Array]:
        # Pixel centres at +0.5; clipped as floats, since a float beyond int32 has no defined conversion.
        first = jnp.clip(jnp.ceil((centre - half - (TILE - 0.5)) / TILE), 0, tiles)
        last = jnp.clip(jnp.floor((centre + half - 0.5) / TILE), -1, tiles - 1)
        return first.astype(jnp.int32), jnp.maximum(last - first + 1, 0).astype(jnp.int32)

    left, columns = tile_range(x, half_width, layout.columns)
    top, rows = tile_range(y, half_height, layout.rows)
    drawn = (opacity >= ALPHA_MIN) & (columns > 0) & (rows > 0)
    columns, rows = jnp.where(drawn, columns, 0), jnp.where(drawn, rows, 0)
    return left, top + layout.rows * image, columns, rows


def _level(opacity: Array) -> Array:
    """The quadratic form's value where alpha falls to 1/255, with slack for rounding."""
    return 2 * jnp.log(jnp.maximum(opacity, ALPHA_MIN) * (1 / ALPHA_MIN)) + 1e-3


def _sweep(
    layout: _Layout,
    splats: _Splats,
    carry: Any,
    visit: Callable[[Any, _Bins, Array, Array], Any],
    begin: Callable[[], Any] | None = None,
    end: Callable[[Any, Any, _Bins], Any] | None = None,
) -> Any:
    """Bins and visits all tiles in groups: `visit(local, bins, tiles, last)` for each chunk of tiles.

    With `begin` and `end`, a group works on `begin()` and is folded into the carry by `end(carry, local, bins)`.
    A chunk may reach past the group's `last` tile (exclusive); its lists are empty there.
    """
    capacity = _capacity(layout, splats)
    listed = _count_tiles(layout, splats)
    axes = varying_axes(splats, carry)

    def group(state: Any) -> Any:
        first, total = state
        last = _group_end(listed, first, capacity)
        bins = _bin(layout, splats, first, last, capacity)

        def chunk(inner: Any) -> Any:
            tile, local = inner
            tiles = tile + jnp.arange(CHUNK, dtype=jnp.int32)
            return tile + CHUNK, visit(local, bins, tiles, last)

        local = total if begin is None else begin()
        _, local = lax.while_loop(lambda inner: inner[0] < last, chunk, (first, local))
        return last, local if end is None else end(total, local, bins)

    first = promote(jnp.zeros((), jnp.int32), axes)
    return lax.while_loop(lambda state: state[0] < layout.tiles, group, (first, carry))[1]


def _count_tiles(layout: _Layout, splats: _Splats) -> Int[Array, "tiles"]:
    """How many bounding boxes cover each tile: corner differences, summed along both axes."""
    rows, columns = layout.batch * layout.rows, layout.columns
    sign = (splats.columns > 0).astype(jnp.int32)
    right, bottom = splats.left + splats.columns, splats.top + splats.rows
    table = promote(jnp.zeros((rows + 1, columns + 1), jnp.int32), varying_axes(splats))
    table = table.at[splats.top, splats.left].add(sign).at[bottom, right].add(sign)
    table = table.at[splats.top, right].add(-sign).at[bottom, splats.left].add(-sign)
    return jnp.cumsum(jnp.cumsum(table, 0), 1)[:rows, :columns].reshape(-1)


def _group_end(listed: Array, first: Array, capacity: int) -> Array:
    """The last tile (exclusive) such that the lists from `first` on fit the buffer; at least one tile."""
    ahead = jnp.where(jnp.arange(listed.shape[0]) >= first, listed, 0)
    # Saturating sums: a batch of crowded images has more intersections than int32 can count.
    running = lax.associative_scan(lambda x, y: jnp.minimum(x + y, capacity + 1), ahead)
    return jnp.sum(running <= capacity, dtype=jnp.int32)


def _bin(layout: _Layout, splats: _Splats, first: Array, last: Array, capacity: int) -> _Bins:
    """Lists the tiles of [first, last) that each splat's ellipse touches, sorted by tile and depth."""
    skipped = _tiles_before(layout, splats, first)
    count = _tiles_before(layout, splats, last) - skipped
    end = jnp.cumsum(count)
    number = count.shape[0]
    splat = jnp.repeat(jnp.arange(number, dtype=jnp.int32), count, total_repeat_length=capacity)
    slot = jnp.arange(capacity, dtype=jnp.int32)
    # The n-th tile of a rectangle in row-major order, in closed form: no list of all tiles is ever made.
    nth = slot - (end - count - skipped)[splat]
    columns = jnp.maximum(splats.columns[splat], 1)
    row, column = splats.top[splat] + nth // columns, splats.left[splat] + nth % columns
    touches = _touches_tile(splats.geometry[splat], column, row % layout.rows)
    key = jnp.where((slot < end[-1]) & touches, row * layout.columns + column, layout.tiles)
    key, slot = lax.sort((key, slot), num_keys=1, is_stable=True)
    start = jnp.searchsorted(key, jnp.arange(layout.tiles + 1, dtype=jnp.int32)).astype(jnp.int32)
    return _Bins(slot, splat, count, start)


def _tiles_before(layout: _Layout, splats: _Splats, tile: Array) -> Array:
    """How many tiles of each splat's rectangle come before `tile` in row-major order."""
    row, column = tile // layout.columns, tile % layout.columns
    above = jnp.clip(row - splats.top, 0, splats.rows)
    beside = jnp.clip(column - splats.left, 0, splats.columns)
    within = (row >= splats.top) & (row < splats.top + splats.rows)
    return splats.columns * above + jnp.where(within, beside, 0)


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


def _pixels(layout: _Layout, tiles: Array, dtype: jnp.dtype) -> tuple[Array, Array]:
    """Pixel centres of each tile within its image, x and y, [t, p]."""
    column, row = tiles % layout.columns, (tiles // layout.columns) % layout.rows
    inside = np.arange(TILE * TILE)
    x = column[:, None] * TILE + (inside % TILE)[None]
    y = row[:, None] * TILE + (inside // TILE)[None]
    return x.astype(dtype) + 0.5, y.astype(dtype) + 0.5


def _lists(bins: _Bins, tiles: Array, last: Array) -> tuple[Array, Array]:
    """Start and length of each tile's list; empty from `last` on."""
    start = bins.start[tiles]  # clamped beyond the last tile
    stop = bins.start[tiles + 1]
    return start, jnp.where(tiles < last, stop - start, 0)


def _block(
    splats: _Splats,
    bins: _Bins,
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
    splat = bins.splat[bins.slot[position]]
    geometry = splats.geometry[splat]
    mean_x, mean_y, a, b, c, opacity = (geometry[:, None, :, i] for i in range(GEOMETRY))
    dx, dy = x[:, :, None] - mean_x, y[:, :, None] - mean_y
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    raw = opacity * jnp.exp(-jnp.maximum(sigma, 0))  # rounding can make a needle's exponent negative
    alpha = jnp.where(valid[:, None] & (raw >= ALPHA_MIN), jnp.minimum(raw, ALPHA_MAX), 0)
    log_pass = jnp.log1p(-alpha)
    inclusive = _running_sum(log_pass)
    # Transmittance falls along the list, so the stop rule is one comparison per splat.
    alive = (remaining[..., None] * jnp.exp(inclusive) > TRANSMITTANCE_MIN) & ~ended[..., None]
    return _Block(
        position=position,
        valid=valid,
        geometry=geometry,
        features=splats.features[splat],
        alpha=jnp.where(alive, alpha, 0),
        clamped=raw >= ALPHA_MAX,
        transmittance=remaining[..., None] * jnp.exp(inclusive - log_pass),
        remaining=remaining * jnp.exp(jnp.sum(jnp.where(alive, log_pass, 0), -1)),
        ended=ended | ~alive[..., -1],
    )


def _running_sum(x: Array) -> Array:
    """Inclusive sum along the last axis, as a product with a triangle: faster than a scan on every platform."""
    triangle = jnp.asarray(np.triu(np.ones((BLOCK, BLOCK))), x.dtype)
    return jnp.matmul(x, triangle, precision=lax.Precision.HIGHEST)


def _blend_chunk(layout: _Layout, splats: _Splats, bins: _Bins, tiles: Array, last: Array) -> tuple[Array, Array]:
    """Colour without background and remaining transmittance of a chunk of tiles."""
    dtype = splats.features.dtype
    x, y = _pixels(layout, tiles, dtype)
    start, length = _lists(bins, tiles, last)
    blocks = (jnp.max(length) + BLOCK - 1) // BLOCK

    def body(state: Any) -> Any:
        index, colour, remaining, ended = state
        block = _block(splats, bins, start, length, index, x, y, remaining, ended)
        weight = block.alpha * block.transmittance
        colour = colour + jnp.matmul(weight, block.features, precision=lax.Precision.HIGHEST)
        return index + 1, colour, block.remaining, block.ended

    def unfinished(state: Any) -> Any:
        return (state[0] < blocks) & ~jnp.all(state[3])

    colour = jnp.zeros((*x.shape, splats.features.shape[-1]), dtype)
    initial = (jnp.zeros((), jnp.int32), colour, jnp.ones_like(x), jnp.zeros(x.shape, bool))
    _, colour, remaining, _ = lax.while_loop(unfinished, body, promote(initial, varying_axes(splats, tiles)))
    return colour, remaining


def _differentiate_chunk(
    layout: _Layout, splats: _Splats, bins: _Bins, tiles: Array, last: Array, cotangent: Array, buffer: Array
) -> Array:
    """Writes the gradient of every (tile, splat) of a chunk of tiles to its slot of the buffer."""
    dtype = splats.features.dtype
    x, y = _pixels(layout, tiles, dtype)
    start, length = _lists(bins, tiles, last)
    blocks = (jnp.max(length) + BLOCK - 1) // BLOCK
    d_image, total, d_end = cotangent[..., :-2], cotangent[..., -2], cotangent[..., -1]

    def body(state: Any) -> Any:
        index, before, remaining, ended, buffer = state
        block = _block(splats, bins, start, length, index, x, y, remaining, ended)
        weight = block.alpha * block.transmittance
        g = jnp.einsum("tpc,tkc->tpk", d_image, block.features, precision=lax.Precision.HIGHEST)
        running = _running_sum(weight * g) + before[..., None]
        behind = total[..., None] - running + d_end[..., None]
        d_alpha = block.transmittance * g - behind / (1 - block.alpha)
        d_log = jnp.where((block.alpha > 0) & ~block.clamped, d_alpha * block.alpha, 0)
        gradient = jnp.concatenate(
            [
                _geometry_gradient(block.geometry, x, y, d_log),
                jnp.einsum("tpk,tpc->tkc", weight, d_image, precision=lax.Precision.HIGHEST),
            ],
            -1,
        )
        slot = jnp.where(block.valid, bins.slot[block.position], buffer.shape[0])
        # Slots belong to one (tile, splat): plain stores, no sums whose order could differ between runs.
        buffer = buffer.at[slot].set(gradient, mode="drop", unique_indices=True)
        return index + 1, running[..., -1], block.remaining, block.ended, buffer

    def unfinished(state: Any) -> Any:
        return (state[0] < blocks) & ~jnp.all(state[3])

    initial = (jnp.zeros((), jnp.int32), jnp.zeros_like(x), jnp.ones_like(x), jnp.zeros(x.shape, bool), buffer)
    axes = varying_axes(splats, tiles, cotangent)
    return lax.while_loop(unfinished, body, promote(initial, axes))[-1]


def _geometry_gradient(geometry: Array, x: Array, y: Array, d_log: Array) -> Array:
    """Cotangents of mean, conic and opacity from d_log [t, p, k], the cotangent of log alpha."""
    # Moments about the tile's middle are one small product; they are then moved to each splat's mean.
    middle_x, middle_y = (x[:, :1] + x[:, -1:]) / 2, (y[:, :1] + y[:, -1:]) / 2
    u, v = x - middle_x, y - middle_y
    monomials = jnp.stack([jnp.ones_like(u), u, v, u * u, u * v, v * v], -1)
    moments = jnp.einsum("tpk,tpm->tkm", d_log, monomials, precision=lax.Precision.HIGHEST)
    s0, su, sv, suu, suv, svv = (moments[..., i] for i in range(6))
    mean_x, mean_y, a, b, c, opacity = (geometry[..., i] for i in range(GEOMETRY))
    p, q = mean_x - middle_x, mean_y - middle_y
    sx, sy = su - p * s0, sv - q * s0
    sxx, sxy = suu - 2 * p * su + p * p * s0, suv - p * sv - q * su + p * q * s0
    syy = svv - 2 * q * sv + q * q * s0
    columns = (a * sx + b * sy, b * sx + c * sy, -0.5 * sxx, -sxy, -0.5 * syy, s0 / opacity)
    return jnp.stack(columns, -1)


def _sum_by_splat(buffer: Array, bins: _Bins) -> Array:
    """Sums each splat's slots, which are neighbours, by doubling strides: [slots, columns] -> [m, columns]."""
    end = jnp.cumsum(bins.count)
    following = end[bins.splat] - jnp.arange(buffer.shape[0], dtype=jnp.int32)  # slots up to the splat's last
    longest = jnp.max(bins.count, initial=0)

    def fold(state: tuple[Array, Array]) -> tuple[Array, Array]:
        stride, values = state
        partner = jnp.roll(values, -stride, 0)
        return 2 * stride, values + jnp.where((following > stride)[:, None], partner, 0)

    stride = promote(jnp.ones((), jnp.int32), varying_axes(buffer, bins))
    _, values = lax.while_loop(lambda state: state[0] < longest, fold, (stride, buffer))
    return jnp.where((bins.count > 0)[:, None], values[jnp.minimum(end - bins.count, buffer.shape[0] - 1)], 0)


def _to_tiles(layout: _Layout, image: Array) -> Array:
    """[b, h, w, c] -> [tiles, pixels, c], zero beyond the image."""
    batch, height, width, channels = image.shape
    image = jnp.pad(image, ((0, 0), (0, layout.rows * TILE - height), (0, layout.columns * TILE - width), (0, 0)))
    image = image.reshape(batch, layout.rows, TILE, layout.columns, TILE, channels).swapaxes(2, 3)
    return image.reshape(layout.tiles, TILE * TILE, channels)


def _from_tiles(layout: _Layout, tiles: Array) -> Array:
    """[tiles, pixels, c] -> [b, h, w, c]."""
    channels = tiles.shape[-1]
    image = tiles.reshape(layout.batch, layout.rows, layout.columns, TILE, TILE, channels).swapaxes(2, 3)
    image = image.reshape(layout.batch, layout.rows * TILE, layout.columns * TILE, channels)
    return image[:, : layout.height, : layout.width]
