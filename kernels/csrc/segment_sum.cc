// sums[s] = sum of values[r] over the rows r with ids[r] = s: the transpose of gathering rows by index.
//
// Rows are added in their own order, so the bits do not depend on the number of threads.
#include "cpu_ops.h"
#include "memory.h"

namespace gphm {
namespace GPHM_ISA {

namespace {
constexpr int64_t kChunk = 1024;
}  // namespace

void segment_sum_rows(const SegmentSumInputs& in, float* sums, Parallel& parallel) {
  Array<int64_t> start;
  Array<int32_t> sorted(in.rows);
  for (int64_t index = 0; index < in.batch; ++index) {
    const int32_t* ids = in.ids + index * in.rows;
    const float* values = in.values + index * in.rows * in.channels;
    float* out = sums + index * in.segments * in.channels;
    start.zero(in.segments + 2);
    for (int64_t row = 0; row < in.rows; ++row) {
      if (ids[row] >= 0 && ids[row] < in.segments) ++start[ids[row] + 2];
    }
    for (int64_t i = 0; i < in.segments; ++i) start[i + 2] += start[i + 1];
    for (int64_t row = 0; row < in.rows; ++row) {
      if (ids[row] >= 0 && ids[row] < in.segments) sorted[start[ids[row] + 1]++] = static_cast<int32_t>(row);
    }
    parallel.run(blocks(in.segments, kChunk), [&](int64_t task, int) {
      for (int64_t i = task * kChunk; i < smaller(in.segments, (task + 1) * kChunk); ++i) {
        float* sum = out + i * in.channels;
        for (int64_t c = 0; c < in.channels; ++c) sum[c] = 0.f;
        for (int64_t j = start[i]; j < start[i + 1]; ++j) {
          const float* value = values + sorted[j] * in.channels;
          for (int64_t c = 0; c < in.channels; ++c) sum[c] += value[c];
        }
      }
    });
  }
}

}  // namespace GPHM_ISA
}  // namespace gphm
