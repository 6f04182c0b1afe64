#include "splat_bins.h"

#include "splat_shapes.h"

namespace gphm {
namespace GPHM_ISA {

namespace {

constexpr int64_t kChunk = 4096, kAhead = 16;

// Orders as the float does; -0 and +0 are equal.
uint32_t sort_key(float value) {
  value += 0.f;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

// A stable radix sort, 11 bits at a time: equal depths stay in index order. Keys count from the least, so that a head,
// whose depths are close to each other, takes two passes instead of three.
void sort_by_depth(const float* depths, int64_t number, Array<uint32_t>& order) {
  constexpr int kBits = 11, kBuckets = 1 << kBits;
  Array<uint64_t> pairs(number), other(number);
  uint32_t least = UINT32_MAX, greatest = 0;
  for (int64_t i = 0; i < number; ++i) {
    const uint32_t key = sort_key(depths[i]);
    least = key < least ? key : least, greatest = key > greatest ? key : greatest;
    pairs[i] = static_cast<uint64_t>(key) << 32 | static_cast<uint32_t>(i);
  }
  uint64_t *from = pairs.data(), *to = other.data();
  Array<int64_t> count(kBuckets);
  for (int shift = 0; number && shift < 32 && (greatest - least) >> shift; shift += kBits) {
    auto bucket_of = [=](uint64_t pair) { return ((static_cast<uint32_t>(pair >> 32) - least) >> shift) % kBuckets; };
    count.zero(kBuckets);
    for (int64_t i = 0; i < number; ++i) ++count[bucket_of(from[i])];
    for (int64_t bucket = 0, total = 0; bucket < kBuckets; ++bucket) {
      int64_t size = count[bucket];
      count[bucket] = total;
      total += size;
    }
    for (int64_t i = 0; i < number; ++i) to[count[bucket_of(from[i])]++] = from[i];
    uint64_t* swap = from;
    from = to, to = swap;
  }
  order.reserve(number);
  for (int64_t i = 0; i < number; ++i) order[i] = static_cast<uint32_t>(from[i]);
}

}  // namespace

Bins::Bins(const BlendInputs& in, int64_t image, Parallel& parallel)
    : columns_(blocks(in.width, kTile)), rows_(blocks(in.height, kTile)), lists_(blocks(in.height, kTile)) {
  const int64_t base = image * in.splats;
  Array<uint32_t> order;
  sort_by_depth(in.depths + base, in.splats, order);
  place(in, base, order.data(), parallel);
}

// Starts loading a splat's geometry: the depth order jumps through memory.
GPHM_INLINE void prefetch_geometry(const BlendInputs& in, int64_t at) {
  __builtin_prefetch(in.means + 2 * at);
  __builtin_prefetch(in.conics + 3 * at);
  __builtin_prefetch(in.opacities + at);
  __builtin_prefetch(in.depths + at);
}

// Makes the footprints, in depth order, so that everything after this reads memory forwards; and lists the splats of
// each row of tiles by a counting sort over chunks of splats.
void Bins::place(const BlendInputs& in, int64_t base, const uint32_t* order, Parallel& parallel) {
  // Chunks have counters of their own: fewer of them for images of many rows.
  const int64_t chunk = larger(kChunk, blocks(in.splats * rows_, 1 << 20)), chunks = blocks(in.splats, chunk);
  footprints_.reserve(in.splats), ellipses_.reserve(in.splats), boxes_.reserve(in.splats);
  Array<int64_t> next, entries;  // [chunks, rows]: how many splats, later where they go; how many (tile, splat) pairs
  next.zero(chunks * rows_), entries.zero(chunks * rows_);
  parallel.run(chunks, [&](int64_t task, int) {
    int64_t *number = next.data() + task * rows_, *pairs = entries.data() + task * rows_;
    const int64_t end = smaller(in.splats, (task + 1) * chunk);
    for (int64_t rank = task * chunk; rank < end; rank += kLanes) {
      const int64_t lanes = smaller(kLanes, end - rank);
      for (int64_t lane = 0; lane < lanes; ++lane) {
        prefetch_geometry(in, base + order[smaller(rank + kAhead + lane, end - 1)]);
      }
      const Shapes shapes(in, base, order + rank, lanes);
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const Shapes& s = shapes;
        footprints_[rank + lane] = {s.x[lane],  s.y[lane],           s.xx[lane],
                                    s.xy[lane], s.yy[lane],          s.log_opacity[lane],
                                    static_cast<int32_t>(order[rank + lane])};
        ellipses_[rank + lane] = {s.x[lane],          s.y[lane],           s.shear[lane], s.reach[lane], s.bend[lane],
                                  s.half_width[lane], s.half_height[lane], s.rim[lane]};
        const Box box{{s.columns.first[lane], s.columns.last[lane]}, {s.rows.first[lane], s.rows.last[lane]}};
        boxes_[rank + lane] = box;
        for (int64_t row = box.rows.first; row <= box.rows.last; ++row) {
          ++number[row];
          pairs[row] += box.columns.last - box.columns.first + 1;
        }
      }
    }
  });
  row_start_.reserve(rows_ + 1);
  row_entries_.zero(rows_);
  int64_t total = 0;
  for (int64_t row = 0; row < rows_; ++row) {
    row_start_[row] = total;
    for (int64_t task = 0; task < chunks; ++task) {
      const int64_t number = next[task * rows_ + row];
      next[task * rows_ + row] = total;
      total += number;
      row_entries_[row] += entries[task * rows_ + row];
    }
  }
  row_start_[rows_] = total;
  row_ranks_.reserve(total);
  parallel.run(chunks, [&](int64_t task, int) {
    int64_t* at = next.data() + task * rows_;
    for (int64_t rank = task * chunk; rank < smaller(in.splats, (task + 1) * chunk); ++rank) {
      const Range rows = boxes_[rank].rows;
      for (int64_t row = rows.first; row <= rows.last; ++row) row_ranks_[at[row]++] = static_cast<int32_t>(rank);
    }
  });
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
  parallel.run(group.last - group.first, [&](int64_t task, int) { list_tiles(group.first + task, lists_[task]); });
}

// The lists of one row, by a counting sort that keeps the depth order: room by the ellipses' bounding boxes, then the
// sub-tiles that they reach exactly.
void Bins::list_tiles(int64_t row, Row& lists) {
  const int32_t* ranks = row_ranks_.data() + row_start_[row];
  const int64_t number = row_start_[row + 1] - row_start_[row];
  make_room(ranks, number, lists);
  Array<uint32_t> words;
  for (int64_t i = 0; i < number; i += kLanes) {
    const int64_t lanes = smaller(kLanes, number - i);
    reach(row, ranks + i, lanes, words);
    append(ranks + i, lanes, words, lists);
  }
}

void Bins::make_room(const int32_t* ranks, int64_t number, Row& lists) {
  lists.start.zero(columns_ + 1);
  lists.end.reserve(columns_);
  for (int64_t i = 0; i < number; ++i) {
    const int32_t ahead = ranks[smaller(i + kAhead, number - 1)];  // a row's splats lie scattered in depth order
    __builtin_prefetch(&boxes_[ahead]);
    __builtin_prefetch(&ellipses_[ahead]);
    const Range box = boxes_[ranks[i]].columns;
    for (int64_t column = box.first; column <= box.last; ++column) ++lists.start[column + 1];
  }
  for (int64_t column = 0; column < columns_; ++column) {
    lists.start[column + 1] += lists.start[column];
    lists.end[column] = lists.start[column];
  }
  lists.ranks.reserve(lists.start[columns_]);
  lists.bits.reserve(lists.start[columns_]);
}

// The bits of a vector of splats in each column of their boxes, [widest box, kWords, lanes].
void Bins::reach(int64_t row, const int32_t* ranks, int64_t lanes, Array<uint32_t>& words) const {
  const Ellipses ellipses(ellipses_.data(), ranks, lanes);
  Ranges reached[kSubRows];
  for (int sub = 0; sub < kSubRows; ++sub) {
    const Vec top = splat(static_cast<float>(row * kTile + sub * kSubHeight) + 0.5f - kSlack) - ellipses.y;
    reached[sub] = ellipses.reached(top, top + (kSubHeight - 1 + 2 * kSlack), columns_ * kSubColumns);
  }
  int64_t widest = 0;
  Mask column{};
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const Range box = boxes_[ranks[lane]].columns;
    column[lane] = box.first;
    widest = larger(widest, box.last - box.first + 1);
  }
  words.reserve(widest * kWords * kLanes);
  for (int64_t at = 0; at < widest; ++at, column += 1) {
    store_words(reached, column, words.data() + at * kWords * kLanes);
  }
}

// Appends splats to the lists of their boxes' columns, one after another, or the depth order would be lost.
void Bins::append(const int32_t* ranks, int64_t lanes, const Array<uint32_t>& words, Row& lists) const {
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const Range box = boxes_[ranks[lane]].columns;
    for (int64_t at = 0; at <= box.last - box.first; ++at) {
      SubBits bits = 0;
      for (int word = 0; word < kWords; ++word) {
        bits |= static_cast<SubBits>(static_cast<SubBits>(words[(at * kWords + word) * kLanes + lane]) << (32 * word));
      }
      int64_t& end = lists.end[box.first + at];  // no branch: the box has room for what is not kept
      lists.ranks[end] = ranks[lane];
      lists.bits[end] = bits;
      end += bits != 0;
    }
  }
}

}  // namespace GPHM_ISA
}  // namespace gphm
