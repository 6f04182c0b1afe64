// Backward blend. With G = d_image, gA = d_alpha, w_i = alpha_i T_i and g_i = G . features_i, per pixel:
//
//   d_features_i = w_i G
//   d_alpha_i = T_i g_i - (sum_{j>i} w_j g_j + T_end (G . background - gA)) / (1 - alpha_i)
//
// and d log alpha_i = alpha_i d_alpha_i, zero where alpha is clamped, leads to the geometry through its moments.
// Every (tile, splat) has a record of its own; records are summed by splat in tile order, so the gradients have the
// same bits for any number of threads.
#include "splat_tiles.h"

namespace gphm {
namespace GPHM_ISA {

namespace {

constexpr int kBlock = 8;     // splats whose products with the pixels' cotangents share their loads
constexpr int kMoments = 8;   // sums of d log alpha times 1, dx, dy, dx^2, dx dy, dy^2; padded
constexpr int64_t kRecordFloats = 8 << 20;  // records made before they are summed (or those of one tile)
constexpr int64_t kChunk = 2048;

struct Worker {
  Array<int32_t> list, place;  // `place` [drawn]: where a drawn splat stands in the tile's list
  Array<float> alpha, transmittance;  // [drawn, lanes]
  Array<float> by_channel, by_pixel;  // the cotangents, [channels, lanes] and [lanes, padded channels]
};

struct Tile {
  const BlendInputs& in;
  const Bins& bins;
  Bins::List list;
  int64_t column, row;
  const float *features, *background, *d_image, *d_alpha;  // of this image
  float* records;       // [number, record]
  float* d_background;  // [channels], this tile's share
  int64_t padded, record;
};

// Reads a sub-tile's cotangents both ways; lanes without a pixel read zero.
Vec read_cotangents(const Tile& t, const SubTile& at, Worker& worker) {
  const int64_t channels = t.in.channels;
  float *by_pixel = worker.by_pixel.data(), *by_channel = worker.by_channel.data();
  Vec d_alpha{};
  for (int lane = 0; lane < kLanes; ++lane) {
    float* to = by_pixel + lane * t.padded;
    if (at.has(lane)) {
      std::memcpy(to, t.d_image + at.pixel(lane) * channels, static_cast<uint64_t>(channels) * sizeof(float));
      for (int64_t c = channels; c < t.padded; ++c) to[c] = 0.f;
      d_alpha[lane] = t.d_alpha[at.pixel(lane)];
    } else {
      std::memset(to, 0, static_cast<uint64_t>(t.padded) * sizeof(float));
    }
  }
  for (int64_t c = 0; c < t.padded; c += 4) {
    for (int lane = 0; lane < kLanes; lane += 4) {
      Vec4 rows[4];
      for (int i = 0; i < 4; ++i) rows[i] = load<Vec4>(by_pixel + (lane + i) * t.padded + c);
      transpose4(rows);
      for (int i = 0; i < 4; ++i) store(by_channel + (c + i) * kLanes + lane, rows[i]);
    }
  }
  return d_alpha;
}

// records[place_k, channel...] += sum_lanes weight[k][lane] G[lane, channel...] for one vector of channels.
template <typename V>
GPHM_INLINE void add_features(const float* by_pixel, int64_t padded, const float (&weight)[kBlock][kLanes],
                              float* const (&out)[kBlock], int number) {
  V sum[kBlock] = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    V cotangent = load<V>(by_pixel + lane * padded);
#pragma GCC unroll 8
    for (int k = 0; k < kBlock; ++k) sum[k] += cotangent * weight[k][lane];
  }
  for (int k = 0; k < number; ++k) store(out[k], load<V>(out[k]) + sum[k]);
}

// Moments about the sub-tile's middle are one small product; they are then moved to each splat's mean.
struct Monomials {
  alignas(32) float value[kLanes][8];
  Monomials() {
    for (int lane = 0; lane < kLanes; ++lane) {
      float u = static_cast<float>(lane % kSubWidth) - (kSubWidth - 1) * 0.5f;
      float v = static_cast<float>(lane / kSubWidth) - (kSubHeight - 1) * 0.5f;
      const float row[8] = {1.f, u, v, u * u, u * v, v * v, 0.f, 0.f};
      std::memcpy(value[lane], row, sizeof row);
    }
  }
};

GPHM_INLINE void add_moments(const Tile& t, const SubTile& at, const Monomials& monomials, const int32_t* place,
                             const float (&d_log)[kBlock][kLanes], int number) {
  Vec8 sum[kBlock] = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    Vec8 row = load<Vec8>(monomials.value[lane]);
#pragma GCC unroll 8
    for (int k = 0; k < kBlock; ++k) sum[k] += row * d_log[k][lane];
  }
  for (int k = 0; k < number; ++k) {
    const Footprint& f = t.bins.footprint(t.list.ranks[place[k]]);
    float p = static_cast<float>(at.x) + kSubWidth * 0.5f - f.x, q = static_cast<float>(at.y) + kSubHeight * 0.5f - f.y;
    float s = sum[k][0], su = sum[k][1], sv = sum[k][2];
    Vec8 moved{s,
               su + p * s,
               sv + q * s,
               sum[k][3] + 2 * p * su + p * p * s,
               sum[k][4] + p * sv + q * su + p * q * s,
               sum[k][5] + 2 * q * sv + q * q * s,
               0.f,
               0.f};
    float* out = t.records + place[k] * t.record;
    store(out, load<Vec8>(out) + moved);
  }
}

// Splats [first, first + number) of the drawn ones, back to front; `behind` is the bracket in d_alpha above.
GPHM_INLINE void differentiate_block(const Tile& t, const SubTile& at, const Monomials& monomials, Worker& worker,
                                     int64_t first, int number, Vec& behind) {
  const int32_t* place = worker.place.data() + first;
  const float* feature[kBlock];
  float* out[kBlock];
  for (int k = 0; k < kBlock; ++k) {  // a short block repeats its last splat, with weight zero
    int64_t index = place[k < number ? k : number - 1];
    feature[k] = t.features + t.bins.footprint(t.list.ranks[index]).splat * t.in.channels;
    out[k] = t.records + index * t.record + kMoments;
  }
  Vec g[kBlock] = {};
  for (int64_t c = 0; c < t.in.channels; ++c) {
    Vec cotangent = load<Vec>(worker.by_channel.data() + c * kLanes);
#pragma GCC unroll 8
    for (int k = 0; k < kBlock; ++k) g[k] += cotangent * feature[k][c];
  }
  alignas(64) float weight[kBlock][kLanes], d_log[kBlock][kLanes];
  for (int k = kBlock - 1; k >= 0; --k) {
    if (k >= number) {
      store(weight[k], Vec{}), store(d_log[k], Vec{});
      continue;
    }
    Vec alpha = load<Vec>(worker.alpha.data() + (first + k) * kLanes);
    Vec transmittance = load<Vec>(worker.transmittance.data() + (first + k) * kLanes);
    Vec w = alpha * transmittance;
    Vec d_alpha = transmittance * g[k] - behind * reciprocal(1.f - alpha);
    behind += w * g[k];
    store(weight[k], w);
    store(d_log[k], keep((alpha > Vec{}) & (alpha < splat(kAlphaMax)), d_alpha * alpha));
  }
  int64_t c = 0;
  for (; c + kLanes <= t.padded; c += kLanes) {
    float* const at_channel[kBlock] = {out[0] + c, out[1] + c, out[2] + c, out[3] + c,
                                       out[4] + c, out[5] + c, out[6] + c, out[7] + c};
    add_features<Vec>(worker.by_pixel.data() + c, t.padded, weight, at_channel, number);
  }
  for (; c < t.padded; c += 4) {
    float* const at_channel[kBlock] = {out[0] + c, out[1] + c, out[2] + c, out[3] + c,
                                       out[4] + c, out[5] + c, out[6] + c, out[7] + c};
    add_features<Vec4>(worker.by_pixel.data() + c, t.padded, weight, at_channel, number);
  }
  add_moments(t, at, monomials, place, d_log, number);
}

// Sweeps forward again, keeping alpha and T of what is drawn. A pixel draws at most about 2,400 splats of alpha 1/255
// before it ends, so this stays small however many splats a tile lists.
int64_t draw(const Tile& t, int64_t listed, Pixels& pixels, Worker& worker) {
  int64_t drawn = 0;
  const int32_t* list = worker.list.data();
  for (int64_t first = 0; first < listed && !pixels.ended(); first += kChunk) {
    const int64_t size = smaller(kChunk, listed - first);
    worker.place.reserve(drawn + size + 1, drawn);
    worker.alpha.reserve((drawn + size + 1) * kLanes, drawn * kLanes);
    worker.transmittance.reserve((drawn + size + 1) * kLanes, drawn * kLanes);
    int32_t* place = worker.place.data();
    float *alpha = worker.alpha.data(), *transmittance = worker.transmittance.data();
    sweep(t.bins.footprints(), t.list.ranks, list + first, size, pixels,
          [&](int64_t i, Vec kept, Vec before, bool any_drawn) __attribute__((always_inline)) {
            store(alpha + drawn * kLanes, kept);
            store(transmittance + drawn * kLanes, before);
            place[drawn] = list[first + i];
            drawn += any_drawn;
          });
  }
  return drawn;
}

void differentiate_tile(const Tile& t, const Monomials& monomials, Worker& worker) {
  const int64_t channels = t.in.channels;
  worker.list.reserve(t.list.number + 1);
  worker.by_channel.reserve(t.padded * kLanes);
  worker.by_pixel.reserve(t.padded * kLanes);
  for (int64_t i = 0; i < t.list.number; ++i) {
    prefetch(t.bins, t.list.ranks, i, t.list.number);
    const Footprint& f = t.bins.footprint(t.list.ranks[i]);
    prefetch_row(t.features + f.splat * channels, channels);
  }
  set_zero(t.records, t.list.number * t.record);
  std::memset(t.d_background, 0, static_cast<uint64_t>(channels) * sizeof(float));
  for (int sub = 0; sub < kSubTiles; ++sub) {
    SubTile at(t.in, t.column, t.row, sub);
    if (at.outside()) continue;
    Pixels pixels(at);
    int64_t listed = select_touching(t.list.bits, t.list.number, sub, worker.list.data());
    int64_t drawn = draw(t, listed, pixels, worker);
    if (drawn) {
      Vec d_alpha = read_cotangents(t, at, worker);
      Vec behind{};
      for (int64_t c = 0; c < channels; ++c) {
        behind += load<Vec>(worker.by_channel.data() + c * kLanes) * t.background[c];
      }
      behind = pixels.transmittance * (behind - d_alpha);
      for (int64_t end = drawn; end > 0; end -= kBlock) {
        int64_t first = larger(0, end - kBlock);
        differentiate_block(t, at, monomials, worker, first, static_cast<int>(end - first), behind);
      }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      if (!at.has(lane)) continue;
      const float* cotangent = t.d_image + at.pixel(lane) * channels;
      float remaining = pixels.transmittance[lane];
      for (int64_t c = 0; c < channels; ++c) t.d_background[c] += remaining * cotangent[c];
    }
  }
}

// The tiles whose records are made and summed together, in row-major order.
struct Batch {
  Array<int64_t> start;  // [tiles + 1]: a tile's first record
  int64_t first, last;   // tiles within the group of rows, last exclusive
};

class ImageGradient {
 public:
  ImageGradient(const BlendInputs& in, const BlendCotangents& d, const BlendGradients& out, int64_t index, Bins& bins)
      : in_(in), d_(d), out_(out), index_(index), base_(index * in.splats), bins_(bins) {
    padded_ = blocks(in.channels, 4) * 4;
    record_ = kMoments + padded_;
    moments_.zero(in.splats * kMoments);
    d_background_.reserve(bins.rows() * bins.columns() * in.channels);
  }

