// Marching tetrahedra on a Kuhn grid: signs -> crossing edges and faces, as integers.
//
// An edge is a vertex and one of seven directions, the nonzero corners of the unit cube (bit 0 for x, 1 for y, 2 for
// z). Signs are bits, 64 vertices along z to a word: a row's crossings and its cubes with mixed signs come from a few
// word operations, and only what the surface touches is looked at one by one. Rows along z count first; the sums of
// the counts before them say where each writes, so that any number of threads gives the same numbering.
#include "cpu_ops.h"
#include "memory.h"
#include "vectors.h"

namespace gphm {
namespace GPHM_ISA {

namespace {

constexpr int kDirections = 7, kMaxFaces = 12;
constexpr int64_t kRows = 32;  // that one task takes

GPHM_INLINE int first_bit(uint64_t word) { return __builtin_ctzll(word); }
GPHM_INLINE int count(uint64_t word) { return __builtin_popcountll(word); }

// The signs of a grid: bit z of row (x, y) is set inside.
class Signs {
 public:
  Signs(int64_t nx, int64_t ny, int64_t nz) : ny(ny), nz(nz), words(blocks(nz, 64)), bits_(nx * ny * words) {}

  void read(const float* sdf, int64_t row) {
    const float* values = sdf + row * nz;
    uint64_t* out = bits_.data() + row * words;
    for (int64_t w = 0; w < words; ++w) {
      const int64_t size = smaller(64, nz - 64 * w);
      uint64_t word = 0;
      each_vector(size, [&](int64_t at, int64_t part) __attribute__((always_inline)) {
        word |= static_cast<uint64_t>(bits(load(values + 64 * w + at, part) > Vec{})) << at;
      });
      out[w] = word;
    }
  }

  // Word w of the row above a corner of the unit cube, shifted so that bit z is the vertex at that corner of z.
  uint64_t at(int64_t row, int corner, int64_t w) const {
    const uint64_t* from = bits_.data() + (row + (corner & 1) * ny + (corner >> 1 & 1)) * words;
    if (!(corner >> 2)) return from[w];
    return from[w] >> 1 | (w + 1 < words ? from[w + 1] << 63 : 0);
  }
  // The vertices of word w that have one after them along z (`last` 1), or all that there are (`last` 0).
  uint64_t valid(int64_t w, int64_t last) const {
    const int64_t size = nz - last - 64 * w;
    return size >= 64 ? ~uint64_t{0} : size <= 0 ? 0 : (uint64_t{1} << size) - 1;
  }

  const int64_t ny, nz, words;

 private:
  Array<uint64_t> bits_;
};

struct Grid {
  const TetrahedraInputs& in;
  const Signs& signs;

  bool has(int64_t row, int corner) const {
    return row / signs.ny + (corner & 1) < in.shape[0] && row % signs.ny + (corner >> 1 & 1) < signs.ny;
  }
  int32_t step(int corner) const {
    return static_cast<int32_t>(((corner & 1) * signs.ny + (corner >> 1 & 1)) * signs.nz + (corner >> 2));
  }

  // Of word w of a row, the vertices whose edge in each direction crosses; the return value has those of any.
  uint64_t crossings(int64_t row, int64_t w, uint64_t (&directions)[kDirections]) const {
    uint64_t any = 0;
    for (int d = 0; d < kDirections; ++d) {
      const int corner = d + 1;
      directions[d] = !has(row, corner) ? 0
                          : (signs.at(row, 0, w) ^ signs.at(row, corner, w)) & signs.valid(w, corner >> 2);
      any |= directions[d];
    }
    return any;
  }

