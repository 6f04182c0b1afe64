"""Sums of float32 in fixed point, by atomics: integers add up to the same bits in any order.

A first pass over the summands notes the greatest magnitude in each sum (`peaks`, the bits of float32 as int32, which
order alike). A second one, by the same code and so with the same bits, adds them as multiples of a unit (`totals`,
int64). Summands are less than 2^(e - 126), e the biased exponent of their peak, and the unit is 2^-room of that: up to
2^(62 - room) summands do not overflow. What each loses, less than a unit, is far below the rounding of float32.
"""

import triton
import triton.language as tl

NOT_FINITE = tl.constexpr(0x7F800000)  # the bits of infinity; NaNs have greater ones


@triton.jit
def add(peaks, totals, value, valid, room, adding):
    """Notes the magnitudes of `value` in `peaks`; or, in the second pass (`adding` not 0), adds to `totals`."""
    bits = value.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    valid &= bits > 0
    if adding != 0:
        peak = tl.load(peaks, mask=valid, other=0)
        valid &= peak < NOT_FINITE
        units = tl.where(valid, value, 0.0).to(tl.float64) * _power_of_two(_places(peak, room))
        tl.atomic_add(totals, units.to(tl.int64), mask=valid, sem="relaxed")
    else:
        tl.atomic_max(peaks, bits, mask=valid, sem="relaxed")


@triton.jit
def read(peaks, totals, valid, room):
    """The sums as float32, zero where not valid; NaN where a summand was not finite."""
    peak = tl.load(peaks, mask=valid, other=0)
    value = tl.load(totals, mask=valid, other=0).to(tl.float64) * _power_of_two(-_places(peak, room))
    return tl.where(peak < NOT_FINITE, value.to(tl.float32), float("nan"))


@triton.jit
def wide(totals):
    """The pointer as one to int64: JAX, which has no such arrays unless asked, gives pairs of int32."""
    return totals.to(tl.pointer_type(tl.int64), bitcast=True)


@triton.jit
def _places(peak, room):
    """A unit is 2 to the power of minus this."""
    return room + 126 - (peak >> 23)


@triton.jit
def _power_of_two(exponent):
    return ((exponent + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)
