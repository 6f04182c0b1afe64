"""The splatting kernels for NVIDIA GPUs: blending as products of matrices, forward and backward.

One program blends one 16x16 tile. It walks the tile's depth-ordered list in blocks of `BLOCK` splats; with pixels along
the first axis and splats along the second, a block's alphas and transmittances are one matrix, weights W, and

    image += W C,   g = G C^T,   dC = W^T G                                                  G = d_image

run on tensor cores as three TF32 products each (or in float32, `PRECISION` "ieee"). Exponents and transmittances
are float32. Results have the same bits on every run: every store has one owner, and atomics only add integers.

`splats` names the splat (of all the batch's) at each position that `tile` describes: of the lists, made by
`gphm_kernels.reference.tiles`, or for crowded tiles of all splats in depth order. A launch draws the tiles of one kind.
Pointers come first, outputs last among them, then int32 sizes: `launches` describes them to the launcher. `channels` is
a multiple of `CHANNELS`, and 16 rows of an image, of `width` times `channels` numbers, are indexed with int32.
"""

import triton
import triton.language as tl

from gphm_kernels.triton.kernels import fixed
from gphm_kernels.triton.kernels.tile import PIXELS, is_drawn, next_block, pixels, span

PART = tl.constexpr(32)
ALPHA_MAX = tl.constexpr(0.99)
ALPHA_MIN = tl.constexpr(1.0 / 255.0)
TRANSMITTANCE_MIN = tl.constexpr(1e-4)


@triton.jit
def _load_block(means2d, conics, opacities, splats, position, valid):
    """The geometry of the splats at these positions; opacity zero where not valid."""
    splat = tl.load(splats + position, mask=valid, other=0).to(tl.int64)  # int64: row times row length may exceed int32
    mean_x, mean_y = tl.load(means2d + 2 * splat), tl.load(means2d + 2 * splat + 1)
    a, b, c = tl.load(conics + 3 * splat), tl.load(conics + 3 * splat + 1), tl.load(conics + 3 * splat + 2)
    opacity = tl.load(opacities + splat, mask=valid, other=0.0)
    return splat, mean_x, mean_y, a, b, c, opacity


@triton.jit
def _block_alphas(x, y, mean_x, mean_y, a, b, c, opacity, remaining, ended):
    """[pixels, splats] of alpha (zero where the pixel has ended), the clamp and the transmittance before the splat.

    Also the transmittance that remains after the block, and which pixels have ended.
    """
    dx, dy = x[:, None] - mean_x[None, :], y[:, None] - mean_y[None, :]
    sigma = 0.5 * (a[None, :] * dx * dx + c[None, :] * dy * dy) + b[None, :] * dx * dy
    raw = opacity[None, :] * tl.exp(-tl.maximum(sigma, 0.0))  # rounding can make a needle's exponent negative
    raw = tl.where(raw >= ALPHA_MIN, raw, 0.0)
    alpha = tl.minimum(raw, ALPHA_MAX)
    after = remaining[:, None] * tl.cumprod(1.0 - alpha, 1)
    # Transmittance falls along the list, so the stop rule is one comparison a splat.
    alive = (after > TRANSMITTANCE_MIN) & (ended[:, None] == 0)
    before = after / (1.0 - alpha)
    alpha = tl.where(alive, alpha, 0.0)
    remaining = tl.min(tl.where(alive, after, remaining[:, None]), 1)
    ended = tl.maximum(ended, 1 - tl.min(alive.to(tl.int32), 1))
    return alpha, raw >= ALPHA_MAX, before, remaining, ended


