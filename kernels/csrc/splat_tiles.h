// What the forward and the backward pass of the blend share: sub-tiles, and the front-to-back sweep.
//
// Each sub-tile has its own list and ends by itself. With alpha_i = min(0.99, o_i exp(-sigma_i)) and
// T_i = prod_{j<i} (1 - alpha_j), a splat below 1/255 is skipped, and one that would bring T to 1e-4 or less ends the
// pixel and is not added.
#ifndef GPHM_SPLAT_TILES_H_
#define GPHM_SPLAT_TILES_H_

#include <limits>

#include "splat_bins.h"
#include "vectors.h"

namespace gphm {
namespace GPHM_ISA {

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
GPHM_INLINE int64_t select_touching(const SubBits* bits, int64_t number, int sub, int32_t* list) {
  int64_t selected = 0, i = 0;
#if GPHM_LANES == 16 && defined(__AVX512BW__)
  const __m256i bit = _mm256_set1_epi16(static_cast<int16_t>(1 << sub));
  __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (; i + 16 <= number; i += 16) {
    const __mmask16 touching = _mm256_test_epi16_mask(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits + i)), bit);
    _mm512_mask_storeu_epi32(list + selected, static_cast<__mmask16>((1u << __builtin_popcount(touching)) - 1),
                             _mm512_maskz_compress_epi32(touching, index));
    selected += __builtin_popcount(touching);
    index = _mm512_add_epi32(index, _mm512_set1_epi32(16));
  }
#endif
  for (; i < number; ++i) {  // no branch: about half the tests would be mispredicted
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