  void run(Objects<Worker>& workers, Parallel& parallel) {
    clear(parallel);
    Bins::Group group{0, 0};
    for (int64_t row = 0; row < bins_.rows(); row = group.last) {
      group = bins_.group(row);
      bins_.fill(group, parallel);
      const int64_t tiles = (group.last - group.first) * bins_.columns();
      Batch batch;
      for (batch.first = 0; batch.first < tiles; batch.first = batch.last) {
        plan(group, tiles, batch);
        differentiate(group, batch, workers, parallel);
        sum(group, batch, parallel);
      }
    }
    finish(parallel);
  }

 private:
  // Splats that are not drawn keep this.
  void clear(Parallel& parallel) {
    parallel.run(blocks(in_.splats, kChunk), [&](int64_t task, int) {
      const int64_t first = base_ + task * kChunk, number = smaller(kChunk, in_.splats - task * kChunk);
      auto zero = [=](float* gradient, int64_t columns) {
        std::memset(gradient + first * columns, 0, static_cast<uint64_t>(number * columns) * sizeof(float));
      };
      zero(out_.means, 2), zero(out_.conics, 3), zero(out_.opacities, 1), zero(out_.features, in_.channels);
    });
  }
  float* features() { return out_.features + base_ * in_.channels; }

  // The list of a tile of a group.
  Bins::List list(const Bins::Group& group, int64_t tile) const {
    return bins_.list(group, group.first + tile / bins_.columns(), tile % bins_.columns());
  }

