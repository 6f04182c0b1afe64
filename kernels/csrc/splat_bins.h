// Which splats touch which tiles: footprints, the depth order, and the tiles' depth-ordered lists.
#ifndef GPHM_SPLAT_BINS_H_
#define GPHM_SPLAT_BINS_H_

#include <cstdint>
#include <cstring>

#include <type_traits>

#include "cpu_ops.h"
#include "memory.h"
#include "vectors.h"

namespace gphm {
namespace GPHM_ISA {

// A 16x16 tile is divided into sub-tiles of 4 pixels by kLanes / 4, one pixel a lane.
constexpr int kTile = 16;
constexpr int kSubWidth = 4, kSubHeight = kLanes / kSubWidth;
constexpr int kSubColumns = kTile / kSubWidth, kSubRows = kTile / kSubHeight, kSubTiles = kSubColumns * kSubRows;
// A bit for each sub-tile of a tile, row by row.
typedef std::conditional_t<kSubTiles == 16, uint16_t, std::conditional_t<kSubTiles == 32, uint32_t, uint64_t>> SubBits;
constexpr float kAlphaMin = 1.f / 255.f, kAlphaMax = 0.99f, kTransmittanceMin = 1e-4f;
// Lists are made for a group of tile rows at a time; a group holds about this many entries (or one row).
constexpr int64_t kGroupEntries = 16 << 20;

// One splat as a pixel sees it: log2 alpha = log_opacity + xx dx^2 + xy dx dy + yy dy^2.
struct alignas(32) Footprint {
  float x, y;
  float xx, xy, yy, log_opacity;
  int32_t splat;
};

// The region alpha >= 1/255 is an ellipse; at a height dy from the mean it reaches from
// -shear dy - sqrt(reach - bend dy^2) to -shear dy + sqrt(reach - bend dy^2).
struct alignas(32) Ellipse {
  float x, y;
  float shear, reach, bend;
  float half_width, half_height;
  float rim;  // dy of the rightmost point; the leftmost lies at -rim
};

struct Range {
  int32_t first, last;
};
struct Box {  // of tiles; without rows for a splat that is not drawn
  Range columns, rows;
};

class Bins {
 public:
  struct Row {  // the lists of one row of tiles
    Array<int32_t> ranks;
    Array<SubBits> bits;
    Array<int64_t> start, end;  // [columns]; between one's end and the next one's start there may be room left
  };
  struct List {  // one tile's splats, front to back
    const int32_t* ranks;
    const SubBits* bits;  // the sub-tiles that each of them reaches
    int64_t number;
  };
  struct Group {
    int64_t first, last;  // tile rows, last exclusive
  };

  Bins(const BlendInputs& in, int64_t image, Parallel& parallel);

  int64_t columns() const { return columns_; }
  int64_t rows() const { return rows_; }
  // The splats in depth order; the lists hold their ranks in it.
  bool drawn(int64_t rank) const { return boxes_[rank].rows.first <= boxes_[rank].rows.last; }
  const Footprint& footprint(int64_t rank) const { return footprints_[rank]; }
  const Footprint* footprints() const { return footprints_.data(); }

  // The group of rows that starts at `first`.
  Group group(int64_t first) const;
  // Fills the lists of a group; those of the group before are lost.
  void fill(const Group& group, Parallel& parallel);
  List list(const Group& group, int64_t row, int64_t column) const {
    const Row& lists = lists_[row - group.first];
    const int64_t start = lists.start[column];
    return {lists.ranks.data() + start, lists.bits.data() + start, lists.end[column] - start};
  }

 private:
  void place(const BlendInputs& in, int64_t base, const uint32_t* order, Parallel& parallel);
  void list_tiles(int64_t row, Row& lists);
  void make_room(const int32_t* ranks, int64_t number, Row& lists);
  void reach(int64_t row, const int32_t* ranks, int64_t lanes, Array<uint32_t>& words) const;
  void append(const int32_t* ranks, int64_t lanes, const Array<uint32_t>& words, Row& lists) const;

  int64_t columns_, rows_;
  Array<Footprint> footprints_;
  Array<Ellipse> ellipses_;
  Array<Box> boxes_;
  Array<int64_t> row_start_;  // [rows + 1]
  Array<int32_t> row_ranks_;
  Array<int64_t> row_entries_;  // [rows]: how many (tile, splat) pairs there can be
  Objects<Row> lists_;
};

}  // namespace GPHM_ISA
}  // namespace gphm

#endif  // GPHM_SPLAT_BINS_H_
