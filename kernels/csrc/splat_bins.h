// Which splats touch which tiles: footprints, the depth order, and the tiles' depth-ordered lists.
#ifndef GPHM_SPLAT_BINS_H_
#define GPHM_SPLAT_BINS_H_

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu_ops.h"
#include "memory.h"

namespace gphm {
namespace GPHM_ISA {

constexpr int kTile = 16;
constexpr float kAlphaMin = 1.f / 255.f, kAlphaMax = 0.99f, kTransmittanceMin = 1e-4f;
// Lists are made for a group of tile rows at a time; a group holds about this many entries (or one row).
constexpr int64_t kGroupEntries = 16 << 20;

// One splat as the tiles see it. The region alpha >= 1/255 is an ellipse; at a height dy from the mean it reaches from
// -shear dy - sqrt(reach - bend dy^2) to -shear dy + sqrt(reach - bend dy^2).
struct alignas(64) Footprint {
  float x, y;
  float xx, xy, yy, log_opacity;  // log2 alpha = log_opacity + xx dx^2 + xy dx dy + yy dy^2
  float shear, reach, bend;
  float half_width, half_height;
  float rim;  // dy of the rightmost point; the leftmost lies at -rim
  int32_t first_row, last_row;  // tile rows; first > last for an inert splat
  int32_t splat;
};

struct Span {
  float low, high;
};

// The ellipse's extent in x, relative to the mean, over heights dy in [low, high]: it is convex, so the extreme point
// is the rim or the end of the interval nearest to it. Empty (low > high) where the interval misses the ellipse.
static inline Span span(const Footprint& f, float low, float high) {
  low = low > -f.half_height ? low : -f.half_height;
  high = high < f.half_height ? high : f.half_height;
  if (!(low <= high)) return {1.f, -1.f};
  float right = f.rim < low ? low : f.rim > high ? high : f.rim;
  float left = -f.rim < low ? low : -f.rim > high ? high : -f.rim;
  float right_square = f.reach - f.bend * right * right, left_square = f.reach - f.bend * left * left;
  return {-f.shear * left - std::sqrt(left_square > 0.f ? left_square : 0.f),
          -f.shear * right + std::sqrt(right_square > 0.f ? right_square : 0.f)};
}

// Pixels are given this much more room than the ellipse needs, for the rounding of positions in the thousands.
constexpr float kSlack = 0.01f;

// The indices i in [0, count) of intervals [size i + 0.5, size i + size - 0.5] (pixel centres) that [low, high] meets.
struct Range {
  int32_t first, last;
};
static inline Range intervals(float low, float high, float size, int64_t count) {
  float first = (low - kSlack - (size - 0.5f)) / size + 1.f;  // its floor is the ceiling of the bound, but at equality
  float last = (high + kSlack - 0.5f) / size;
  float end = static_cast<float>(count);
  first = first > 0.f ? (first < end ? first : end) : 0.f;  // clipped as floats: a NaN or 1e30 has no integer
  if (!(last >= 0.f)) return {1, 0};
  last = last < end - 1.f ? last : end - 1.f;
  return {static_cast<int32_t>(first), static_cast<int32_t>(last)};
}

class Bins {
 public:
  struct Row {  // the lists of one row of tiles
    Array<int32_t> ranks;
    Array<int64_t> start;  // [columns + 2]; the last is for filling
  };
  struct Group {
    int64_t first, last;  // tile rows, last exclusive
  };

  Bins(const BlendInputs& in, int64_t image, Parallel& parallel);

  int64_t columns() const { return columns_; }
  int64_t rows() const { return rows_; }
  // Splats that touch the image, in depth order; the lists hold their ranks in it.
  int64_t drawn() const { return drawn_; }
  const Footprint& footprint(int64_t rank) const { return footprints_[rank]; }
  const Footprint* footprints() const { return footprints_.data(); }

  // The group of rows that starts at `first`.
  Group group(int64_t first) const;
  // Fills the lists of a group; those of the group before are lost.
  void fill(const Group& group, Parallel& parallel);
  const Row& row(const Group& group, int64_t row) const { return lists_[row - group.first]; }

 private:
  void sort(const Array<Footprint>& unsorted, const float* depths, Parallel& parallel);
  void list_rows();
  void list_tiles(int64_t row, Row& lists, Array<Range>& ranges);

  int64_t columns_, rows_, drawn_ = 0;
  Array<Footprint> footprints_;
  Array<int64_t> row_start_;  // [rows + 1]
  Array<int32_t> row_ranks_;
  Array<int64_t> row_entries_;  // [rows]: how many (tile, splat) pairs there can be
  Objects<Row> lists_;
};

}  // namespace GPHM_ISA
}  // namespace gphm

#endif  // GPHM_SPLAT_BINS_H_
