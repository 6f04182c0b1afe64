"""Which tiles of the image each primitive (splat or face) touches, without a capacity that a scene can exceed.

A primitive bounds its tiles by a rectangle. Tiles are taken in groups whose lists fit a buffer of fixed size, never
smaller than the longest list one tile can have: crowded scenes take more groups, and nothing is dropped.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

from gphm_kernels.rows import sum_sorted_rows
from gphm_kernels.varying import promote, varying_axes

TILE = 16
# Slots of the intersection buffer per primitive; more intersections than this take another group of tiles.
SLOTS_PER_PRIMITIVE = 4
SPARE_SLOTS = 4096  # for few primitives that cover many tiles

# (primitives [s], tile columns [s], tile rows within the image [s]) -> does the primitive touch the tile?
Touches = Callable[[Array, Array, Array], Array]


class Layout(NamedTuple):
    """Static sizes. The images of a batch are stacked vertically, so that a tile index names image and tile."""

    batch: int
    width: int
    height: int
    columns: int
    rows: int

    @property
    def tiles(self) -> int:
        return self.batch * self.rows * self.columns


class Rectangles(NamedTuple):
    """The tiles of each primitive's bounding box; rows count through the stacked images of the batch."""

    left: Int[Array, "m"]
    top: Int[Array, "m"]
    columns: Int[Array, "m"]  # zero if the primitive touches nothing
    rows: Int[Array, "m"]


class Bins(NamedTuple):
    """The intersections of one group of tiles, sorted by tile, then by primitive."""

    slot: Int[Array, "s"]  # sorted position -> slot; slots are ordered by primitive
    primitive: Int[Array, "s"]  # slot -> primitive; the last one from the sum of `slots` on
    slots: Int[Array, "m"]  # primitive -> how many slots it has
    start: Int[Array, "tiles+1"]  # tile -> its first sorted position


