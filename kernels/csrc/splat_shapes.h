// The geometry of splats a vector at a time: where alpha >= 1/255, and which tiles and sub-tiles that region reaches.
#ifndef GPHM_SPLAT_SHAPES_H_
#define GPHM_SPLAT_SHAPES_H_

#include "splat_bins.h"

namespace gphm {
namespace GPHM_ISA {

// Pixels are given this much more room than the ellipse needs, for the rounding of positions in the thousands.
constexpr float kSlack = 0.01f;

struct Ranges {
  Mask first, last;  // first > last where there is nothing
};

// The indices i in [0, count) of intervals [size i + 0.5, size i + size - 0.5] (pixel centres) that [low, high] meets.
GPHM_INLINE Ranges intervals(Vec low, Vec high, float size, int64_t count) {
  const Vec zero{}, end = splat(static_cast<float>(count));
  // The floor of `first` is the ceiling of the bound, but at equality.
  Vec first = (low - (kSlack + size - 0.5f)) * (1.f / size) + 1.f, last = (high + (kSlack - 0.5f)) * (1.f / size);
  const Mask some = last >= zero;  // false for a NaN
  first = select(first > zero, select(first < end, first, end), zero);  // clipped as floats: 1e30 has no integer
  last = select(some, select(last < end - 1.f, last, end - 1.f), zero);
  return {some ? __builtin_convertvector(first, Mask) : Mask{} + 1,
          some ? __builtin_convertvector(last, Mask) : Mask{}};
}

// Splats of an image in depth order, one a lane.
struct Shapes {
  Vec x, y, xx, xy, yy, log_opacity;  // as in Footprint
  Vec shear, reach, bend, half_width, half_height, rim;  // as in Ellipse
  Ranges columns, rows;  // as in Box

  // The `number` splats that `order` names, of the image whose arrays start at splat `base`.
  Shapes(const BlendInputs& in, int64_t base, const uint32_t* order, int64_t number) {
    Vec a, b, c, opacity, depth;
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t at = base + order[lane < number ? lane : number - 1];
      x[lane] = in.means[2 * at], y[lane] = in.means[2 * at + 1];
      a[lane] = in.conics[3 * at], b[lane] = in.conics[3 * at + 1], c[lane] = in.conics[3 * at + 2];
      opacity[lane] = in.opacities[at], depth[lane] = in.depths[at];
    }
    // Relative to the greater of a and c, so that no product leaves the range of a float; the lesser is taken to be at
    // least 1e-12 of it, which makes an ellipse a million times as long as wide, and longer than any image.
    const Vec most = select(a > c, a, c), one = splat(1.f), least = splat(1e-12f);
    const Vec b_ = b / most;
    Vec a_ = a / most, c_ = c / most;
    a_ = select(a_ > least, a_, least), c_ = select(c_ > least, c_, least);
    const Vec product = a_ * c_;
    Vec determinant = difference(a_, c_, b_, b_);
    Mask drawn = bounded(x) & bounded(y) & finite(depth) & finite(opacity) & (opacity >= splat(kAlphaMin)) &
                 (a > Vec{}) & (c > Vec{}) & (most < splat(1e30f)) & (determinant > -1e-5f * product);
    // That of a long needle may have been rounded to zero or below: then it is longer than any image.
    determinant = select(determinant > 1e-9f * product, determinant, 1e-9f * product);
    log_opacity = log2(select(drawn, opacity, one));
    constexpr float kLn2 = 0.693147181f, kLog2Of255 = 7.99435344f;
    Vec level = 2 * kLn2 * (log_opacity + kLog2Of255) + 1e-4f;
    // Slack for the rounding of the exponent, a sum of terms that nearly cancel along a needle: they are greatest at
    // its ends, or where it leaves the image.
    const Vec at_ends = level * (product / determinant);
    const Vec at_borders = a * farthest_square(x, in.width) + c * farthest_square(y, in.height);
    level += 1e-6f * select(at_ends < at_borders, at_ends, at_borders);
    const Vec scale = level / determinant;
    half_width = root(scale * c_ / most), half_height = root(scale * a_ / most);
    constexpr float kLog2E = 1.44269504f;
    xx = -0.5f * kLog2E * a, xy = -kLog2E * b, yy = -0.5f * kLog2E * c;
    shear = b_ / a_, reach = level / a, bend = determinant / (a_ * a_);
    rim = -b_ / c_ * half_width;
    columns = intervals(x - half_width, x + half_width, kTile, blocks(in.width, kTile));
    rows = intervals(y - half_height, y + half_height, kTile, blocks(in.height, kTile));
    drawn &= columns.first <= columns.last;
    rows.first = drawn ? rows.first : Mask{} + 1, rows.last = drawn ? rows.last : Mask{};
  }

