// Triangle rasterizer: clip-space positions and faces -> (u, v, z/w, face + 1) per pixel.
//
// Homogeneous edge functions, so no triangle is ever clipped: with p_i = (x_i, y_i, w_i), e_i = p_j x p_k (i, j, k in
// cyclic order) and P = (X, Y, 1) the pixel's centre in normalised device coordinates,
//
//   b_i = (e_i . P) / sum_j (e_j . P)       perspective-correct barycentrics: u = b_0, v = b_1, 1 - u - v = b_2
//   z/w = sum_i (e_i . P) z_i / det         det = p_0 . (p_1 x p_2)
//
// In double, the coefficients of an edge are correctly rounded from float positions and so exact negatives of each
// other in the two faces that share it: no cracks, no pixel drawn twice. Both orientations are drawn.
//
// Backward, each pixel's gradients to its face's corners are written once, then summed by vertex in the order of the
// pixels.
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu_ops.h"
#include "memory.h"
#include "mesh.h"
#include "vectors.h"

namespace gphm {
namespace GPHM_ISA {

namespace {

constexpr int64_t kBand = 8;  // rows of pixels that one task owns
constexpr int64_t kChunk = 2048;

struct Face {
  double x[3], y[3], one[3];  // e_i . P = x_i X + y_i Y + one_i, non-negative inside
  double depth_x, depth_y, depth_one;
  bool owns[3];  // whether pixel centres exactly on edge i belong to this face
};

struct Rectangle {  // of pixels, inclusive
  int32_t left, right, top, bottom;
  bool empty() const { return left > right || top > bottom; }
};

// The pixels [first, last] whose centres lie in [low, high], in normalised device coordinates along `size` pixels.
void pixel_range(double low, double high, int64_t size, int32_t* first, int32_t* last) {
  double n = static_cast<double>(size), slack = 1e-6 * n + 1e-3;
  double from = (low + 1) * 0.5 * n - 0.5 - slack, to = (high + 1) * 0.5 * n - 0.5 + slack;
  from = from > 0 ? (from < n ? from : n) : 0;
  to = to < n - 1 ? (to > -1 ? to : -1) : n - 1;
  *first = static_cast<int32_t>(std::ceil(from));
  *last = static_cast<int32_t>(std::floor(to));
}

// Whether all corners lie beyond one plane of the view volume.
bool outside_volume(const float* const (&p)[3]) {
  for (int axis = 0; axis < 3; ++axis) {
    bool above = true, below = true;
    for (int i = 0; i < 3; ++i) {
      above = above && p[i][axis] > p[i][3];
      below = below && p[i][axis] < -p[i][3];
    }
    if (above || below) return true;
  }
  return false;
}

Rectangle bound(const float* const (&p)[3], int64_t width, int64_t height) {
  Rectangle all{0, static_cast<int32_t>(width - 1), 0, static_cast<int32_t>(height - 1)};
  double low[2] = {1e300, 1e300}, high[2] = {-1e300, -1e300};
  for (int i = 0; i < 3; ++i) {
    if (!(p[i][3] > 0)) return all;  // reaches behind the camera: its image may extend to anywhere
    const double scale = 1.0 / p[i][3];
    for (int axis = 0; axis < 2; ++axis) {
      const double value = p[i][axis] * scale;
      low[axis] = value < low[axis] ? value : low[axis];
      high[axis] = value > high[axis] ? value : high[axis];
    }
  }
  pixel_range(low[0], high[0], width, &all.left, &all.right);
  pixel_range(-high[1], -low[1], height, &all.top, &all.bottom);  // row 0 is at Y = +1
  return all;
}

// The pixels that a face may cover, and the face if there are any. Degenerate faces, bad indices and positions that
// are not finite cover none.
Rectangle set_up(const RasterizeInputs& in, const float* positions, const int32_t* corner, Face* face) {
  constexpr Rectangle kNothing{1, 0, 1, 0};
  if (!is_drawable(corner, in.vertices)) return kNothing;
  const float* p[3];
  for (int i = 0; i < 3; ++i) {
    p[i] = positions + int64_t{4} * corner[i];
    if (!is_finite(p[i])) return kNothing;
  }
  if (outside_volume(p)) return kNothing;
  const Rectangle rectangle = bound(p, in.width, in.height);
  if (rectangle.empty()) return kNothing;
  for (int i = 0; i < 3; ++i) {
    const float *a = p[(i + 1) % 3], *b = p[(i + 2) % 3];
    double ax = a[0], ay = a[1], aw = a[3], bx = b[0], by = b[1], bw = b[3];
    face->x[i] = ay * bw - aw * by;
    face->y[i] = aw * bx - ax * bw;
    face->one[i] = ax * by - ay * bx;
  }
  double determinant = p[0][0] * face->x[0] + p[0][1] * face->y[0] + p[0][3] * face->one[0];
  if (!(determinant != 0) || !std::isfinite(determinant)) return kNothing;
  face->depth_x = face->depth_y = face->depth_one = 0;
  for (int i = 0; i < 3; ++i) {
    double scale = p[i][2] / determinant;
    face->depth_x += face->x[i] * scale, face->depth_y += face->y[i] * scale, face->depth_one += face->one[i] * scale;
    if (determinant < 0) face->x[i] = -face->x[i], face->y[i] = -face->y[i], face->one[i] = -face->one[i];
    // Top-left rule: a left edge has the inside at greater X, a top edge is level with the inside at smaller Y.
    face->owns[i] = face->x[i] > 0 || (face->x[i] == 0 && face->y[i] < 0);
  }
  return rectangle;
}

struct Worker {
  Array<float> depth;
  Array<int32_t> face;
};

void draw(const Face& f, const Rectangle& rectangle, int32_t index, const Centres& centres, int64_t width,
          int64_t first, int64_t last, Worker& worker) {
  for (int64_t y = larger(first, rectangle.top); y <= smaller(last - 1, rectangle.bottom); ++y) {
    const double at_y = centres.y[y];
    double row[3];
    for (int i = 0; i < 3; ++i) row[i] = f.y[i] * at_y + f.one[i];
    const double depth_row = f.depth_y * at_y + f.depth_one;
    float* depth = worker.depth.data() + (y - first) * width;
    int32_t* face = worker.face.data() + (y - first) * width;
    for (int64_t x = rectangle.left; x <= rectangle.right; ++x) {
      const double at_x = centres.x[x];
      bool inside = true;
      for (int i = 0; i < 3; ++i) {
        double e = f.x[i] * at_x + row[i];
        inside = inside & ((e > 0) | ((e == 0) & f.owns[i]));
      }
      if (!inside) continue;
      float z = static_cast<float>(f.depth_x * at_x + depth_row);
      if (z >= -1.f && z <= 1.f && z < depth[x]) depth[x] = z, face[x] = index;
    }
  }
}

void draw_band(const RasterizeInputs& in, const Face* faces, const Rectangle* rectangles, const Lists<int32_t>& bands,
               int64_t band, const Centres& centres, float* raster, Worker& worker) {
  const int64_t first = band * kBand, last = smaller(in.height, first + kBand), pixels = (last - first) * in.width;
  worker.depth.reserve(kBand * in.width);
  worker.face.reserve(kBand * in.width);
  for (int64_t i = 0; i < pixels; ++i) {
    worker.depth[i] = std::numeric_limits<float>::infinity();
    worker.face[i] = -1;
  }
  for (const int32_t* face = bands.begin(band); face < bands.end(band); ++face) {
    draw(faces[*face], rectangles[*face], *face, centres, in.width, first, last, worker);
  }
  for (int64_t y = first; y < last; ++y) {
    for (int64_t x = 0; x < in.width; ++x) {
      const int64_t i = (y - first) * in.width + x;
      float* out = raster + (y * in.width + x) * 4;
      if (worker.face[i] < 0) {
        out[0] = out[1] = out[2] = out[3] = 0.f;
        continue;
      }
      const Face& f = faces[worker.face[i]];
      double e[3];
      for (int k = 0; k < 3; ++k) e[k] = f.x[k] * centres.x[x] + (f.y[k] * centres.y[y] + f.one[k]);
      const double scale = 1 / (e[0] + e[1] + e[2]);  // positive: no e is negative, and not all are zero
      out[0] = static_cast<float>(e[0] * scale);
      out[1] = static_cast<float>(e[1] * scale);
      out[2] = worker.depth[i];
      out[3] = static_cast<float>(worker.face[i] + 1);
    }
  }
}

// What a pixel's (u, v, z/w) sends back to the corners of its face, [3][4]: about the pixel, with p_i = x_i - X w_i and
// q_i = y_i - Y w_i, a_i = p_j q_k - q_j p_k is e_i . P and z/w = sum_i a_i z_i / sum_i a_i w_i.
void corners_bwd(const float* const (&corner)[3], double x, double y, const float* d_pixel, float* d_corners) {
  double p[3], q[3], a[3], d_a[3];
  for (int i = 0; i < 3; ++i) p[i] = corner[i][0] - x * corner[i][3], q[i] = corner[i][1] - y * corner[i][3];
  double whole = 0, depth = 0, scale = 0;
  for (int i = 0; i < 3; ++i) {
    const int j = (i + 1) % 3, k = (i + 2) % 3;
    a[i] = p[j] * q[k] - q[j] * p[k];
    whole += a[i], depth += a[i] * corner[i][2], scale += a[i] * corner[i][3];
  }
  depth /= scale;
  const double d_depth = d_pixel[2] / scale, mean = (d_pixel[0] * a[0] + d_pixel[1] * a[1]) / whole;
  for (int i = 0; i < 3; ++i) {
    d_a[i] = ((i < 2 ? d_pixel[i] : 0.0) - mean) / whole + d_depth * (corner[i][2] - depth * corner[i][3]);
  }
  for (int i = 0; i < 3; ++i) {
    const int j = (i + 1) % 3, k = (i + 2) % 3;
    const double d_p = d_a[k] * q[j] - d_a[j] * q[k], d_q = d_a[j] * p[k] - d_a[k] * p[j];
    d_corners[4 * i] = static_cast<float>(d_p);
    d_corners[4 * i + 1] = static_cast<float>(d_q);
    d_corners[4 * i + 2] = static_cast<float>(d_depth * a[i]);
    d_corners[4 * i + 3] = static_cast<float>(-d_depth * depth * a[i] - x * d_p - y * d_q);
  }
}

}  // namespace

void rasterize_fwd(const RasterizeInputs& in, float* raster, Parallel& parallel) {
  const int64_t bands_number = blocks(in.height, kBand);
  const Centres centres(in.width, in.height);
  Array<Face> faces(in.faces);
  Array<Rectangle> rectangles(in.faces);
  Lists<int32_t> bands;  // which faces touch each band of rows, by index, so that the lower index wins ties
  Objects<Worker> workers(parallel.workers());
  for (int64_t index = 0; index < in.batch; ++index) {
    const float* positions = in.positions + index * in.vertices * 4;
    parallel.run(blocks(in.faces, kChunk), [&](int64_t task, int) {
      for (int64_t i = task * kChunk; i < smaller(in.faces, (task + 1) * kChunk); ++i) {
        rectangles[i] = set_up(in, positions, in.indices + 3 * i, &faces[i]);
      }
    });
    bands.fill(in.faces, bands_number, parallel, [&](int64_t first, int64_t last, const auto& add) {
      for (int64_t i = first; i < last; ++i) {
        if (rectangles[i].empty()) continue;
        for (int64_t band = rectangles[i].top / kBand; band <= rectangles[i].bottom / kBand; ++band) {
          add(band, static_cast<int32_t>(i));
        }
      }
    });
    parallel.run(bands_number, [&](int64_t band, int worker) {
      draw_band(in, faces.data(), rectangles.data(), bands, band, centres, raster + index * in.width * in.height * 4,
                workers[worker]);
    });
  }
}

void rasterize_bwd(const RasterizeInputs& in, const float* raster, const float* d_raster, float* d_positions,
                   Parallel& parallel) {
  const int64_t pixels = in.width * in.height;
  const Centres centres(in.width, in.height);
  Lists<int32_t> lists;
  Array<float> d_corners(pixels * 12);
  for (int64_t index = 0; index < in.batch; ++index) {
    const float *positions = in.positions + index * in.vertices * 4, *image = raster + index * pixels * 4;
    list_corners(image, pixels, in.indices, in.faces, in.vertices, parallel, &lists);
    parallel.run(in.height, [&](int64_t y, int) {
      for (int64_t pixel = y * in.width; pixel < (y + 1) * in.width; ++pixel) {
        const int32_t face = seen_face(image[4 * pixel + 3], in.faces);
        if (face < 0) continue;
        const float* corner[3];
        bool known = true;
        for (int i = 0; i < 3; ++i) {
          const int32_t vertex = in.indices[3 * int64_t{face} + i];
          known = known && is_vertex(vertex, in.vertices);
          corner[i] = positions + 4 * int64_t{known ? vertex : 0};
        }
        float* out = d_corners.data() + 12 * pixel;
        if (known) {
          corners_bwd(corner, centres.x[pixel - y * in.width], centres.y[y],
                      d_raster + (index * pixels + pixel) * 4, out);
        } else {  // not of this rasterizer's making
          std::memset(out, 0, 12 * sizeof(float));
        }
      }
    });
    parallel.run(blocks(in.vertices, kChunk), [&](int64_t task, int) {
      for (int64_t vertex = task * kChunk; vertex < smaller(in.vertices, (task + 1) * kChunk); ++vertex) {
        Vec4 sum{};
        for (const int32_t* at = lists.begin(vertex); at < lists.end(vertex); ++at) {
          sum += load<Vec4>(d_corners.data() + 4 * int64_t{*at});
        }
        store(d_positions + (index * in.vertices + vertex) * 4, sum);
      }
    });
  }
}

}  // namespace GPHM_ISA
}  // namespace gphm
