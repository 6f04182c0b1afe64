// What the mesh ops share: pixel centres, the face seen at a pixel, and lists of items by vertex.
#ifndef GPHM_MESH_H_
#define GPHM_MESH_H_

#include <cmath>
#include <cstdint>

#include "cpu_ops.h"
#include "memory.h"

namespace gphm {
namespace GPHM_ISA {

struct Centres {  // of pixels, in normalised device coordinates
  Array<double> x, y;
  Centres(int64_t width, int64_t height) : x(width), y(height) {
    for (int64_t i = 0; i < width; ++i) x[i] = static_cast<double>(2 * i + 1) / static_cast<double>(width) - 1;
    for (int64_t i = 0; i < height; ++i) y[i] = 1 - static_cast<double>(2 * i + 1) / static_cast<double>(height);
  }
};

// The face at a pixel by the raster's last channel, face index + 1; -1 where there is none. An index that is not a
// number or too large must not lead outside the faces.
static inline int32_t seen_face(float index, int64_t faces) {
  if (!(index >= 1.f)) return -1;
  return static_cast<int32_t>(index < static_cast<float>(faces) ? index : static_cast<float>(faces)) - 1;
}

static inline bool is_vertex(int32_t index, int64_t vertices) { return index >= 0 && index < vertices; }

// Whether a face has three different vertices, all of them in range; others are padding and are skipped.
static inline bool is_drawable(const int32_t* corner, int64_t vertices) {
  for (int i = 0; i < 3; ++i) {
    if (!is_vertex(corner[i], vertices) || corner[i] == corner[(i + 1) % 3]) return false;
  }
  return true;
}

// Whether a vertex can be drawn: beyond 1e18 its coordinates count as infinite, so that products of three stay finite.
static inline bool is_finite(const float* position) {
  bool finite = true;
  for (int i = 0; i < 4; ++i) finite = finite && std::fabs(position[i]) < 1e18f;  // false for a NaN
  return finite;
}

// Values by key, those of equal keys in the order of their items: a counting sort. The lists are the same for any
// number of threads.
template <typename Value>
class Lists {
 public:
  // each(first, last, add) calls add(key, value) for what the items in [first, last) have to list; it is called twice.
  template <typename Each>
  void fill(int64_t items, int64_t keys, Parallel& parallel, const Each& each) {
    constexpr int64_t kChunk = 1 << 14, kMaxChunks = 8;  // each chunk counts for itself: no more than memory allows
    const int64_t chunks = larger(1, smaller(smaller(parallel.workers(), kMaxChunks), items / kChunk));
    next_.zero(chunks * keys);
    parallel.run(chunks, [&](int64_t chunk, int) {
      int64_t* next = next_.data() + chunk * keys;
      each(items * chunk / chunks, items * (chunk + 1) / chunks, [&](int64_t key, Value) { ++next[key]; });
    });
    start_.reserve(keys + 1);
    int64_t total = 0;
    for (int64_t key = 0; key < keys; ++key) {
      start_[key] = total;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int64_t number = next_[chunk * keys + key];
        next_[chunk * keys + key] = total;
        total += number;
      }
    }
    start_[keys] = total;
    values_.reserve(total);
    parallel.run(chunks, [&](int64_t chunk, int) {
      int64_t* next = next_.data() + chunk * keys;
      each(items * chunk / chunks, items * (chunk + 1) / chunks,
           [&](int64_t key, Value value) { values_[next[key]++] = value; });
    });
  }
  const Value* begin(int64_t key) const { return values_.data() + start_[key]; }
  const Value* end(int64_t key) const { return values_.data() + start_[key + 1]; }

 private:
  Array<int64_t> start_, next_;
  Array<Value> values_;
};

// For each vertex the corners of seen faces that lie on it, in the order of the pixels: 3 p + i is corner i at pixel p.
static inline void list_corners(const float* raster, int64_t pixels, const int32_t* indices, int64_t faces,
                                int64_t vertices, Parallel& parallel, Lists<int32_t>* lists) {
  lists->fill(pixels, vertices, parallel, [&](int64_t first, int64_t last, const auto& add) {
    for (int64_t p = first; p < last; ++p) {
      const int32_t face = seen_face(raster[4 * p + 3], faces);
      if (face < 0) continue;
      for (int i = 0; i < 3; ++i) {
        const int32_t vertex = indices[3 * int64_t{face} + i];
        if (is_vertex(vertex, vertices)) add(vertex, static_cast<int32_t>(3 * p + i));
      }
    }
  });
}

}  // namespace GPHM_ISA
}  // namespace gphm

#endif  // GPHM_MESH_H_
