"""The sum of each splat's rows of gradient, which tiles have stored or added up."""

import triton
import triton.language as tl

from gphm_kernels.triton.kernels import fixed


@triton.jit
def sum_rows(
    values,
    end,
    order,
    peaks,
    totals,
    last,
    sums,
    columns,
    tiles,
    room,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """sums[order[p]] = the sum of rows end[p - 1] to end[p] of values [slots, columns], and of what crowded tiles add.

    Program (p, block of columns). Rows are added `BLOCK` at a time, in their order. Sums of nothing are left as they
    are: the caller passes zeros.
    """
    primitive, column = tl.program_id(0), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    first = tl.load(end + primitive - 1, mask=primitive > 0, other=0)
    stop = tl.load(end + primitive)
    crowded = tl.load(last) < tiles
    if (first == stop) & (crowded == 0):
        return
    inside = column < columns
    total = tl.zeros((CHANNELS,), tl.float32)
    while first < stop:
        row = first + tl.arange(0, BLOCK)
        at = values + row.to(tl.int64)[:, None] * columns + column[None, :]
        total += tl.sum(tl.load(at, mask=(row < stop)[:, None] & inside[None, :], other=0.0), 0)
        first += BLOCK
    at = tl.load(order + primitive).to(tl.int64) * columns + column
    if crowded:
        total += fixed.read(peaks + at, fixed.wide(totals) + at, inside, room)
    tl.store(sums + at, total, mask=inside)
