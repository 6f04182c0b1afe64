// A fully connected network over many points: a block of rows passes through all layers while it stays in cache.
//
// Layer by layer over all points, the time goes into writing and reading activations; here only the input and the
// output meet main memory, and the backward pass computes a block's activations again. The first layer's product
// with the features is shared by the frames, which differ in its bias alone. Gradients of the parameters are summed
// over ranges of blocks whose number depends on the sizes alone, then over the ranges in order: the bits do not
// depend on the number of threads.
#include "cpu_ops.h"
#include "memory.h"
#include "vectors.h"

namespace gphm {
namespace GPHM_ISA {

namespace {

constexpr int kTile = 6;                         // rows of a register tile
constexpr int kPanel = kLanes >= 16 ? 4 : 2;     // its vectors: 24 of 32 registers, or 12 of 16
constexpr int64_t kBlock = 8 * kTile;            // rows that pass through the network together
constexpr int64_t kMaxRanges = 64;
constexpr int64_t kRangeBlocks = 8;              // fewer blocks are not worth another copy of the gradients
constexpr int64_t kRangeFloats = int64_t{1} << 24;  // what the copies may take, unless there are only eight

int64_t padded(int64_t size) { return blocks(size, kLanes) * kLanes; }

// c[m, :] = start + sum_k a[m, k] w[k, :] for kTile rows and V vectors, rectified or gated (c = 0 where gate <= 0).
template <int V>
void multiply_tile(const float* a, int64_t a_stride, const float* w, int64_t depth, const float* start, bool rectify,
                   const float* gate, float* c, int64_t c_stride) {
  Vec sums[kTile][V];
#pragma GCC unroll 8
  for (int m = 0; m < kTile; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[m][v] = start ? load<Vec>(start + v * kLanes) : Vec{};
  }
  for (int64_t k = 0; k < depth; ++k, w += V * kLanes) {
    Vec row[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) row[v] = load<Vec>(w + v * kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < kTile; ++m) {
      const Vec value = splat(a[m * a_stride + k]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[m][v] += value * row[v];
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kTile; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      Vec sum = sums[m][v];
      if (rectify) sum = select(sum < Vec{}, Vec{}, sum);  // keeps NaN
      if (gate) sum = keep(load<Vec>(gate + m * c_stride + v * kLanes) > Vec{}, sum);
      store(c + m * c_stride + v * kLanes, sum);
    }
  }
}

// multiply_tile for all rows, rounded up to tiles, and all columns of a matrix packed by `pack`.
void multiply(const float* a, int64_t a_stride, int64_t rows, const float* w, int64_t depth, int64_t columns,
              const float* start, bool rectify, const float* gate, float* c) {
  const int64_t stride = padded(columns);
  for (int64_t column = 0; column < stride; column += kPanel * kLanes) {
    const int64_t vectors = smaller(kPanel, (stride - column) / kLanes);
    const float* panel = w + column * depth;
    for (int64_t row = 0; row < rows; row += kTile) {
      const float* from = a + row * a_stride;
      const int64_t at = row * stride + column;
      const float* bias = start ? start + column : nullptr;
      const float* open = gate ? gate + at : nullptr;
      switch (vectors) {
        case 1: multiply_tile<1>(from, a_stride, panel, depth, bias, rectify, open, c + at, stride); break;
        case 2: multiply_tile<2>(from, a_stride, panel, depth, bias, rectify, open, c + at, stride); break;
#if GPHM_LANES >= 16
        case 3: multiply_tile<3>(from, a_stride, panel, depth, bias, rectify, open, c + at, stride); break;
        default: multiply_tile<4>(from, a_stride, panel, depth, bias, rectify, open, c + at, stride); break;
#else
        default: break;
#endif
      }
    }
  }
}

// sum[m, :] += sum_r a[r, m] d[r, :] for M rows and V vectors.
template <int M, int V>
void accumulate_tile(const float* a, int64_t a_stride, const float* d, int64_t d_stride, int64_t rows, float* sum) {
  Vec sums[M][V];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[m][v] = load<Vec>(sum + m * d_stride + v * kLanes);
  }
  for (int64_t r = 0; r < rows; ++r, a += a_stride, d += d_stride) {
    Vec row[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) row[v] = load<Vec>(d + v * kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const Vec value = splat(a[m]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[m][v] += value * row[v];
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store(sum + m * d_stride + v * kLanes, sums[m][v]);
  }
}

template <int V>
void accumulate_panel(const float* a, int64_t a_stride, int64_t depth, const float* d, int64_t stride, int64_t rows,
                      float* sum) {
  int64_t k = 0;
  for (; k + kTile <= depth; k += kTile) accumulate_tile<kTile, V>(a + k, a_stride, d, stride, rows, sum + k * stride);
  if (k + 4 <= depth) {
    accumulate_tile<4, V>(a + k, a_stride, d, stride, rows, sum + k * stride);
    k += 4;
  }
  for (; k < depth; ++k) accumulate_tile<1, V>(a + k, a_stride, d, stride, rows, sum + k * stride);
}

// The gradient of a layer's weights and bias, [depth + 1, padded columns], plus a block's share.
void accumulate(const float* a, int64_t a_stride, int64_t depth, const float* d, int64_t columns, int64_t rows,
                float* sum) {
  const int64_t stride = padded(columns);
  for (int64_t column = 0; column < stride; column += kPanel * kLanes) {
    const float* from = d + column;
    float* to = sum + column;
    switch (smaller(kPanel, (stride - column) / kLanes)) {
      case 1: accumulate_panel<1>(a, a_stride, depth, from, stride, rows, to); break;
      case 2: accumulate_panel<2>(a, a_stride, depth, from, stride, rows, to); break;
#if GPHM_LANES >= 16
      case 3: accumulate_panel<3>(a, a_stride, depth, from, stride, rows, to); break;
      default: accumulate_panel<4>(a, a_stride, depth, from, stride, rows, to); break;
#else
      default: break;
#endif
    }
  }
}

// sum[:] += sum_r d[r, :]
void add_rows(const float* d, int64_t stride, int64_t rows, float* sum) {
  for (int64_t column = 0; column < stride; column += kLanes) {
    Vec total = load<Vec>(sum + column);
    for (int64_t r = 0; r < rows; ++r) total += load<Vec>(d + r * stride + column);
    store(sum + column, total);
  }
}

// Rows to a padded block: zeros beyond the columns, and below the rows up to a whole tile.
void read_rows(const float* from, int64_t rows, int64_t columns, float* to) {
  const int64_t stride = padded(columns);
  std::memset(to, 0, static_cast<uint64_t>(blocks(rows, kTile) * kTile * stride) * sizeof(float));
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(to + r * stride, from + r * columns, static_cast<uint64_t>(columns) * sizeof(float));
  }
}

void write_rows(const float* from, int64_t rows, int64_t columns, float* to) {
  const int64_t stride = padded(columns);
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(to + r * columns, from + r * stride, static_cast<uint64_t>(columns) * sizeof(float));
  }
}

// A matrix w[k, j] = from[k * down + j * across] by panels of kPanel vectors, zeros beyond its columns.
void pack(const float* from, int64_t down, int64_t across, int64_t depth, int64_t columns, float* to) {
  const int64_t stride = padded(columns);
  for (int64_t column = 0; column < stride; column += kPanel * kLanes) {
    const int64_t width = smaller(kPanel * kLanes, stride - column);
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t j = column; j < column + width; ++j) *to++ = j < columns ? from[k * down + j * across] : 0.f;
    }
  }
}

// The parameters as the tiles read them, and where everything lies.
class Network {
 public:
  Network(const MlpInputs& in, bool backward, Parallel& parallel)
      : in_(in), layers_(in.layers), flat_(in.layers + 1), sums_(in.layers + 1), weights_(in.layers),
        transposed_(in.layers), biases_(in.layers) {
    int64_t size = 0;
    flat_[0] = sums_[0] = 0;
    for (int64_t l = 0; l < layers_; ++l) {
      const int64_t from = width(l), to = width(l + 1);
      flat_[l + 1] = flat_[l] + (from + 1) * to;
      sums_[l + 1] = sums_[l] + (from + 1) * padded(to);
      weights_[l] = size;
      biases_[l] = weights_[l] + from * padded(to);
      transposed_[l] = biases_[l] + padded(to);
      size = transposed_[l] + (backward ? to * padded(from) : 0);
      widest_ = larger(widest_, larger(padded(from), padded(to)));
    }
    packed_.reserve(size);
    parallel.run(layers_, [&](int64_t l, int) {
      const int64_t from = width(l), to = width(l + 1);
      const float* weights = in_.parameters + flat_[l];
      pack(weights, to, 1, from, to, packed_.data() + weights_[l]);
      pack(weights + from * to, to, 1, 1, to, packed_.data() + biases_[l]);
      if (backward) pack(weights, 1, to, to, from, packed_.data() + transposed_[l]);
    });
  }