 private:
  static inline __attribute__((always_inline)) Mask finite(Vec value) { return value - value == Vec{}; }
  // The square of the distance from `at` to the farthest of `size` pixels.
  static inline __attribute__((always_inline)) Vec farthest_square(Vec at, int64_t size) {
    const Vec rest = static_cast<float>(size) - at, middle = splat(0.5f * static_cast<float>(size));
    const Vec far = select(at > middle, at, rest);
    return far * far;
  }
  // Finite, with room for the sums above; written so that a NaN fails.
  static inline __attribute__((always_inline)) Mask bounded(Vec value) {
    return (value > splat(-1e30f)) & (value < splat(1e30f));
  }
};

// Ellipses of a row of tiles, one a lane.
struct Ellipses {
  Vec x, y, shear, reach, bend, half_width, half_height, rim;

  Ellipses(const Ellipse* ellipses, const int32_t* ranks, int64_t number) {
    for (int lane = 0; lane < kLanes; ++lane) {  // lanes past the end repeat the last splat
      const Ellipse& e = ellipses[ranks[lane < number ? lane : number - 1]];
      x[lane] = e.x, y[lane] = e.y, shear[lane] = e.shear, reach[lane] = e.reach, bend[lane] = e.bend;
      half_width[lane] = e.half_width, half_height[lane] = e.half_height, rim[lane] = e.rim;
    }
  }

  // The columns of sub-tiles, of `count`, that the ellipses reach within rows of pixels from `low` to `high`, which
  // count from the means. An ellipse is convex: its extreme point is the rim, or the end of the interval nearest to it.
  Ranges reached(Vec low, Vec high, int64_t count) const {
    low = select(low > -half_height, low, -half_height);
    high = select(high < half_height, high, half_height);
    const Vec right = select(rim < low, low, select(rim > high, high, rim));
    const Vec left = select(-rim < low, low, select(-rim > high, high, -rim));
    Ranges found = intervals(x - shear * left - root(reach - bend * left * left),
                             x - shear * right + root(reach - bend * right * right), kSubWidth, count);
    found.first = low <= high ? found.first : Mask{} + 1;
    found.last = low <= high ? found.last : Mask{};
    return found;
  }
};

constexpr int kWords = kSubTiles > 32 ? 2 : 1;  // of 32 bits

// For every lane the bits of its sub-tiles in a column of tiles, [kWords, lanes].
GPHM_INLINE void store_words(const Ranges (&reach)[kSubRows], Mask column, uint32_t* words) {
  constexpr int kRows = kSubRows / kWords;
  const Mask zero{}, one = zero + 1, end = zero + kSubColumns, first = column * kSubColumns;
  for (int word = 0; word < kWords; ++word) {
    Mask bits{};
    for (int row = 0; row < kRows; ++row) {
      const Ranges& range = reach[word * kRows + row];
      Mask from = range.first - first, to = range.last + 1 - first;
      from = from < zero ? zero : from > end ? end : from;
      to = to < from ? from : to > end ? end : to;
      bits |= ((one << to) - (one << from)) << (row * kSubColumns);
    }
    __builtin_memcpy(words + word * kLanes, &bits, sizeof bits);
  }
}

}  // namespace GPHM_ISA
}  // namespace gphm

#endif  // GPHM_SPLAT_SHAPES_H_
