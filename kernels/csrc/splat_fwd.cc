// Forward blend: image = sum_i alpha_i T_i features_i + T_end background, alpha = 1 - T_end.
#include "splat_tiles.h"

namespace gphm {
namespace GPHM_ISA {

namespace {

constexpr int64_t kChunk = 512;  // splats of a tile looked at together: their footprints stay in the second-level cache
constexpr int kBlock = 64;       // weights gathered before they are multiplied with the features
constexpr int kRegisters = kLanes == 16 ? 16 : 8;  // channel accumulators that fit the register file beside the rest

struct Worker {
  Array<float> colour;  // [sub-tiles, channels, lanes]
  Array<int32_t> list;
};

struct Weights {
  alignas(64) float weight[kBlock * kLanes];
  int32_t splat[kBlock];
  int number = 0;
};

// colour[c] += sum_i weight_i features[splat_i, c] for kWidth channels held in registers.
template <int kWidth>
GPHM_INLINE void accumulate(const Weights& weights, const float* features, int64_t channels, float* colour) {
  Vec sum[kWidth];
  for (int c = 0; c < kWidth; ++c) sum[c] = load<Vec>(colour + c * kLanes);
  for (int i = 0; i < weights.number; ++i) {
    Vec weight = load<Vec>(weights.weight + i * kLanes);
    const float* feature = features + weights.splat[i] * channels;
#pragma GCC unroll 16
    for (int c = 0; c < kWidth; ++c) sum[c] += weight * feature[c];
  }
  for (int c = 0; c < kWidth; ++c) store(colour + c * kLanes, sum[c]);
}

void flush(Weights& weights, const float* features, int64_t channels, float* colour) {
  int64_t c = 0;
  for (; c + kRegisters <= channels; c += kRegisters) {
    accumulate<kRegisters>(weights, features + c, channels, colour + c * kLanes);
  }
  if (kRegisters > 8 && c + 8 <= channels) accumulate<8>(weights, features + c, channels, colour + c * kLanes), c += 8;
  if (c + 4 <= channels) accumulate<4>(weights, features + c, channels, colour + c * kLanes), c += 4;
  switch (channels - c) {
    case 3: accumulate<3>(weights, features + c, channels, colour + c * kLanes); break;
    case 2: accumulate<2>(weights, features + c, channels, colour + c * kLanes); break;
    case 1: accumulate<1>(weights, features + c, channels, colour + c * kLanes); break;
  }
  weights.number = 0;
}

// Adds the background and writes a sub-tile's pixels: [channels, lanes] -> [lanes, channels].
void write(const SubTile& tile, const Pixels& pixels, float* colour, const float* background, int64_t channels,
           float* image, float* alpha) {
  for (int64_t c = 0; c < channels; ++c) {
    store(colour + c * kLanes, load<Vec>(colour + c * kLanes) + pixels.transmittance * background[c]);
  }
  for (int lane = 0; lane < kLanes; lane += 4) {
    float* out[4];
    alignas(16) float unused[4];
    for (int i = 0; i < 4; ++i) out[i] = tile.has(lane + i) ? image + tile.pixel(lane + i) * channels : nullptr;
    int64_t c = 0;
    for (; c + 4 <= channels; c += 4) {
      Vec4 rows[4];
      for (int i = 0; i < 4; ++i) rows[i] = load<Vec4>(colour + (c + i) * kLanes + lane);
      transpose4(rows);
      for (int i = 0; i < 4; ++i) store(out[i] ? out[i] + c : unused, rows[i]);
    }
    for (; c < channels; ++c) {
      for (int i = 0; i < 4; ++i) {
        if (out[i]) out[i][c] = colour[c * kLanes + lane + i];
      }
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (tile.has(lane)) alpha[tile.pixel(lane)] = 1.f - pixels.transmittance[lane];
  }
}

void write_background(const SubTile& tile, const float* background, int64_t channels, float* image, float* alpha) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!tile.has(lane)) continue;
    std::memcpy(image + tile.pixel(lane) * channels, background, static_cast<uint64_t>(channels) * sizeof(float));
    alpha[tile.pixel(lane)] = 0.f;
  }
}

void blend_tile(const BlendInputs& in, int64_t image_index, const Bins& bins, const Bins::List& tile_list,
                int64_t column, int64_t row, float* image, float* alpha, Worker& worker) {
  const int32_t* ranks = tile_list.ranks;
  const int64_t number = tile_list.number;
  const float* features = in.features + image_index * in.splats * in.channels;
  const float* background = in.background + image_index * in.channels;
  const int64_t plane = in.channels * kLanes;
  worker.list.reserve(kChunk + 1);
  worker.colour.reserve(kSubTiles * plane);
  alignas(64) unsigned char storage[kSubTiles * sizeof(Pixels)];
  Pixels* pixels = reinterpret_cast<Pixels*>(storage);
  bool begun[kSubTiles] = {};
  uint64_t open = 0;
  for (int sub = 0; sub < kSubTiles; ++sub) {
    SubTile tile(in, column, row, sub);
    new (&pixels[sub]) Pixels(tile);
    if (!tile.outside()) open |= uint64_t{1} << sub;
  }
  Weights weights;
  for (int64_t first = 0; first < number && open; first += kChunk) {
    const int32_t* chunk = ranks + first;
    const int64_t size = smaller(kChunk, number - first);
    for (int64_t i = 0; i < size; ++i) {
      prefetch(bins, ranks, first + i, number);
      const Footprint& f = bins.footprint(chunk[i]);
      prefetch_row(features + f.splat * in.channels, in.channels);
    }
    for (int sub = 0; sub < kSubTiles; ++sub) {
      if (!(open >> sub & 1)) continue;
      int32_t* list = worker.list.data();
      int64_t listed = select_touching(tile_list.bits + first, size, sub, list);
      if (!listed) continue;
      float* colour = worker.colour.data() + sub * plane;
      if (!begun[sub]) std::memset(colour, 0, static_cast<uint64_t>(plane) * sizeof(float));
      begun[sub] = true;
      sweep(bins.footprints(), chunk, list, listed, pixels[sub],
            [&](int64_t i, Vec kept, Vec transmittance, bool drawn) __attribute__((always_inline)) {
              store(weights.weight + weights.number * kLanes, kept * transmittance);
              weights.splat[weights.number] = bins.footprint(chunk[list[i]]).splat;
              weights.number += drawn;
              if (weights.number == kBlock) flush(weights, features, in.channels, colour);
            });
      flush(weights, features, in.channels, colour);
      if (pixels[sub].ended()) open &= ~(uint64_t{1} << sub);
    }
  }
  for (int sub = 0; sub < kSubTiles; ++sub) {
    SubTile tile(in, column, row, sub);
    if (tile.outside()) continue;
    if (begun[sub]) {
      write(tile, pixels[sub], worker.colour.data() + sub * plane, background, in.channels, image, alpha);
    } else {
      write_background(tile, background, in.channels, image, alpha);
    }
  }
}

// Has the system bring the pages of a result, each by one thread: two threads that meet in a fresh huge page would both
// wait for it to be zeroed.
void touch(float* result, int64_t size, Parallel& parallel) {
  constexpr int64_t kPage = (2 << 20) / sizeof(float);
  prefer_huge_pages(result, static_cast<uint64_t>(size) * sizeof(float));
  parallel.run(blocks(size, kPage), [&](int64_t page, int) { result[page * kPage] = 0.f; });
}

}  // namespace

void blend_fwd(const BlendInputs& in, float* image, float* alpha, Parallel& parallel) {
  const int64_t pixels = in.width * in.height;
  touch(image, in.batch * pixels * in.channels, parallel);
  Objects<Worker> workers(parallel.workers());
  for (int64_t index = 0; index < in.batch; ++index) {
    Bins bins(in, index, parallel);
    Bins::Group group{0, 0};
    for (int64_t first = 0; first < bins.rows(); first = group.last) {
      group = bins.group(first);
      bins.fill(group, parallel);
      parallel.run((group.last - group.first) * bins.columns(), [&](int64_t task, int worker) {
        int64_t row = group.first + task / bins.columns(), column = task % bins.columns();
        blend_tile(in, index, bins, bins.list(group, row, column), column, row, image + index * pixels * in.channels,
                   alpha + index * pixels, workers[worker]);
      });
    }
  }
}

}  // namespace GPHM_ISA
}  // namespace gphm