  int64_t layers() const { return layers_; }
  int64_t width(int64_t l) const { return in_.sizes[l]; }
  int64_t stride(int64_t l) const { return padded(width(l)); }
  int64_t widest() const { return widest_; }
  int64_t flat(int64_t l) const { return flat_[l]; }
  int64_t sums(int64_t l) const { return sums_[l]; }
  const float* bias(int64_t l) const { return packed_.data() + biases_[l]; }
  // Layer l of the rows in `from`; the first is left unrectified, since the frames' biases are still to come.
  void forward(int64_t l, const float* from, int64_t rows, float* to) const {
    multiply(from, stride(l), rows, packed_.data() + weights_[l], width(l), width(l + 1), bias(l),
             l > 0 && l + 1 < layers_, nullptr, to);
  }
  // d_to times the transposed weights, gated by the activations that layer l was given.
  void backward(int64_t l, const float* d_to, int64_t rows, const float* gate, float* d_from) const {
    multiply(d_to, stride(l + 1), rows, packed_.data() + transposed_[l], width(l + 1), width(l), nullptr, false, gate,
             d_from);
  }

 private:
  const MlpInputs& in_;
  int64_t layers_, widest_ = 0;
  Array<int64_t> flat_, sums_, weights_, transposed_, biases_;
  Array<float> packed_;
};

// One worker's rows on their way: the features, the first layer's shared product, and the values after each layer.
class Block {
 public:
  void reserve(const Network& network, bool backward) {
    const int64_t layers = network.layers(), size = kBlock * network.widest();
    values_.reserve(layers + 1);
    for (int64_t l = 0; l <= layers; ++l) values_[l] = (backward ? l : l % 2) * size;
    const int64_t values = (backward ? layers + 1 : 2) * size;
    memory_.reserve(values + 5 * size);
    features = memory_.data() + values;
    shared = features + size;
    d_shared = shared + size;
    d_to = d_shared + size;
    d_from = d_to + size;
  }
  float* values(int64_t l) { return memory_.data() + values_[l]; }