  // The cubes above word w of a row that have corners of both signs.
  uint64_t mixed(int64_t row, int64_t w, uint64_t (&corners)[8]) const {
    uint64_t some = 0, all = ~uint64_t{0};
    for (int corner = 0; corner < 8; ++corner) {
      corners[corner] = signs.at(row, corner, w);
      some |= corners[corner];
      all &= corners[corner];
    }
    return some & ~all & signs.valid(w, 1);
  }
};

GPHM_INLINE int code_of(const uint64_t (&corners)[8], int z) {
  int code = 0;
  for (int corner = 0; corner < 8; ++corner) code |= static_cast<int>(corners[corner] >> z & 1) << corner;
  return code;
}

struct Rank {
  int64_t vertices, faces;
};

Rank count_row(const Grid& grid, int64_t row) {
  Rank number{0, 0};
  for (int64_t w = 0; w < grid.signs.words; ++w) {
    uint64_t directions[kDirections], corners[8];
    if (grid.crossings(row, w, directions)) {
      for (int d = 0; d < kDirections; ++d) number.vertices += count(directions[d]);
    }
    if (!grid.has(row, 3)) continue;
    for (uint64_t left = grid.mixed(row, w, corners); left; left &= left - 1) {
      number.faces += grid.in.cube_number[code_of(corners, first_bit(left))];
    }
  }
  return number;
}

// A grid vertex with crossing edges: the rank of its first, and which directions cross.
struct Vertex {
  int64_t rank;
  uint32_t directions;
};

// Calls visit(z, vertex) for the vertices of a row that have crossing edges, whose first has the given rank.
template <typename Visit>
GPHM_INLINE void each_vertex(const Grid& grid, int64_t row, int64_t rank, const Visit& visit) {
  for (int64_t w = 0; w < grid.signs.words; ++w) {
    uint64_t directions[kDirections];
    for (uint64_t left = grid.crossings(row, w, directions); left; left &= left - 1) {
      const int z = first_bit(left);
      uint32_t found = 0;
      for (int d = 0; d < kDirections; ++d) found |= static_cast<uint32_t>(directions[d] >> z & 1) << d;
      visit(64 * w + z, Vertex{rank, found});
      rank += count(found);
    }
  }
}

void write_edges(const Grid& grid, int64_t row, int64_t rank, int32_t* edges) {
  const int64_t limit = grid.in.max_vertices;
  each_vertex(grid, row, rank, [&](int64_t z, Vertex vertex) __attribute__((always_inline)) {
    const int32_t base = static_cast<int32_t>(row * grid.signs.nz + z);
    for (uint32_t left = vertex.directions; left && vertex.rank < limit; left &= left - 1, ++vertex.rank) {
      edges[2 * vertex.rank] = base;
      edges[2 * vertex.rank + 1] = base + grid.step(first_bit(left) + 1);
    }
  });
}

// The faces of a row of cubes. `vertices` has room for four rows along z.
void write_faces(const Grid& grid, int64_t row, const Rank* ranks, Vertex* vertices, int32_t* faces) {
  const TetrahedraInputs& in = grid.in;
  const int64_t nz = grid.signs.nz;
  int64_t rank = ranks[row].faces;
  if (!grid.has(row, 3) || ranks[row + 1].faces == rank || rank >= in.max_faces) return;
  for (int corner = 0; corner < 4; ++corner) {
    const int64_t beside = row + (corner & 1) * grid.signs.ny + (corner >> 1);
    Vertex* to = vertices + corner * nz;
    each_vertex(grid, beside, ranks[beside].vertices,
                [&](int64_t z, Vertex vertex) __attribute__((always_inline)) { to[z] = vertex; });
  }
  for (int64_t w = 0; w < grid.signs.words; ++w) {
    uint64_t corners[8];
    for (uint64_t left = grid.mixed(row, w, corners); left; left &= left - 1) {
      const int z = first_bit(left), code = code_of(corners, z);
      const int32_t* edge = in.cube_edges + int64_t{code} * kMaxFaces * 6;
      for (int32_t n = 0; n < in.cube_number[code]; ++n, ++rank) {
        if (rank >= in.max_faces) return;
        int64_t face[3];
        bool complete = true;
        for (int i = 0; i < 3; ++i, edge += 2) {
          const Vertex& vertex = vertices[(edge[0] & 3) * nz + 64 * w + z + (edge[0] >> 2)];
          face[i] = vertex.rank + count(vertex.directions & ((1u << edge[1]) - 1));
          complete = complete && face[i] < in.max_vertices;
        }
        for (int i = 0; i < 3; ++i) faces[3 * rank + i] = complete ? static_cast<int32_t>(face[i]) : 0;
      }
    }
  }
}

int32_t clamped(int64_t number) { return static_cast<int32_t>(smaller(number, INT32_MAX)); }

}  // namespace

void marching_tetrahedra(const TetrahedraInputs& in, const TetrahedraResults& out, Parallel& parallel) {
  const int64_t rows = in.shape[0] * in.shape[1], nz = in.shape[2], tasks = blocks(rows, kRows);
  Signs signs(in.shape[0], in.shape[1], nz);
  const Grid grid{in, signs};
  Array<Rank> ranks(rows + 1);
  Objects<Array<Vertex>> workers(parallel.workers());
  for (int worker = 0; worker < parallel.workers(); ++worker) workers[worker].reserve(4 * nz);
  const auto each_row = [&](const auto& body) {
    parallel.run(tasks, [&](int64_t task, int worker) {
      for (int64_t row = task * kRows; row < smaller(rows, (task + 1) * kRows); ++row) body(row, worker);
    });
  };
  for (int64_t index = 0; index < in.batch; ++index) {
    const float* sdf = in.sdf + index * rows * nz;
    int32_t* edges = out.edges + index * in.max_vertices * 2;
    int32_t* faces = out.faces + index * in.max_faces * 3;
    each_row([&](int64_t row, int) { signs.read(sdf, row); });
    each_row([&](int64_t row, int) { ranks[row + 1] = count_row(grid, row); });
    ranks[0] = Rank{0, 0};
    for (int64_t row = 0; row < rows; ++row) {
      ranks[row + 1].vertices += ranks[row].vertices;
      ranks[row + 1].faces += ranks[row].faces;
    }
    each_row([&](int64_t row, int worker) {
      write_edges(grid, row, ranks[row].vertices, edges);
      write_faces(grid, row, ranks.data(), workers[worker].data(), faces);
    });
    const Rank total = ranks[rows];
    const auto clear = [](int32_t* lanes, int64_t used, int64_t number, int64_t width) {
      used = smaller(used, number);
      std::memset(lanes + used * width, 0, static_cast<uint64_t>((number - used) * width) * sizeof(int32_t));
    };
    clear(edges, total.vertices, in.max_vertices, 2);
    clear(faces, total.faces, in.max_faces, 3);
    out.counts[2 * index] = clamped(total.vertices);
    out.counts[2 * index + 1] = clamped(total.faces);
  }
}

}  // namespace GPHM_ISA
}  // namespace gphm