  void plan(const Bins::Group& group, int64_t tiles, Batch& batch) {
    batch.start.zero(tiles + 1);
    batch.last = batch.first;
    for (int64_t total = 0; batch.last < tiles; ++batch.last) {
      const int64_t number = list(group, batch.last).number;
      if (batch.last > batch.first && (total + number) * record_ > kRecordFloats) break;
      total += number;
      batch.start[batch.last - batch.first + 1] = total;
    }
    records_.reserve(batch.start[batch.last - batch.first] * record_);
  }

  void differentiate(const Bins::Group& group, const Batch& batch, Objects<Worker>& workers, Parallel& parallel) {
    const int64_t pixels = in_.width * in_.height;
    const Monomials monomials;
    parallel.run(batch.last - batch.first, [&](int64_t task, int worker) {
      const int64_t tile = batch.first + task;
      const int64_t row = group.first + tile / bins_.columns(), column = tile % bins_.columns();
      differentiate_tile(Tile{in_, bins_, list(group, tile), column, row, in_.features + base_ * in_.channels,
                              in_.background + index_ * in_.channels, d_.image + index_ * pixels * in_.channels,
                              d_.alpha + index_ * pixels, records_.data() + batch.start[task] * record_,
                              d_background_.data() + (row * bins_.columns() + column) * in_.channels, padded_, record_},
                         monomials, workers[worker]);
    });
  }