  // The first layer's product with the features, once for all frames.
  void begin(const Network& network, const float* rows_in, int64_t rows) {
    read_rows(rows_in, rows, network.width(0), features);
    network.forward(0, features, rows, shared);
  }
  // The layers up to `last` for one frame, whose bias of the first layer is `bias`.
  void pass(const Network& network, const float* bias, int64_t rows, int64_t last) {
    const int64_t width = network.width(1), stride = network.stride(1), tall = blocks(rows, kTile) * kTile;
    const bool rectify = network.layers() > 1;
    read_rows(bias, 1, width, d_from);  // the padded bias; d_from is not in use yet
    float* to = values(1);
    for (int64_t r = 0; r < tall; ++r) {
      for (int64_t j = 0; j < stride; j += kLanes) {
        const Vec sum = load<Vec>(shared + r * stride + j) + load<Vec>(d_from + j);
        store(to + r * stride + j, rectify ? select(sum < Vec{}, Vec{}, sum) : sum);
      }
    }
    for (int64_t l = 1; l < last; ++l) network.forward(l, values(l), rows, values(l + 1));
  }

  float *features = nullptr, *shared = nullptr, *d_shared = nullptr, *d_to = nullptr, *d_from = nullptr;

 private:
  Array<int64_t> values_;
  Array<float> memory_;
};

// One block's gradients, added to `sums` (the parameters', padded) and `d_biases` (the frames', padded).
void block_bwd(const MlpInputs& in, const float* d_result, const Network& network, int64_t image, int64_t first,
               int64_t rows, Block& block, float* d_features, float* sums, float* d_biases) {
  const int64_t layers = network.layers(), width = network.width(1), stride = network.stride(1);
  const int64_t last = network.width(layers), tall = blocks(rows, kTile) * kTile;
  block.begin(network, in.features + (image * in.rows + first) * network.width(0), rows);
  std::memset(block.d_shared, 0, static_cast<uint64_t>(tall * stride) * sizeof(float));
  for (int64_t f = 0; f < in.frames; ++f) {
    const int64_t frame = image * in.frames + f;
    if (layers > 1) block.pass(network, in.first_bias + frame * width, rows, layers - 1);
    float *d_to = block.d_to, *d_from = block.d_from;
    read_rows(d_result + (frame * in.rows + first) * last, rows, last, d_to);
    for (int64_t l = layers - 1; l > 0; --l) {
      float* sum = sums + network.sums(l);
      accumulate(block.values(l), network.stride(l), network.width(l), d_to, network.width(l + 1), rows, sum);
      add_rows(d_to, network.stride(l + 1), rows, sum + network.width(l) * network.stride(l + 1));
      network.backward(l, d_to, rows, block.values(l), d_from);
      float* other = d_to;
      d_to = d_from, d_from = other;
    }
    add_rows(d_to, stride, rows, d_biases + frame * stride);
    for (int64_t j = 0; j < tall * stride; j += kLanes) {
      store(block.d_shared + j, load<Vec>(block.d_shared + j) + load<Vec>(d_to + j));
    }
  }
  accumulate(block.features, network.stride(0), network.width(0), block.d_shared, width, rows, sums);
  add_rows(block.d_shared, stride, rows, sums + network.width(0) * stride);
  network.backward(0, block.d_shared, rows, nullptr, block.d_from);
  write_rows(block.d_from, rows, network.width(0), d_features + (image * in.rows + first) * network.width(0));
}

}  // namespace

