// sums[s] = sum of values[r] over the rows r with ids[r] = s: the transpose of gathering rows by index.
//
// Each task owns a range of segments and reads all ids; rows are added in their own order, so the bits do not
// depend on the number of threads.
#include "cpu_ops.h"
#include "memory.h"

namespace gphm {
namespace GPHM_ISA {

namespace {

constexpr int64_t kMinSegments = 64;  // fewer are not worth another reading of the ids

void sum_range(const SegmentSumInputs& in, const float* values, const int32_t* ids, int64_t first, int64_t last,
               float* sums) {
  const int64_t channels = in.channels;
  std::memset(sums + first * channels, 0, static_cast<uint64_t>((last - first) * channels) * sizeof(float));
  for (int64_t row = 0; row < in.rows; ++row) {
    const int64_t id = ids[row];
    if (id < first || id >= last) continue;
    float* sum = sums + id * channels;
    const float* value = values + row * channels;
    for (int64_t c = 0; c < channels; ++c) sum[c] += value[c];
  }
}

}  // namespace

void segment_sum_rows(const SegmentSumInputs& in, float* sums, Parallel& parallel) {
  prefer_huge_pages(sums, static_cast<uint64_t>(in.batch * in.segments * in.channels) * sizeof(float));
  const int64_t parts = larger(1, smaller(parallel.workers(), in.segments / kMinSegments));
  const int64_t size = blocks(in.segments, parts);
  parallel.run(in.batch * parts, [&](int64_t task, int) {
    const int64_t index = task / parts, first = smaller(in.segments, task % parts * size);
    sum_range(in, in.values + index * in.rows * in.channels, in.ids + index * in.rows, first,
              smaller(in.segments, first + size), sums + index * in.segments * in.channels);
  });
}

}  // namespace GPHM_ISA
}  // namespace gphm