@triton.jit
def blend_fwd(
    means2d,
    conics,
    opacities,
    features,
    background,
    splats,
    bounds,
    last,
    image,
    alphas,
    width,
    height,
    columns,
    rows,
    channels,
    number,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    CROWDED: tl.constexpr,
):
    """Image [b, h, w, channels] over the background and alpha [b, h, w]; program (tile, block of channels)."""
    tile, channel = tl.program_id(0), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    if not is_drawn(tile, last, CROWDED):
        return
    image_number, corner, pixel, x, y, inside = pixels(tile, columns, rows, width, height)
    first, stop = span(tile, bounds, columns, rows, number, CROWDED)
    colour = tl.zeros((PIXELS, CHANNELS), tl.float32)
    remaining = tl.full((PIXELS,), 1.0, tl.float32)
    ended = 1 - inside.to(tl.int32)
    while (first < stop) & (tl.min(ended, 0) == 0):
        first, position, valid = next_block(tile, bounds, columns, first, stop, BLOCK, CROWDED)
        splat, mean_x, mean_y, a, b, c, opacity = _load_block(means2d, conics, opacities, splats, position, valid)
        alpha, _, before, remaining, ended = _block_alphas(
            x, y, mean_x, mean_y, a, b, c, opacity, remaining, ended
        )
        feature = tl.load(features + splat[:, None] * channels + channel[None, :])
        # A feature that is not finite, of a splat that is not visited, must not meet a weight of zero.
        feature = tl.where(valid[:, None], feature, 0.0)
        colour = tl.dot(alpha * before, feature, colour, input_precision=PRECISION)
        first += BLOCK
    colour += remaining[:, None] * tl.load(background + image_number * channels + channel)[None, :]
    tl.store(image + corner * channels + pixel[:, None] * channels + channel[None, :], colour, mask=inside[:, None])
    if tl.program_id(1) == 0:
        tl.store(alphas + corner + pixel, 1.0 - remaining, mask=inside)


