// What the forward and the backward pass of the blend share: sub-tiles, and the front-to-back sweep.
//
// A 16x16 tile is divided into sub-tiles of 4 pixels by kLanes / 4, one pixel a lane. Each has its own list and ends
// by itself. With alpha_i = min(0.99, o_i exp(-sigma_i)) and T_i = prod_{j<i} (1 - alpha_j), a splat below 1/255 is
// skipped, and one that would bring T to 1e-4 or less ends the pixel and is not added.
#ifndef GPHM_SPLAT_TILES_H_
#define GPHM_SPLAT_TILES_H_

#include <limits>

#include "splat_bins.h"
#include "vectors.h"

namespace gphm {
namespace GPHM_ISA {

constexpr int kSubWidth = 4, kSubHeight = kLanes / kSubWidth;
constexpr int kSubColumns = kTile / kSubWidth, kSubRows = kTile / kSubHeight, kSubTiles = kSubColumns * kSubRows;
constexpr float kEnded = std::numeric_limits<float>::infinity();

// Where a sub-tile lies in its image. Lanes beyond the image's edge hold no pixel.
struct SubTile {
  int64_t x, y, width, height;

  SubTile(const BlendInputs& in, int64_t column, int64_t row, int index)
      : x(column * kTile + index % kSubColumns * kSubWidth),
        y(row * kTile + index / kSubColumns * kSubHeight),
        width(in.width),
        height(in.height) {}
  bool outside() const { return x >= width || y >= height; }
  bool has(int lane) const { return x + lane % kSubWidth < width && y + lane / kSubWidth < height; }
  int64_t pixel(int lane) const { return (y + lane / kSubWidth) * width + x + lane % kSubWidth; }
};

struct Pixels {
  Vec x, y;           // centres
  Vec transmittance;  // T before the next splat
  Vec threshold;      // the alpha below which a splat is skipped: 1/255, infinite once the pixel has ended

  explicit Pixels(const SubTile& tile) {
    transmittance = splat(1.f);
    for (int lane = 0; lane < kLanes; ++lane) {
      x[lane] = static_cast<float>(tile.x + lane % kSubWidth) + 0.5f;
      y[lane] = static_cast<float>(tile.y + lane / kSubWidth) + 0.5f;
      threshold[lane] = tile.has(lane) ? kAlphaMin : kEnded;
    }
  }
  bool ended() const { return !any(threshold < splat(kEnded)); }
};

// Bit s is set where the splat's ellipse reaches sub-tile s of the tile at (column, row): `span` and `intervals` of
// splat_bins.h for four rows of sub-tiles at a time.
GPHM_INLINE uint64_t touched(const Footprint& f, int64_t column, int64_t row) {
  const float left = f.x - static_cast<float>(column * kTile), top = f.y - static_cast<float>(row * kTile);
  const Vec4 limit = Vec4{} + f.half_height, rim = Vec4{} + f.rim;
  uint64_t bits = 0;
  for (int i = 0; i < kSubRows; i += 4) {
    Vec4 low = Vec4{0, 1, 2, 3} * static_cast<float>(kSubHeight) + (i * kSubHeight + 0.5f - kSlack - top);
    Vec4 high = low + (kSubHeight - 1 + 2 * kSlack);
    low = low > -limit ? low : -limit;
    high = high < limit ? high : limit;
    Vec4 right = rim < low ? low : rim > high ? high : rim;
    Vec4 left_ = -rim < low ? low : -rim > high ? high : -rim;
    Vec4 first = -f.shear * left_ - root(f.reach - f.bend * left_ * left_) + left;
    Vec4 last = -f.shear * right + root(f.reach - f.bend * right * right) + left;
    first = (first + (0.5f - kSlack)) * (1.f / kSubWidth);
    last = (last + (kSlack - 0.5f)) * (1.f / kSubWidth);
    const Vec4 end = Vec4{} + static_cast<float>(kSubColumns);
    Int4 meets = (low <= high) & (last >= Vec4{}) & (first < end);
    first = first > Vec4{} ? first : Vec4{};
    last = last < end - 1.f ? last : end - 1.f;
    last = last > Vec4{} ? last : Vec4{};  // for the shifts below; such a row does not meet
    first = first < end ? first : Vec4{};
    Int4 from = __builtin_convertvector(first, Int4), to = __builtin_convertvector(last, Int4);
    for (int lane = 0; lane < 4; ++lane) {
      uint32_t columns = ((2u << to[lane]) - (1u << from[lane])) & static_cast<uint32_t>(meets[lane]);
      // A range that ends before it begins would borrow beyond the four columns.
      columns = from[lane] <= to[lane] ? columns : 0u;
      bits |= static_cast<uint64_t>(columns) << ((i + lane) * kSubColumns);
    }
  }
  return bits;
}

// Starts loading what a tile will need soon: lists jump through memory, which no hardware foresees.
GPHM_INLINE void prefetch(const Bins& bins, const int32_t* ranks, int64_t i, int64_t number) {
  constexpr int64_t kAhead = 12;
  if (i + kAhead < number) __builtin_prefetch(&bins.footprint(ranks[i + kAhead]));
}
GPHM_INLINE void prefetch_row(const float* row, int64_t channels) {
  constexpr int64_t kMost = 64, kLine = 16;  // floats: at most four cache lines of a row
  for (int64_t c = 0; c < channels && c < kMost; c += kLine) __builtin_prefetch(row + c);
}

// The indices i < number whose bits include `sub`; `list` has room for one more than it returns.
GPHM_INLINE int64_t select_touching(const uint64_t* bits, int64_t number, int sub, int32_t* list) {
  int64_t selected = 0;
  for (int64_t i = 0; i < number; ++i) {  // no branch: about half the tests would be mispredicted
    list[selected] = static_cast<int32_t>(i);
    selected += bits[i] >> sub & 1;
  }
  return selected;
}

// Visits the listed splats front to back until every pixel has ended. `visit(i, alpha, T, drawn)` gets the place in
// the list, alpha (zero where nothing is drawn), the transmittance in front of the splat, and whether any pixel drew.
template <typename Visit>
GPHM_INLINE void sweep(const Footprint* footprints, const int32_t* ranks, const int32_t* list, int64_t number,
                       Pixels& pixels, Visit visit) {
  Vec transmittance = pixels.transmittance, threshold = pixels.threshold;
  for (int64_t i = 0; i < number; ++i) {
    const Footprint& f = footprints[ranks[list[i]]];
    Vec dx = pixels.x - f.x, dy = pixels.y - f.y;
    Vec exponent = dx * (f.xx * dx + f.xy * dy) + (f.yy * dy * dy + f.log_opacity);
    // Rounding can bring a needle's alpha above its opacity.
    exponent = select(exponent < splat(f.log_opacity), exponent, splat(f.log_opacity));
    Vec alpha = exp2(exponent);
    alpha = select(alpha < splat(kAlphaMax), alpha, splat(kAlphaMax));
    Mask seen = alpha >= threshold;
    Vec next = transmittance - alpha * transmittance;
    Mask drawn = seen & (next > splat(kTransmittanceMin));
    visit(i, keep(drawn, alpha), transmittance, any(drawn));
    transmittance = select(drawn, next, transmittance);
    Mask ending = seen & ~drawn;
    if (__builtin_expect(any(ending), 0)) {
      threshold = select(ending, splat(kEnded), threshold);
      if (!any(threshold < splat(kEnded))) break;
    }
  }
  pixels.transmittance = transmittance, pixels.threshold = threshold;
}

}  // namespace GPHM_ISA
}  // namespace gphm

#endif  // GPHM_SPLAT_TILES_H_