def make_layout(batch: int, width: int, height: int) -> Layout:
    return Layout(batch, width, height, -(-width // TILE), -(-height // TILE))


def chunk_size() -> int:
    """Tiles visited together: on CPU one, whose block of primitives stays in a core's cache; elsewhere, work enough."""
    return 1 if jax.default_backend() == "cpu" else 64


def bound(
    layout: Layout, x: tuple[Array, Array], y: tuple[Array, Array], image: Array, drawn: Array
) -> Rectangles:
    """Rectangles of the tiles with a pixel centre in [low, high] along x and y, of image number `image`."""

    def tile_range(low: Array, high: Array, tiles: int) -> tuple[Array, Array]:
        # Pixel centres at +0.5; clipped as floats, since a float beyond int32 has no defined conversion.
        first = jnp.clip(jnp.ceil((low - (TILE - 0.5)) / TILE), 0, tiles)
        last = jnp.clip(jnp.floor((high - 0.5) / TILE), -1, tiles - 1)
        return first.astype(jnp.int32), jnp.maximum(last - first + 1, 0).astype(jnp.int32)

    left, columns = tile_range(*x, layout.columns)
    top, rows = tile_range(*y, layout.rows)
    drawn &= (columns > 0) & (rows > 0)
    zero = jnp.zeros_like(left)
    columns, rows = jnp.where(drawn, columns, zero), jnp.where(drawn, rows, zero)
    return Rectangles(jnp.where(drawn, left, zero), jnp.where(drawn, top + layout.rows * image, zero), columns, rows)


def sweep(
    layout: Layout,
    rectangles: Rectangles,
    touches: Touches,
    carry: Any,
    visit: Callable[[Any, Bins, Array, Array], Any],
    begin: Callable[[], Any] | None = None,
    end: Callable[[Any, Any, Bins], Any] | None = None,
) -> Any:
    """Bins and visits all tiles in groups: `visit(local, bins, tiles, last)` for each chunk of tiles.

    With `begin` and `end`, a group works on `begin()` and is folded into the carry by `end(carry, local, bins)`.
    A chunk may reach past the group's `last` tile (exclusive); its lists are empty there.
    """
    size = chunk_size()

    def group(total: Any, bins: Bins, first: Array, last: Array) -> Any:
        def chunk(inner: Any) -> Any:
            tile, local = inner
            tiles = tile + jnp.arange(size, dtype=jnp.int32)
            return tile + size, visit(local, bins, tiles, last)

        local = total if begin is None else begin()
        _, local = lax.while_loop(lambda inner: inner[0] < last, chunk, (first, local))
        return local if end is None else end(total, local, bins)

    return sweep_groups(layout, rectangles, touches, carry, group)


def sweep_groups(
    layout: Layout,
    rectangles: Rectangles,
    touches: Touches,
    carry: Any,
    visit: Callable[[Any, Bins, Array, Array], Any],
) -> Any:
    """Bins all tiles in groups and folds `carry = visit(carry, bins, first, last)` over the groups [first, last)."""
    slots = capacity(layout, rectangles)
    listed = _count_tiles(layout, rectangles)

    def group(state: Any) -> Any:
        first, total = state
        last = _group_end(listed, first, slots)
        return last, visit(total, _bin(layout, rectangles, touches, first, last, slots), first, last)

    first = promote(jnp.zeros((), jnp.int32), varying_axes(rectangles, carry))
    return lax.while_loop(lambda state: state[0] < layout.tiles, group, (first, carry))[1]


def bin_first(layout: Layout, rectangles: Rectangles, touches: Touches) -> tuple[Bins, Int[Array, "1"]]:
    """Bins the first group of tiles alone, [0, last), without a loop; `last` is mostly the number of tiles.

    The lists of tiles from `last` on are empty.
    """
    slots = capacity(layout, rectangles)
    first = jnp.zeros((), jnp.int32)
    last = _group_end(_count_tiles(layout, rectangles), first, slots)
    return _bin(layout, rectangles, touches, first, last, slots), last[None]


def pixels(layout: Layout, tiles: Array, dtype: jnp.dtype) -> tuple[Array, Array]:
    """Pixel centres of each tile within its image, x and y, [t, p]."""
    column, row = tiles % layout.columns, (tiles // layout.columns) % layout.rows
    inside = np.arange(TILE * TILE)
    x = column[:, None] * TILE + (inside % TILE)[None]
    y = row[:, None] * TILE + (inside // TILE)[None]
    return x.astype(dtype) + 0.5, y.astype(dtype) + 0.5


def lists(bins: Bins, tiles: Array, last: Array) -> tuple[Array, Array]:
    """Start and length of each tile's list; empty from `last` on."""
    start = bins.start[tiles]  # clamped beyond the last tile
    stop = bins.start[tiles + 1]
    return start, jnp.where(tiles < last, stop - start, 0)


def to_tiles(layout: Layout, image: Array) -> Array:
    """[b, h, w, c] -> [tiles, pixels, c], zero beyond the image."""
    batch, height, width, channels = image.shape
    image = jnp.pad(image, ((0, 0), (0, layout.rows * TILE - height), (0, layout.columns * TILE - width), (0, 0)))
    image = image.reshape(batch, layout.rows, TILE, layout.columns, TILE, channels).swapaxes(2, 3)
    return image.reshape(layout.tiles, TILE * TILE, channels)


def from_tiles(layout: Layout, tiles: Array) -> Array:
    """[tiles, pixels, c] -> [b, h, w, c]."""
    channels = tiles.shape[-1]
    image = tiles.reshape(layout.batch, layout.rows, layout.columns, TILE, TILE, channels).swapaxes(2, 3)
    image = image.reshape(layout.batch, layout.rows * TILE, layout.columns * TILE, channels)
    return image[:, : layout.height, : layout.width]


def sum_by_primitive(buffer: Array, bins: Bins) -> Array:
    """Sums each primitive's slots, which are neighbours: [slots, columns] -> [m, columns]; unused ones are left out."""
    number = bins.slots.shape[0]
    # Unused slots name the last primitive: as a run of its own they would cost as many passes as there are of them.
    used = jnp.arange(bins.primitive.shape[0], dtype=jnp.int32) < jnp.sum(bins.slots)
    return sum_sorted_rows(buffer, jnp.where(used, bins.primitive, number), number)


def capacity(layout: Layout, rectangles: Rectangles) -> int:
    """Slots of the intersection buffer: at least the primitives of one image, the longest list of a tile."""
    total = rectangles.left.shape[0]
    per_image = total // layout.batch
    return max(1, min(SLOTS_PER_PRIMITIVE * total + SPARE_SLOTS, total * layout.rows * layout.columns), per_image)


def _count_tiles(layout: Layout, rectangles: Rectangles) -> Int[Array, "tiles"]:
    """How many bounding boxes cover each tile: corner differences, summed along both axes."""
    rows, columns = layout.batch * layout.rows, layout.columns
    sign = (rectangles.columns > 0).astype(jnp.int32)
    right, bottom = rectangles.left + rectangles.columns, rectangles.top + rectangles.rows
    table = promote(jnp.zeros((rows + 1, columns + 1), jnp.int32), varying_axes(rectangles))
    table = table.at[rectangles.top, rectangles.left].add(sign).at[bottom, right].add(sign)
    table = table.at[rectangles.top, right].add(-sign).at[bottom, rectangles.left].add(-sign)
    return jnp.cumsum(jnp.cumsum(table, 0), 1)[:rows, :columns].reshape(-1)


def _group_end(listed: Array, first: Array, capacity: int) -> Array:
    """The last tile (exclusive) such that the lists from `first` on fit the buffer; at least one tile."""
    ahead = jnp.where(jnp.arange(listed.shape[0]) >= first, listed, 0)
    # No list is longer than the capacity, so that even a sum that overflows int32 has exceeded the capacity before.
    exceeds = jnp.cumsum(ahead) > capacity
    return jnp.where(jnp.any(exceeds), jnp.argmax(exceeds), listed.shape[0]).astype(jnp.int32)


def _bin(
    layout: Layout, rectangles: Rectangles, touches: Touches, first: Array, last: Array, capacity: int
) -> Bins:
    """Lists the tiles of [first, last) that each primitive touches, sorted by tile, then by primitive."""
    skipped = _tiles_before(layout, rectangles, first)
    count = _tiles_before(layout, rectangles, last) - skipped
    end = jnp.cumsum(count)
    slot = jnp.arange(capacity, dtype=jnp.int32)
    primitive = jnp.minimum(_count_up_to(end, capacity), count.shape[0] - 1)
    # The n-th tile of a rectangle in row-major order, in closed form: no list of all tiles is ever made.
    nth = slot - (end - count - skipped)[primitive]
    columns = jnp.maximum(rectangles.columns[primitive], 1)
    row, column = rectangles.top[primitive] + nth // columns, rectangles.left[primitive] + nth % columns
    listed = (slot < end[-1]) & touches(primitive, column, row % layout.rows)
    key = jnp.where(listed, row * layout.columns + column, layout.tiles)
    key, slot = _sort_slots(key, slot, (layout.tiles + 1) * capacity)
    start = _count_up_to(key + 1, layout.tiles + 1)
    return Bins(slot, primitive, count, start)


def _count_up_to(values: Int[Array, "n"], number: int) -> Int[Array, "m"]:
    """How many of the values, which are not negative, are at most 0, 1, ... `number` - 1.

    If they ascend, what a search finds; but faster, and without a search's loop.
    """
    counts = promote(jnp.zeros(number, jnp.int32), varying_axes(values))
    return jnp.cumsum(counts.at[values].add(1, mode="drop"))


def _sort_slots(key: Array, slot: Array, codes: int) -> tuple[Array, Array]:
    """Sorts by key, then slot."""
    if codes >= 2**31:
        key, slot = lax.sort((key, slot), num_keys=1, is_stable=True)
        return key, slot
    # Both in one integer: on CPU a sort of one operand is four times faster than one that carries another.
    capacity = slot.shape[0]
    code = lax.sort(key * capacity + slot, is_stable=False)
    return code // capacity, code % capacity


def _tiles_before(layout: Layout, rectangles: Rectangles, tile: Array) -> Array:
    """How many tiles of each primitive's rectangle come before `tile` in row-major order."""
    row, column = tile // layout.columns, tile % layout.columns
    above = jnp.clip(row - rectangles.top, 0, rectangles.rows)
    beside = jnp.clip(column - rectangles.left, 0, rectangles.columns)
    within = (row >= rectangles.top) & (row < rectangles.top + rectangles.rows)
    return rectangles.columns * above + jnp.where(within, beside, 0)