@triton.jit
def blend_bwd(
    means2d,
    conics,
    opacities,
    features,
    splats,
    slots,
    bounds,
    last,
    d_image,
    suffix,
    d_geometry,
    d_features,
    width,
    height,
    columns,
    rows,
    channels,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A row of gradient for each listed (tile, splat): d_geometry [slots, 6], d_features [slots, channels].

    `slots` says which row belongs to a position. Rows of splats that no pixel reaches before its end are left as they
    are: the caller passes zeros.
    """
    if is_drawn(tl.program_id(0), last, False):
        _differentiate(means2d, conics, opacities, features, splats, slots, bounds, d_image, suffix, d_geometry,
                       d_features, width, height, columns, rows, channels, 0, CHANNELS, BLOCK, PRECISION,
                       False)  # fmt: skip


@triton.jit
def crowded_bwd(
    means2d,
    conics,
    opacities,
    features,
    splats,
    bounds,
    last,
    d_image,
    suffix,
    peaks_geometry,
    peaks_features,
    totals_geometry,
    totals_features,
    width,
    height,
    columns,
    rows,
    channels,
    number,
    room,
    adding,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each splat's sums over the crowded tiles, [b * number, 6] and [b * number, channels]: a pass of `fixed.add`."""
    if is_drawn(tl.program_id(0), last, True):
        d_geometry = (peaks_geometry, fixed.wide(totals_geometry), room, adding)
        d_features = (peaks_features, fixed.wide(totals_features), room, adding)
        _differentiate(means2d, conics, opacities, features, splats, None, bounds, d_image, suffix, d_geometry,
                       d_features, width, height, columns, rows, channels, number, CHANNELS, BLOCK, PRECISION,
                       True)  # fmt: skip


@triton.jit
def _differentiate(
    means2d,
    conics,
    opacities,
    features,
    splats,
    slots,
    bounds,
    d_image,
    suffix,
    d_geometry,
    d_features,
    width,
    height,
    columns,
    rows,
    channels,
    number,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    CROWDED: tl.constexpr,
):
    """Puts the gradient of each splat of a tile, the program's, where `_put` has its place.

    `suffix` [b, h, w] is sum_j w_j g_j + T_end (G . background - gA) over all splats of a pixel, gA = d_alpha. Less the
    running sum of w_j g_j it is what lies behind splat i, one scalar a pixel for any number of channels:

        dalpha_i = T_i g_i - (suffix - sum_{j<=i} w_j g_j) / (1 - alpha_i)

    The columns of the geometry's gradient are mean x and y, conic a, b and c, opacity.
    """
    tile = tl.program_id(0)
    _, corner, pixel, x, y, inside = pixels(tile, columns, rows, width, height)
    behind = tl.load(suffix + corner + pixel, mask=inside, other=0.0)
    colours = d_image + corner * channels + pixel[:, None] * channels
    first, stop = span(tile, bounds, columns, rows, number, CROWDED)
    remaining = tl.full((PIXELS,), 1.0, tl.float32)
    ended = 1 - inside.to(tl.int32)
    while (first < stop) & (tl.min(ended, 0) == 0):
        first, position, valid = next_block(tile, bounds, columns, first, stop, BLOCK, CROWDED)
        splat, mean_x, mean_y, a, b, c, opacity = _load_block(means2d, conics, opacities, splats, position, valid)
        row = splat if CROWDED else tl.load(slots + position, mask=valid, other=0).to(tl.int64)
        alpha, clamped, before, remaining, ended = _block_alphas(
            x, y, mean_x, mean_y, a, b, c, opacity, remaining, ended
        )
        weight = alpha * before
        g = tl.zeros((PIXELS, BLOCK), tl.float32)
        # One stage: loads ahead of time would fill shared memory and spill registers, for one or two turns of the loop.
        for first_channel in tl.range(0, channels, CHANNELS, num_stages=1):
            channel = first_channel + tl.arange(0, CHANNELS)
            d_colour = tl.load(colours + channel[None, :], mask=inside[:, None], other=0.0)
            feature = tl.load(features + splat[None, :] * channels + channel[:, None])
            feature = tl.where(valid[None, :], feature, 0.0)
            g = tl.dot(d_colour, feature, g, input_precision=PRECISION)
        passed = weight * g
        d_alpha = before * g - (behind[:, None] - tl.cumsum(passed, 1)) / (1.0 - alpha)
        behind -= tl.sum(passed, 1)
        d_log = tl.where((alpha > 0.0) & (clamped == 0), d_alpha * alpha, 0.0)
        dx, dy = x[:, None] - mean_x[None, :], y[:, None] - mean_y[None, :]
        d_splat = _geometry_gradient(d_log, dx, dy, a, b, c, opacity)
        for i in tl.static_range(6):
            _put(d_geometry, 6 * row + i, d_splat[i], valid, CROWDED)
        for first_channel in tl.range(0, channels, CHANNELS, num_stages=1):
            channel = first_channel + tl.arange(0, CHANNELS)
            d_colour = tl.load(colours + channel[None, :], mask=inside[:, None], other=0.0)
            d_feature = _sum_over_pixels(weight, d_colour, PRECISION)
            _put(d_features, row[:, None] * channels + channel[None, :], d_feature, valid[:, None], CROWDED)
        first += BLOCK


@triton.jit
def _sum_over_pixels(left, right, PRECISION: tl.constexpr):
    """left^T right of [pixels, splats] and [pixels, columns]: a product for each warp's own pixels, then their sum.

    As one product it would hand every warp the rows of all pixels, more than its registers hold.
    """
    parts: tl.constexpr = PIXELS // PART
    left = tl.reshape(left, (parts, PART, left.shape[1]))
    right = tl.reshape(right, (parts, PART, right.shape[1]))
    return tl.sum(tl.dot(tl.permute(left, (0, 2, 1)), right, input_precision=PRECISION), 0)


@triton.jit
def _geometry_gradient(d_log, dx, dy, a, b, c, opacity):
    """Cotangents of mean, conic and opacity from d_log, the cotangent of log alpha, summed over the tile's pixels."""
    sx, sy = tl.sum(d_log * dx, 0), tl.sum(d_log * dy, 0)
    return (
        a * sx + b * sy,
        b * sx + c * sy,
        -0.5 * tl.sum(d_log * dx * dx, 0),
        -tl.sum(d_log * dx * dy, 0),
        -0.5 * tl.sum(d_log * dy * dy, 0),
        tl.sum(d_log, 0) / opacity,
    )


@triton.jit
def _put(gradient, at, value, valid, CROWDED: tl.constexpr):
    """Stores what belongs to this tile alone, and adds what a crowded tile shares with others."""
    if CROWDED:
        peaks, totals, room, adding = gradient
        fixed.add(peaks + at, totals + at, value, valid, room, adding)
    else:
        tl.store(gradient + at, value, mask=valid)
