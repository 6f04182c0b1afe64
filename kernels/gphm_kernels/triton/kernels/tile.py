"""The 16x16 tile of an image that one program draws."""

import triton
import triton.language as tl

TILE = tl.constexpr(16)
PIXELS = tl.constexpr(256)


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