  // Adds the batch's records to their splats, in tile order.
  void sum(const Bins::Group& group, const Batch& batch, Parallel& parallel) {
    const int64_t tiles = batch.last - batch.first;
    start_.zero(in_.splats + 2);
    sorted_.reserve(batch.start[tiles]);
    for (int64_t task = 0; task < tiles; ++task) {
      const Bins::List tile = list(group, batch.first + task);
      for (int64_t i = 0; i < tile.number; ++i) ++start_[tile.ranks[i] + 2];
    }
    for (int64_t i = 0; i < in_.splats; ++i) start_[i + 2] += start_[i + 1];
    for (int64_t task = 0, at = 0; task < tiles; ++task) {
      const Bins::List tile = list(group, batch.first + task);
      for (int64_t i = 0; i < tile.number; ++i) sorted_[start_[tile.ranks[i] + 1]++] = static_cast<int32_t>(at++);
    }
    parallel.run(blocks(in_.splats, kChunk), [&](int64_t task, int) {
      for (int64_t i = task * kChunk; i < smaller(in_.splats, (task + 1) * kChunk); ++i) {
        float *moments = moments_.data() + i * kMoments, *d_features = features() + bins_.footprint(i).splat * in_.channels;
        for (int64_t j = start_[i]; j < start_[i + 1]; ++j) {
          const float* record = records_.data() + sorted_[j] * record_;
          for (int m = 0; m < kMoments; ++m) moments[m] += record[m];
          for (int64_t c = 0; c < in_.channels; ++c) d_features[c] += record[kMoments + c];
        }
      }
    });
  }

  void finish(Parallel& parallel) {
    parallel.run(blocks(in_.splats, kChunk), [&](int64_t task, int) {
      for (int64_t i = task * kChunk; i < smaller(in_.splats, (task + 1) * kChunk); ++i) {
        if (!bins_.drawn(i)) continue;
        const int64_t at = base_ + bins_.footprint(i).splat;
        const float* m = moments_.data() + i * kMoments;
        const float a = in_.conics[3 * at], b = in_.conics[3 * at + 1], c = in_.conics[3 * at + 2];
        out_.means[2 * at] = a * m[1] + b * m[2];
        out_.means[2 * at + 1] = b * m[1] + c * m[2];
        out_.conics[3 * at] = -0.5f * m[3];
        out_.conics[3 * at + 1] = -m[4];
        out_.conics[3 * at + 2] = -0.5f * m[5];
        out_.opacities[at] = m[0] / in_.opacities[at];
      }
    });
    float* d_background = out_.background + index_ * in_.channels;
    for (int64_t c = 0; c < in_.channels; ++c) d_background[c] = 0.f;
    for (int64_t tile = 0; tile < bins_.rows() * bins_.columns(); ++tile) {
      for (int64_t c = 0; c < in_.channels; ++c) d_background[c] += d_background_[tile * in_.channels + c];
    }
  }

  const BlendInputs& in_;
  const BlendCotangents& d_;
  const BlendGradients& out_;
  int64_t index_, base_, padded_, record_;
  Bins& bins_;
  Array<float> records_, moments_, d_background_;
  Array<int64_t> start_;
  Array<int32_t> sorted_;
};

}  // namespace

void blend_bwd(const BlendInputs& in, const BlendCotangents& d, const BlendGradients& out, Parallel& parallel) {
  Objects<Worker> workers(parallel.workers());
  for (int64_t index = 0; index < in.batch; ++index) {
    Bins bins(in, index, parallel);
    ImageGradient(in, d, out, index, bins).run(workers, parallel);
  }
}

}  // namespace GPHM_ISA
}  // namespace gphm
