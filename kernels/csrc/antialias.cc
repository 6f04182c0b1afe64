// Antialiasing: pixels blend across silhouettes, so that coverage, and with it the image, is continuous in the vertices.
//
// For two neighbouring pixels with different faces, the segment between their centres leaves the nearer face through
// one edge, at a fraction t of its length. Where that edge is a silhouette, (t - 1/2) (C_near - C_far) is added to the
// far pixel if t > 1/2, to the near one otherwise. An edge is a silhouette if no face, or more than one, lies across
// it, or if the two faces' images lie on the same side of it: with an orientation in the image for each face, +1, -1 or
// 0 if it is seen edge on, a product of two of them tells. Few pairs of pixels are left when the faces without a
// silhouette are gone, and only these need geometry.
#include <algorithm>
#include <cmath>

#include "cpu_ops.h"
#include "memory.h"
#include "mesh.h"
#include "vectors.h"

namespace gphm {
namespace GPHM_ISA {

namespace {

constexpr int64_t kChunk = 4096;  // faces or vertices that one task takes
constexpr int64_t kBand = 4;      // rows of pixels that one task takes

// --- which edges are silhouettes ---

// An edge from its lesser vertex, as that vertex lists it.
struct HalfEdge {
  int32_t high;  // the greater vertex
  int32_t slot;  // 3 face + corner opposite
};

// For edge i of each face (opposite corner i) the face on its other side, twice the index, plus 1 if that face runs
// along the edge in the same direction; -1 where there is none or more than one.
void find_neighbours(const AntialiasInputs& in, Parallel& parallel, Array<int32_t>* across) {
  const int32_t* indices = in.indices;
  Lists<HalfEdge> lists;
  across->reserve(3 * in.faces);
  parallel.run(blocks(in.faces, kChunk), [&](int64_t task, int) {
    const int64_t first = 3 * task * kChunk, last = smaller(3 * in.faces, first + 3 * kChunk);
    std::memset(across->data() + first, 0xff, static_cast<uint64_t>(last - first) * sizeof(int32_t));
  });
  lists.fill(in.faces, in.vertices, parallel, [&](int64_t first, int64_t last, const auto& add) {
    for (int64_t face = first; face < last; ++face) {
      const int32_t* v = indices + 3 * face;
      if (!is_drawable(v, in.vertices)) continue;
      for (int i = 0; i < 3; ++i) {
        const int32_t j = v[(i + 1) % 3], k = v[(i + 2) % 3];
        add(j < k ? j : k, HalfEdge{j < k ? k : j, static_cast<int32_t>(3 * face + i)});
      }
    }
  });
  const auto join = [&](const HalfEdge& a, const HalfEdge& b) {
    const int32_t from_a = indices[a.slot / 3 * 3 + (a.slot + 1) % 3], from_b = indices[b.slot / 3 * 3 + (b.slot + 1) % 3];
    const int32_t same = from_a == from_b;
    (*across)[a.slot] = 2 * (b.slot / 3) + same;
    (*across)[b.slot] = 2 * (a.slot / 3) + same;
  };
  parallel.run(blocks(in.vertices, kChunk), [&](int64_t task, int) {
    Array<HalfEdge> sorted;
    for (int64_t vertex = task * kChunk; vertex < smaller(in.vertices, (task + 1) * kChunk); ++vertex) {
      const HalfEdge *begin = lists.begin(vertex), *end = lists.end(vertex);
      const int64_t number = end - begin;
      sorted.reserve(number);
      HalfEdge* edges = sorted.data();
      // Vertices of a few edges by insertion; a fan of thousands must not take their square.
      for (int64_t i = 0; i < number; ++i) {
        int64_t at = i;
        if (number <= 64) {
          for (; at > 0 && edges[at - 1].high > begin[i].high; --at) edges[at] = edges[at - 1];
        }
        edges[at] = begin[i];
      }
      if (number > 64) {
        std::sort(edges, edges + number, [](const HalfEdge& a, const HalfEdge& b) { return a.high < b.high; });
      }
      for (int64_t i = 0, next; i < number; i = next) {
        for (next = i + 1; next < number && edges[next].high == edges[i].high; ++next) {
        }
        if (next == i + 2) join(edges[i], edges[i + 1]);
      }
    }
  });
}

GPHM_INLINE int8_t sign_of(double value) { return static_cast<int8_t>(value > 0 ? 1 : value < 0 ? -1 : 0); }

// Which way round each face's corners run in the image: the determinant of (x, y, w), over the sign of each w. Zero for
// a face that cannot be drawn, which makes a silhouette of its neighbours' edges.
void orient(const AntialiasInputs& in, const float* positions, Parallel& parallel, Array<int8_t>* orientation) {
  orientation->reserve(in.faces);
  parallel.run(blocks(in.faces, kChunk), [&](int64_t task, int) {
    for (int64_t face = task * kChunk; face < smaller(in.faces, (task + 1) * kChunk); ++face) {
      const float* p[3];
      bool known = true;
      for (int i = 0; i < 3; ++i) {
        const int32_t vertex = in.indices[3 * face + i];
        known = known && is_vertex(vertex, in.vertices) && is_finite(positions + 4 * int64_t{vertex});
        p[i] = positions + 4 * int64_t{known ? vertex : 0};
      }
      if (!known) {
        (*orientation)[face] = 0;
        continue;
      }
      // About the first corner, like the edge functions: images of small faces far from the origin keep their digits.
      const double w0 = p[0][3], w1 = p[1][3], w2 = p[2][3];
      const double jx = p[1][0] * w0 - p[0][0] * w1, jy = p[1][1] * w0 - p[0][1] * w1;
      const double kx = p[2][0] * w0 - p[0][0] * w2, ky = p[2][1] * w0 - p[0][1] * w2;
      const int8_t turn = sign_of(jx * ky - jy * kx), behind = sign_of(w1 * w2);
      (*orientation)[face] = static_cast<int8_t>(turn * behind);
    }
  });
}

// Bit i of each face: edge i is a silhouette.
void find_silhouettes(const AntialiasInputs& in, const Array<int32_t>& across, const Array<int8_t>& orientation,
                      Parallel& parallel, Array<uint8_t>* silhouette) {
  silhouette->reserve(in.faces);
  parallel.run(blocks(in.faces, kChunk), [&](int64_t task, int) {
    for (int64_t face = task * kChunk; face < smaller(in.faces, (task + 1) * kChunk); ++face) {
      int found = 0;
      for (int i = 0; i < 3; ++i) {
        const int32_t other = across[3 * face + i];
        if (other < 0) {
          found |= 1 << i;
          continue;
        }
        const int8_t a = orientation[face], b = orientation[other / 2];
        // A neighbour that runs along the edge the same way has its third corner on the side opposite to its turn.
        const bool same_side = other % 2 ? a * b >= 0 : a * b <= 0;
        found |= same_side << i;
      }
      (*silhouette)[face] = static_cast<uint8_t>(found);
    }
  });
}

// --- where pixels blend ---

struct Crossing {
  int32_t near, far;  // pixels
  int32_t j, k;       // ends of the crossed edge
  float amount;       // t - 1/2
  float d_amount;     // its cotangent, on the way back
  int32_t target() const { return amount > 0.f ? far : near; }
};

// An edge's function at a point, a = p x q with p and q its ends as seen from there.
struct EdgeAt {
  double px, py, qx, qy;
  EdgeAt(const float* j, const float* k, double x, double y)
      : px(j[0] - x * j[3]), py(j[1] - y * j[3]), qx(k[0] - x * k[3]), qy(k[1] - y * k[3]) {}
  double value() const { return px * qy - py * qx; }
};

struct View {  // one image of the batch
  const AntialiasInputs& in;
  const float *raster, *positions;
  const Array<uint8_t>& silhouette;
  const Centres& centres;

