#include "splat_bins.h"

namespace gphm {
namespace GPHM_ISA {

namespace {

constexpr int64_t kChunk = 4096;

// Finite and inside the float range left after the casts below; written so that a NaN fails.
bool bounded(float value) { return value > -1e30f && value < 1e30f; }

Footprint make_footprint(const float* mean, const float* conic, float opacity, float depth, const BlendInputs& in) {
  Footprint f{};
  f.first_row = 1, f.last_row = 0;
  double a = conic[0], b = conic[1], c = conic[2];
  // In double: a needle's determinant is a difference of nearly equal products.
  double determinant = a * c - b * b;
  if (!(opacity >= kAlphaMin) || !bounded(opacity) || !bounded(mean[0]) || !bounded(mean[1]) || !bounded(depth) ||
      !(a > 0) || !(c > 0) || !(determinant > 0) || !(a < 1e30) || !(c < 1e30)) {
    return f;
  }
  double level = 2 * std::log(255.0 * opacity);
  double correlation = a * c / determinant;
  // Slack for the rounding of the exponent, a sum of terms that nearly cancel along a needle.
  level += 1e-4 + 1e-6 * (level + 1e-4) * correlation;
  double half_width = std::sqrt(level * c / determinant), half_height = std::sqrt(level * a / determinant);
  constexpr double kLog2E = 1.4426950408889634;
  f.x = mean[0], f.y = mean[1];
  f.xx = static_cast<float>(-0.5 * kLog2E * a);
  f.xy = static_cast<float>(-kLog2E * b);
  f.yy = static_cast<float>(-0.5 * kLog2E * c);
  f.log_opacity = static_cast<float>(std::log2(static_cast<double>(opacity)));
  f.shear = static_cast<float>(b / a);
  f.reach = static_cast<float>(level / a);
  f.bend = static_cast<float>(determinant / (a * a));
  f.half_width = static_cast<float>(half_width), f.half_height = static_cast<float>(half_height);
  f.rim = static_cast<float>(-b / c * half_width);
  if (!(f.x + f.half_width >= 0.f) || !(f.x - f.half_width <= static_cast<float>(in.width))) return f;
  Range rows = intervals(f.y - f.half_height, f.y + f.half_height, kTile, blocks(in.height, kTile));
  f.first_row = rows.first, f.last_row = rows.last;
  return f;
}

// Orders as the float does; -0 and +0 are equal.
uint32_t sort_key(float value) {
  value += 0.f;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

}  // namespace

Bins::Bins(const BlendInputs& in, int64_t image, Parallel& parallel)
    : columns_(blocks(in.width, kTile)), rows_(blocks(in.height, kTile)), lists_(blocks(in.height, kTile)) {
  const int64_t base = image * in.splats;
  Array<Footprint> unsorted(in.splats);
  parallel.run(blocks(in.splats, kChunk), [&](int64_t task, int) {
    for (int64_t i = task * kChunk; i < smaller(in.splats, (task + 1) * kChunk); ++i) {
      int64_t at = base + i;
      unsorted[i] = make_footprint(in.means + 2 * at, in.conics + 3 * at, in.opacities[at], in.depths[at], in);
      unsorted[i].splat = unsorted[i].first_row <= unsorted[i].last_row ? static_cast<int32_t>(i) : -1;
    }
  });
  for (int64_t i = 0; i < in.splats; ++i) drawn_ += unsorted[i].splat >= 0;
  sort(unsorted, in.depths + base, parallel);
  list_rows();
}

// A stable radix sort of (key, splat) pairs, 11 bits at a time: equal depths stay in index order. The footprints are
// then moved into depth order, so that everything after this reads memory forwards.
void Bins::sort(const Array<Footprint>& unsorted, const float* depths, Parallel& parallel) {
  constexpr int kBits = 11, kPasses = 3, kBuckets = 1 << kBits;
  Array<uint64_t> pairs(drawn_), other(drawn_);
  Array<int64_t> counts;
  counts.zero(kPasses * kBuckets);
  for (int64_t i = 0, at = 0; at < drawn_; ++i) {
    if (unsorted[i].splat < 0) continue;
    uint32_t key = sort_key(depths[i]);
    pairs[at++] = static_cast<uint64_t>(key) << 32 | static_cast<uint32_t>(i);
    for (int pass = 0; pass < kPasses; ++pass) ++counts[pass * kBuckets + (key >> pass * kBits) % kBuckets];
  }
  uint64_t *from = pairs.data(), *to = other.data();
  for (int pass = 0; pass < kPasses; ++pass) {
    int64_t* count = counts.data() + pass * kBuckets;
    for (int64_t bucket = 0, total = 0; bucket < kBuckets; ++bucket) {
      int64_t size = count[bucket];
      count[bucket] = total;
      total += size;
    }
    for (int64_t i = 0; i < drawn_; ++i) to[count[(from[i] >> (32 + pass * kBits)) % kBuckets]++] = from[i];
    uint64_t* swap = from;
    from = to, to = swap;
  }
  footprints_.reserve(drawn_);
  parallel.run(blocks(drawn_, kChunk), [&](int64_t task, int) {
    for (int64_t i = task * kChunk; i < smaller(drawn_, (task + 1) * kChunk); ++i) {
      footprints_[i] = unsorted[static_cast<uint32_t>(from[i])];
    }
  });
}

// Lists the splats of each row of tiles, by depth.
void Bins::list_rows() {
  row_start_.zero(rows_ + 1);
  row_entries_.zero(rows_);
  for (int64_t rank = 0; rank < drawn_; ++rank) {
    const Footprint& f = footprints_[rank];
    Range wide = intervals(f.x - f.half_width, f.x + f.half_width, kTile, columns_);
    for (int64_t row = f.first_row; row <= f.last_row; ++row) {
      ++row_start_[row + 1];
      row_entries_[row] += larger(0, wide.last - wide.first + 1);
    }
  }
  for (int64_t row = 0; row < rows_; ++row) row_start_[row + 1] += row_start_[row];
  row_ranks_.reserve(row_start_[rows_]);
  Array<int64_t> next(rows_);
  std::memcpy(next.data(), row_start_.data(), static_cast<uint64_t>(rows_) * sizeof(int64_t));
  for (int64_t rank = 0; rank < drawn_; ++rank) {
    const Footprint& f = footprints_[rank];
    for (int64_t row = f.first_row; row <= f.last_row; ++row) row_ranks_[next[row]++] = static_cast<int32_t>(rank);
  }
}

Bins::Group Bins::group(int64_t first) const {
  Group group{first, first + 1};
  for (int64_t total = row_entries_[first]; group.last < rows_; ++group.last) {
    total += row_entries_[group.last];
    if (total > kGroupEntries) break;
  }
  return group;
}

void Bins::fill(const Group& group, Parallel& parallel) {
  Objects<Array<Range>> scratch(parallel.workers());
  parallel.run(group.last - group.first, [&](int64_t task, int worker) {
    list_tiles(group.first + task, lists_[task], scratch[worker]);
  });
}

// The lists of one row, by a counting sort that keeps the depth order.
void Bins::list_tiles(int64_t row, Row& lists, Array<Range>& ranges) {
  const int32_t* ranks = row_ranks_.data() + row_start_[row];
  const int64_t number = row_start_[row + 1] - row_start_[row];
  ranges.reserve(number);
  lists.start.zero(columns_ + 2);
  const float top = static_cast<float>(row * kTile) + 0.5f;
  for (int64_t i = 0; i < number; ++i) {
    const Footprint& f = footprints_[ranks[i]];
    Span reach = span(f, top - kSlack - f.y, top + (kTile - 1) + kSlack - f.y);
    Range range{1, 0};
    if (reach.low <= reach.high) range = intervals(f.x + reach.low, f.x + reach.high, kTile, columns_);
    ranges[i] = range;
    for (int64_t column = range.first; column <= range.last; ++column) ++lists.start[column + 2];
  }
  for (int64_t column = 0; column < columns_; ++column) lists.start[column + 2] += lists.start[column + 1];
  // start[column + 1] is now where the column begins; filling moves it to where the column ends.
  lists.ranks.reserve(lists.start[columns_ + 1]);
  for (int64_t i = 0; i < number; ++i) {
    for (int64_t column = ranges[i].first; column <= ranges[i].last; ++column) {
      lists.ranks[lists.start[column + 1]++] = ranks[i];
    }
  }
}

}  // namespace GPHM_ISA
}  // namespace gphm
