"""The 16x16 tile of an image that one program draws, and the primitives (splats or faces) that it visits.

The primitives of a listed tile, one before `last`, are those at positions `bounds[tile]` to `bounds[tile + 1]` of all
tiles' lists. A crowded tile, from `last` on, has no list: it walks all `number` primitives of its image, at positions
`number` times the image on, and takes those whose rectangle of tiles, `bounds[position]` = (left, top, columns, rows),
has the tile within. Rows of tiles count through the stacked images of a batch.
"""

import triton
import triton.language as tl

TILE = tl.constexpr(16)
PIXELS = tl.constexpr(256)
SCAN = tl.constexpr(1024)  # rectangles looked at together; few of them touch a tile


@triton.jit
def pixels(tile, columns, rows, width, height):
    """A tile's image number, the index of its first pixel among all images' pixels (int64), how far each of its pixels
    is from that one, their centres x and y, and whether they lie inside the image."""
    number, left, top = tile // (columns * rows), tile % columns * TILE, tile // columns % rows * TILE
    column, row = tl.arange(0, PIXELS) % TILE, tl.arange(0, PIXELS) // TILE
    corner = (number.to(tl.int64) * height + top) * width + left
    inside = (left + column < width) & (top + row < height)
    x, y = (left + column).to(tl.float32) + 0.5, (top + row).to(tl.float32) + 0.5
    return number, corner, row * width + column, x, y, inside


@triton.jit
def is_drawn(tile, last, CROWDED: tl.constexpr):
    """Whether the tile is of the kind, listed or crowded, that this launch draws."""
    if CROWDED:
        return tile >= tl.load(last)
    else:
        return tile < tl.load(last)


@triton.jit
def span(tile, bounds, columns, rows, number, CROWDED: tl.constexpr):
    """The first position to visit, and the one after the last."""
    if CROWDED:
        first = tile // (columns * rows) * number
        return first, first + number
    else:
        return tl.load(bounds + tile), tl.load(bounds + tile + 1)


@triton.jit
def next_block(tile, bounds, columns, first, stop, BLOCK: tl.constexpr, CROWDED: tl.constexpr):
    """The next `BLOCK` positions from `first` on, and which of them the tile visits; `first` is moved to a visited one.

    None may be visited in the last block of a crowded tile.
    """
    if CROWDED:
        first = _next_touching(tile, bounds, columns, first, stop)
    position = first + tl.arange(0, BLOCK)
    visited = position < stop
    if CROWDED:
        visited = _touches(tile, bounds, columns, position, visited)
    return first, position, visited


@triton.jit
def _next_touching(tile, bounds, columns, first, stop):
    found = stop
    while (first < stop) & (found == stop):
        position = first + tl.arange(0, SCAN)
        touching = _touches(tile, bounds, columns, position, position < stop)
        found = tl.min(tl.where(touching, position, stop), 0)
        first += SCAN
    return found


@triton.jit
def _touches(tile, bounds, columns, position, valid):
    at = bounds + 4 * position.to(tl.int64)
    right = tile % columns - tl.load(at, mask=valid, other=0)
    below = tile // columns - tl.load(at + 1, mask=valid, other=0)
    wide, high = tl.load(at + 2, mask=valid, other=0), tl.load(at + 3, mask=valid, other=0)
    return (right >= 0) & (right < wide) & (below >= 0) & (below < high)
