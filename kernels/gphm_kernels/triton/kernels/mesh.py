"""Triangle rasterization for NVIDIA GPUs: one program draws one 16x16 tile from the tile's list of faces.

With pixels along the first axis and faces along the second, a block of `BLOCK` faces is set up once, a face a thread:
with p_i = (x_i, y_i, w_i) about the tile's middle and edges e_i = p_j x p_k (i, j, k cyclic), the planes

    e_i . P,    z/w = c + sum_i (e_i . P) (z_i - c w_i) / det                det = p_0 . (p_1 x p_2), any c

are affine functions of a pixel P = (X, Y, 1): z/w costs no division a pixel, and c = z_0/w_0 leaves little to round.
Each thread keeps the nearest of the faces it has met at each of its pixels; threads compare at the end of the list.

The two faces at an edge have e_i as exact negatives of each other, since every product and sum that must agree is
rounded as written: `tl.fma` where there is one, elsewhere a single operation. So there are no cracks.
"""

import triton
import triton.language as tl

from gphm_kernels.triton.kernels.tile import PIXELS, TILE, is_drawn, next_block, pixels, span

INFINITY = tl.constexpr(float("inf"))
NO_FACE = tl.constexpr(2**31 - 1)


@triton.jit
def rasterize_fwd(
    corners,
    listed,
    bounds,
    last,
    raster,
    width,
    height,
    columns,
    rows,
    faces,
    BLOCK: tl.constexpr,
    CROWDED: tl.constexpr,
):
    """(u, v, z/w, face + 1) of the nearest face, [b, h, w, 4]; program: tile. Empty pixels are left as they are.

    `corners` [b * faces, 3, 4] are clip positions; `listed` names the face at each position of the lists, in which a
    tile's faces ascend. Crowded tiles read no list: their positions are the faces.
    """
    tile = tl.program_id(0)
    if not is_drawn(tile, last, CROWDED):
        return
    first, stop = span(tile, bounds, columns, rows, faces, CROWDED)
    if first == stop:
        return
    _, corner, pixel, pixel_x, pixel_y, inside = pixels(tile, columns, rows, width, height)
    x, y = _normalised(pixel_x, pixel_y, width, height)
    middle_x, middle_y = _middle(tile, columns, rows, width, height)
    nearest = tl.full((PIXELS, BLOCK), INFINITY, tl.float32)
    nearest_face = tl.full((PIXELS, BLOCK), NO_FACE, tl.int32)
    while first < stop:
        first, position, valid = next_block(tile, bounds, columns, first, stop, BLOCK, CROWDED)
        face = tl.where(valid, position, 0) if CROWDED else tl.load(listed + position, mask=valid, other=0)
        edges, limits, depth_plane = _set_up(corners, face, valid, middle_x, middle_y)
        depth = _plane_at(depth_plane, x - middle_x, y - middle_y)
        seen = (tl.abs(depth) <= 1) & (depth < nearest)
        for i in tl.static_range(3):
            seen &= _plane_at(edges[i], x - middle_x, y - middle_y) >= limits[i][None, :]
        nearest = tl.where(seen, depth, nearest)
        nearest_face = tl.where(seen, face[None, :], nearest_face)
        first += BLOCK
    order = _ordered(nearest)
    # The lowest index among equals; within a thread it was met first.
    face = tl.min(tl.where(order == tl.min(order, 1)[:, None], nearest_face, NO_FACE), 1)
    _store_seen(raster + 4 * corner, pixel, corners, face, inside & (face < NO_FACE), x, y, faces)


@triton.jit
def _ordered(depth):
    """Integers in the order of the numbers: one instruction finds a warp's least integer, five its least float."""
    bits = (depth + 0.0).to(tl.int32, bitcast=True)  # -0 + 0 = 0
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _normalised(pixel_x, pixel_y, width, height):
    return tl.div_rn(2 * pixel_x, width.to(tl.float32)) - 1, 1 - tl.div_rn(2 * pixel_y, height.to(tl.float32))


@triton.jit
def _middle(tile, columns, rows, width, height):
    """The tile's middle, in normalised device coordinates."""
    left, top = tile % columns * TILE, tile // columns % rows * TILE
    x0, y0 = _normalised(left + 0.5, top + 0.5, width, height)
    x1, y1 = _normalised(left + (TILE - 0.5), top + (TILE - 0.5), width, height)
    return (x0 + x1) * 0.5, (y0 + y1) * 0.5