void mlp_fwd(const MlpInputs& in, float* result, Parallel& parallel) {
  const int64_t per_image = blocks(in.rows, kBlock), layers = in.layers, last = in.sizes[layers];
  const int64_t total = in.images * per_image;
  prefer_huge_pages(result, static_cast<uint64_t>(in.images * in.frames * in.rows * last) * sizeof(float));
  const Network network(in, false, parallel);
  Objects<Block> workers(parallel.workers());
  for (int worker = 0; worker < parallel.workers(); ++worker) workers[worker].reserve(network, false);
  const int64_t tasks = blocks(total, kRangeBlocks);
  parallel.run(tasks, [&](int64_t task, int worker) {
    Block& block = workers[worker];
    for (int64_t index = task * kRangeBlocks; index < smaller(total, (task + 1) * kRangeBlocks); ++index) {
      const int64_t image = index / per_image, first = index % per_image * kBlock;
      const int64_t rows = smaller(kBlock, in.rows - first);
      block.begin(network, in.features + (image * in.rows + first) * network.width(0), rows);
      for (int64_t f = 0; f < in.frames; ++f) {
        const int64_t frame = image * in.frames + f;
        block.pass(network, in.first_bias + frame * network.width(1), rows, layers);
        write_rows(block.values(layers), rows, last, result + (frame * in.rows + first) * last);
      }
    }
  });
}

void mlp_bwd(const MlpInputs& in, const float* d_result, const MlpGradients& out, Parallel& parallel) {
  const int64_t per_image = blocks(in.rows, kBlock), total = in.images * per_image, layers = in.layers;
  const Network network(in, true, parallel);
  const int64_t frames = in.images * in.frames, stride = network.stride(1), width = network.width(1);
  const int64_t size = network.sums(layers) + frames * stride;
  prefer_huge_pages(out.features, static_cast<uint64_t>(in.images * in.rows * network.width(0)) * sizeof(float));
  // Of the sizes alone, never of the threads.
  const int64_t ranges = smaller(larger(8, smaller(kMaxRanges, kRangeFloats / size)), blocks(total, kRangeBlocks));
  Array<float> sums(ranges * size);
  Objects<Block> workers(parallel.workers());
  for (int worker = 0; worker < parallel.workers(); ++worker) workers[worker].reserve(network, true);
  parallel.run(ranges, [&](int64_t range, int worker) {
    float* sum = sums.data() + range * size;
    std::memset(sum, 0, static_cast<uint64_t>(size) * sizeof(float));
    for (int64_t index = range * total / ranges; index < (range + 1) * total / ranges; ++index) {
      const int64_t image = index / per_image, first = index % per_image * kBlock;
      block_bwd(in, d_result, network, image, first, smaller(kBlock, in.rows - first), workers[worker], out.features,
                sum, sum + network.sums(layers));
    }
  });
  // Rows of all layers' [inputs + 1, outputs], then those of the frames' biases; ranges are added in order.
  const auto reduce = [&](int64_t first, int64_t last, int64_t columns, const float* from, float* to) {
    for (int64_t row = first; row < last; ++row) {
      float* sum = to + row * columns;
      std::memset(sum, 0, static_cast<uint64_t>(columns) * sizeof(float));
      for (int64_t range = 0; range < ranges; ++range) {
        const float* value = from + range * size + row * padded(columns);
        for (int64_t j = 0; j < columns; ++j) sum[j] += value[j];
      }
    }
  };
  constexpr int64_t kParts = 8;
  parallel.run((layers + 1) * kParts, [&](int64_t task, int) {
    const int64_t l = task / kParts, part = task % kParts;
    const int64_t rows = l < layers ? network.width(l) + 1 : frames;
    reduce(rows * part / kParts, rows * (part + 1) / kParts, l < layers ? network.width(l + 1) : width,
           sums.data() + network.sums(l), l < layers ? out.parameters + network.flat(l) : out.first_bias);
  });
}

}  // namespace GPHM_ISA
}  // namespace gphm