  double x(int32_t pixel) const { return centres.x[pixel % in.width]; }
  double y(int32_t pixel) const { return centres.y[pixel / in.width]; }
};

// Whether two pixels with different faces blend, and how.
bool cross(const View& view, int64_t first, int64_t second, int32_t first_face, int32_t second_face, Crossing* found) {
  const float infinity = INFINITY;
  const float a = first_face < 0 ? infinity : view.raster[4 * first + 2];
  const float b = second_face < 0 ? infinity : view.raster[4 * second + 2];
  // Among equals the lower index, as in the rasterizer.
  const bool first_nearer = a < b || (a == b && first_face < second_face);
  const int32_t face = first_nearer ? first_face : second_face;
  if (face < 0 || !view.silhouette[face]) return false;
  const int32_t near = static_cast<int32_t>(first_nearer ? first : second);
  const int32_t far = static_cast<int32_t>(first_nearer ? second : first);
  const int32_t* v = view.in.indices + 3 * int64_t{face};
  double at_near[3], at_far[3], whole = 0;
  for (int i = 0; i < 3; ++i) {
    if (!is_vertex(v[i], view.in.vertices)) return false;
  }
  for (int i = 0; i < 3; ++i) {
    const float *j = view.positions + 4 * int64_t{v[(i + 1) % 3]}, *k = view.positions + 4 * int64_t{v[(i + 2) % 3]};
    at_near[i] = EdgeAt(j, k, view.x(near), view.y(near)).value();
    at_far[i] = EdgeAt(j, k, view.x(far), view.y(far)).value();
    whole += at_near[i];
  }
  // The near centre is inside, so the signs there are the face's orientation; the first edge crossed is the exit.
  const double sign = whole > 0 ? 1 : whole < 0 ? -1 : 0;
  double least = 2;
  int edge = -1;
  for (int i = 0; i < 3; ++i) {
    if (!(sign * at_near[i] >= 0 && sign * at_far[i] < 0)) continue;
    const double t = at_near[i] / (at_near[i] - at_far[i]);
    if (t < least) least = t, edge = i;
  }
  if (edge < 0 || !(view.silhouette[face] >> edge & 1)) return false;
  *found = Crossing{near, far, v[(edge + 1) % 3], v[(edge + 2) % 3], static_cast<float>(least - 0.5), 0.f};
  return true;
}

// The crossings of a band's pixels with the next pixel and with the one below, row by row.
class Band {
 public:
  void find(const View& view, int64_t first, int64_t last) {
    const int64_t width = view.in.width, faces = view.in.faces;
    number_ = 0;
    for (int64_t y = first; y < last; ++y) {
      start_[y - first] = number_;
      for (int64_t x = 0; x < width; ++x) {
        const int64_t pixel = y * width + x;
        const int32_t face = seen_face(view.raster[4 * pixel + 3], faces);
        if (x + 1 < width) visit(view, pixel, pixel + 1, face);
        if (y + 1 < view.in.height) visit(view, pixel, pixel + width, face);
      }
    }
    start_[last - first] = number_;
  }
  Crossing* begin(int64_t row) { return crossings_.data() + start_[row % kBand]; }
  Crossing* end(int64_t row) { return crossings_.data() + start_[row % kBand + 1]; }