@triton.jit
def _set_up(corners, face, valid, middle_x, middle_y):
    """The planes of the edges, positive inside, what they must reach for a pixel to be inside, and the plane of z/w."""
    (p0, z0), (p1, z1), (p2, z2) = _corners(corners, face, middle_x, middle_y)
    a, b, c = _edge(p1, p2), _edge(p2, p0), _edge(p0, p1)
    # Three times the determinant: the sum over all corners has the sign that rounding spares longest.
    determinant = _dot(p0, a) + _dot(p1, b) + _dot(p2, c)
    drawn = valid & (determinant != 0) & (tl.abs(determinant) < INFINITY)
    sign = tl.where(determinant < 0, -1.0, 1.0)
    base = tl.div_rn(z0, tl.where(p0[2] == 0, 1.0, p0[2]))
    base = tl.minimum(tl.maximum(base, -1.0), 1.0)  # beyond the view volume it would add to the rounding
    share = tl.div_rn(3.0, determinant)
    r0, r1, r2 = (z0 - base * p0[2]) * share, (z1 - base * p1[2]) * share, (z2 - base * p2[2]) * share
    depth_x, depth_y, depth_one = _combine(a, b, c, r0, r1, r2)
    a, b, c = _scaled(a, sign), _scaled(b, sign), _scaled(c, sign)
    limits = tl.where(drawn, _limit(a), INFINITY), _limit(b), _limit(c)
    return (a, b, c), limits, (depth_x, depth_y, depth_one + base)


@triton.jit
def _corners(corners, face, middle_x, middle_y):
    """(x, y, w) about the tile's middle, and z, of a face's three corners."""
    at = corners + 12 * face.to(tl.int64)
    return (
        _corner(at, middle_x, middle_y),
        _corner(at + 4, middle_x, middle_y),
        _corner(at + 8, middle_x, middle_y),
    )


@triton.jit
def _corner(at, middle_x, middle_y):
    x, y, z, w = tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)
    return (tl.fma(-middle_x, w, x), tl.fma(-middle_y, w, y), w), z


@triton.jit
def _edge(p, q):
    """p x q, rounded the same way for q x p: the product is taken from the lesser corner to the greater.

    Of corners close to each other it is p x (q - p): the rounding of p x q would send the edges of collapsed faces
    through anywhere.
    """
    px, py, pw = p
    qx, qy, qw = q
    swap = (px > qx) | ((px == qx) & ((py > qy) | ((py == qy) & (pw > qw))))
    sign = tl.where(swap, -1.0, 1.0)
    x0, y0, w0 = tl.where(swap, qx, px), tl.where(swap, qy, py), tl.where(swap, qw, pw)
    x1, y1, w1 = tl.where(swap, px, qx), tl.where(swap, py, qy), tl.where(swap, pw, qw)
    dx, dy, dw = x1 - x0, y1 - y0, w1 - w0
    close = tl.abs(dx) + tl.abs(dy) + tl.abs(dw) < tl.abs(x1) + tl.abs(y1) + tl.abs(w1)
    x1, y1, w1 = tl.where(close, dx, x1), tl.where(close, dy, y1), tl.where(close, dw, w1)
    return sign * tl.fma(y0, w1, -(w0 * y1)), sign * tl.fma(w0, x1, -(x0 * w1)), sign * tl.fma(x0, y1, -(y0 * x1))


@triton.jit
def _dot(p, q):
    return p[0] * q[0] + p[1] * q[1] + p[2] * q[2]


@triton.jit
def _combine(a, b, c, r0, r1, r2):
    return (
        a[0] * r0 + b[0] * r1 + c[0] * r2,
        a[1] * r0 + b[1] * r1 + c[1] * r2,
        a[2] * r0 + b[2] * r1 + c[2] * r2,
    )


@triton.jit
def _scaled(plane, factor):
    return plane[0] * factor, plane[1] * factor, plane[2] * factor


@triton.jit
def _limit(edge):
    """What an edge's value must reach: zero, or the least positive number where pixels on the edge are another face's.

    Top-left rule: a left edge has the inside at greater X, a top edge is level with the inside at smaller Y.
    """
    owns = (edge[0] > 0) | ((edge[0] == 0) & (edge[1] < 0))
    return tl.where(owns, 0, 1).to(tl.float32, bitcast=True)


@triton.jit
def _plane_at(plane, x, y):
    """[pixels, faces]. A thread's pixels lie in few columns: the inner sum is shared by those of one."""
    inner = tl.fma(plane[0][None, :], x[:, None], plane[2][None, :])
    return tl.fma(plane[1][None, :], y[:, None], inner)


@triton.jit
def _store_seen(raster, pixel, corners, face, seen, x, y, faces):
    """Each pixel's row of the raster: edges about the pixel itself, which cancel least, as the reference has them."""
    (p0, z0), (p1, z1), (p2, z2) = _corners(corners, tl.where(seen, face, 0), x, y)
    a0, a1, a2 = _cross(p1, p2), _cross(p2, p0), _cross(p0, p1)
    total = a0 + a1 + a2
    seen &= total != 0  # else a face without area, which only rounding can have drawn
    depth = tl.div_rn(a0 * z0 + a1 * z1 + a2 * z2, a0 * p0[2] + a1 * p1[2] + a2 * p2[2])
    at = raster + 4 * pixel
    tl.store(at, tl.div_rn(a0, total), mask=seen)
    tl.store(at + 1, tl.div_rn(a1, total), mask=seen)
    tl.store(at + 2, depth, mask=seen)
    tl.store(at + 3, (face % faces + 1).to(tl.float32), mask=seen)  # numbered through the batch, here within the mesh


@triton.jit
def _cross(p, q):
    return p[0] * q[1] - p[1] * q[0]