 private:
  void visit(const View& view, int64_t first, int64_t second, int32_t face) {
    const int32_t other = seen_face(view.raster[4 * second + 3], view.in.faces);
    if (face == other) return;
    crossings_.reserve(number_ + 1, number_);
    number_ += cross(view, first, second, face, other, &crossings_[number_]);
  }

  Array<Crossing> crossings_;
  int64_t start_[kBand + 1] = {}, number_ = 0;
};

// Calls use(crossing) for each crossing that has a pixel in row y, always in the same order.
template <typename Use>
GPHM_INLINE void each_at_row(Objects<Band>& bands, int64_t y, const Use& use) {
  for (int64_t row = larger(0, y - 1); row <= y; ++row) {
    Band& band = bands[row / kBand];
    for (Crossing* crossing = band.begin(row); crossing < band.end(row); ++crossing) use(*crossing);
  }
}

// to += scale * (a - b)
GPHM_INLINE void add_difference(float* to, float scale, const float* a, const float* b, int64_t channels) {
  each_vector(channels, [&](int64_t at, int64_t part) __attribute__((always_inline)) {
    store(to + at, load(to + at, part) + scale * (load(a + at, part) - load(b + at, part)), part);
  });
}

// to += scale * a
GPHM_INLINE void add(float* to, float scale, const float* a, int64_t channels) {
  each_vector(channels, [&](int64_t at, int64_t part) __attribute__((always_inline)) {
    store(to + at, load(to + at, part) + scale * load(a + at, part), part);
  });
}

// a . (b - c)
GPHM_INLINE float dot_difference(const float* a, const float* b, const float* c, int64_t channels) {
  Vec total{};
  each_vector(channels, [&](int64_t at, int64_t part) __attribute__((always_inline)) {
    total += load(a + at, part) * (load(b + at, part) - load(c + at, part));
  });
  return sum(total);
}

// What both passes begin with: the silhouettes of the mesh, then, image by image, the bands' crossings.
template <typename Use>
void each_image(const AntialiasInputs& in, Parallel& parallel, const Use& use) {
  const int64_t pixels = in.width * in.height, number = blocks(in.height, kBand);
  Array<int32_t> across;
  find_neighbours(in, parallel, &across);
  Array<int8_t> orientation;
  Array<uint8_t> silhouette;
  const Centres centres(in.width, in.height);
  Objects<Band> bands(number);
  for (int64_t index = 0; index < in.batch; ++index) {
    const View view{in, in.raster + index * pixels * 4, in.positions + index * in.vertices * 4, silhouette, centres};
    orient(in, view.positions, parallel, &orientation);
    find_silhouettes(in, across, orientation, parallel, &silhouette);
    parallel.run(number, [&](int64_t band, int) {
      bands[band].find(view, band * kBand, smaller(in.height, (band + 1) * kBand));
    });
    use(index, view, bands, number);
  }
}

// The gradient to the ends of the crossed edge, t = a(near) / (a(near) - a(far)).
void positions_bwd(const View& view, const Crossing& crossing, float* d_positions) {
  const float *j = view.positions + 4 * int64_t{crossing.j}, *k = view.positions + 4 * int64_t{crossing.k};
  const EdgeAt near(j, k, view.x(crossing.near), view.y(crossing.near));
  const EdgeAt far(j, k, view.x(crossing.far), view.y(crossing.far));
  const double difference = near.value() - far.value(), scale = crossing.d_amount / (difference * difference);
  const auto at = [&](const EdgeAt& edge, int32_t pixel, double d) {
    const double x = view.x(pixel), y = view.y(pixel);
    const double d_ends[2][2] = {{d * edge.qy, -d * edge.qx}, {-d * edge.py, d * edge.px}};
    for (int end = 0; end < 2; ++end) {
      float* out = d_positions + 4 * int64_t{end ? crossing.k : crossing.j};
      out[0] += static_cast<float>(d_ends[end][0]);
      out[1] += static_cast<float>(d_ends[end][1]);
      out[3] -= static_cast<float>(x * d_ends[end][0] + y * d_ends[end][1]);
    }
  };
  at(near, crossing.near, -far.value() * scale);
  at(far, crossing.far, near.value() * scale);
}

}  // namespace

void antialias_fwd(const AntialiasInputs& in, float* result, Parallel& parallel) {
  const int64_t width = in.width, size = in.width * in.height * in.channels;
  prefer_huge_pages(result, static_cast<uint64_t>(in.batch * size) * sizeof(float));
  each_image(in, parallel, [&](int64_t index, const View&, Objects<Band>& bands, int64_t number) {
    const float* image = in.image + index * size;
    float* out = result + index * size;
    parallel.run(number, [&](int64_t task, int) {
      const int64_t first = task * kBand, last = smaller(in.height, first + kBand), row = width * in.channels;
      std::memcpy(out + first * row, image + first * row, static_cast<uint64_t>((last - first) * row) * sizeof(float));
      for (int64_t y = first; y < last; ++y) {
        each_at_row(bands, y, [&](const Crossing& c) {
          const int64_t target = c.target();
          if (target / width != y) return;
          add_difference(out + target * in.channels, c.amount, image + c.near * in.channels, image + c.far * in.channels,
                         in.channels);
        });
      }
    });
  });
}

void antialias_bwd(const AntialiasInputs& in, const float* d_result, float* d_image, float* d_positions,
                   Parallel& parallel) {
  const int64_t width = in.width, size = in.width * in.height * in.channels;
  prefer_huge_pages(d_image, static_cast<uint64_t>(in.batch * size) * sizeof(float));
  each_image(in, parallel, [&](int64_t index, const View& view, Objects<Band>& bands, int64_t number) {
    const float *image = in.image + index * size, *d = d_result + index * size;
    float* out = d_image + index * size;
    parallel.run(number, [&](int64_t task, int) {
      const int64_t first = task * kBand, last = smaller(in.height, first + kBand), row = width * in.channels;
      std::memcpy(out + first * row, d + first * row, static_cast<uint64_t>((last - first) * row) * sizeof(float));
      for (int64_t y = first; y < last; ++y) {
        each_at_row(bands, y, [&](Crossing& c) {
          const float* from = d + c.target() * in.channels;
          if (c.near / width == y) {
            add(out + c.near * in.channels, c.amount, from, in.channels);
            c.d_amount = dot_difference(from, image + c.near * in.channels, image + c.far * in.channels, in.channels);
          }
          if (c.far / width == y) add(out + c.far * in.channels, -c.amount, from, in.channels);
        });
      }
    });
    // On one thread, in order: silhouettes are few.
    float* positions = d_positions + index * in.vertices * 4;
    set_zero(positions, in.vertices * 4);
    for (int64_t y = 0; y < in.height; ++y) {
      Band& band = bands[y / kBand];
      for (const Crossing* c = band.begin(y); c < band.end(y); ++c) positions_bwd(view, *c, positions);
    }
  });
}

}  // namespace GPHM_ISA
}  // namespace gphm
