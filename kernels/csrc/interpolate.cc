// Vertex attributes at pixels, u A_0 + v A_1 + (1 - u - v) A_2, and back.
//
// Backward, the pixels' corners are sorted by vertex, so that each vertex sums its own in the order of the pixels:
// one store a row of the gradient, and the same bits for any number of threads.
#include "cpu_ops.h"
#include "memory.h"
#include "mesh.h"
#include "vectors.h"

namespace gphm {
namespace GPHM_ISA {

namespace {

constexpr int64_t kPixels = 2048, kVertices = 512;  // that one task takes

GPHM_INLINE float weight(const float* pixel, int64_t corner) {
  return corner == 0 ? pixel[0] : corner == 1 ? pixel[1] : 1.f - pixel[0] - pixel[1];
}

// The attributes of a face's corners; `zeros` for an index out of range.
GPHM_INLINE void corner_rows(const InterpolateInputs& in, const float* attributes, const float* zeros, int32_t face,
                             const float* (&rows)[3]) {
  for (int i = 0; i < 3; ++i) {
    const int32_t vertex = in.indices[3 * int64_t{face} + i];
    rows[i] = is_vertex(vertex, in.vertices) ? attributes + vertex * in.channels : zeros;
  }
}

void interpolate_pixels(const InterpolateInputs& in, const float* attributes, const float* zeros, const float* raster,
                        int64_t first, int64_t last, float* image) {
  const int64_t channels = in.channels;
  for (int64_t p = first; p < last; ++p) {
    float* out = image + p * channels;
    const float* pixel = raster + 4 * p;
    const int32_t face = seen_face(pixel[3], in.faces);
    if (face < 0) {
      std::memset(out, 0, static_cast<uint64_t>(channels) * sizeof(float));
      continue;
    }
    const float* rows[3];
    corner_rows(in, attributes, zeros, face, rows);
    const Vec u = splat(pixel[0]), v = splat(pixel[1]), rest = splat(weight(pixel, 2));
    each_vector(channels, [&](int64_t at, int64_t part) __attribute__((always_inline)) {
      store(out + at, u * load(rows[0] + at, part) + v * load(rows[1] + at, part) + rest * load(rows[2] + at, part),
            part);
    });
  }
}

// The cotangents of u and v, by the two differences of the corners' attributes.
void weights_bwd(const InterpolateInputs& in, const float* attributes, const float* zeros, const float* raster,
                 const float* d_image, int64_t first, int64_t last, float* d_raster) {
  for (int64_t p = first; p < last; ++p) {
    float* out = d_raster + 4 * p;
    out[0] = out[1] = out[2] = out[3] = 0.f;
    const int32_t face = seen_face(raster[4 * p + 3], in.faces);
    if (face < 0) continue;
    const float* rows[3];
    corner_rows(in, attributes, zeros, face, rows);
    const float* d = d_image + p * in.channels;
    Vec sums[2] = {};
    each_vector(in.channels, [&](int64_t at, int64_t part) __attribute__((always_inline)) {
      const Vec cotangent = load(d + at, part), last_row = load(rows[2] + at, part);
      for (int i = 0; i < 2; ++i) sums[i] += cotangent * (load(rows[i] + at, part) - last_row);
    });
    for (int i = 0; i < 2; ++i) out[i] = sum(sums[i]);
  }
}

// The sum of a vertex's corners over V vectors of channels, of which the last holds `part`.
template <int V>
GPHM_INLINE void sum_corners(const int32_t* begin, const int32_t* end, const float* raster, const float* d_image,
                             int64_t channels, int64_t part, float* out) {
  Vec sums[V] = {};
  for (const int32_t* corner = begin; corner < end; ++corner) {
    const int64_t pixel = *corner / 3;
    const Vec scale = splat(weight(raster + 4 * pixel, *corner % 3));
    const float* d = d_image + pixel * channels;
    for (int v = 0; v < V - 1; ++v) sums[v] += scale * load<Vec>(d + v * kLanes);
    sums[V - 1] += scale * load(d + (V - 1) * kLanes, part);
  }
  for (int v = 0; v < V - 1; ++v) store(out + v * kLanes, sums[v]);
  store(out + (V - 1) * kLanes, sums[V - 1], part);
}

void attributes_bwd(const InterpolateInputs& in, const Lists<int32_t>& lists, const float* raster,
                    const float* d_image, int64_t vertex, float* d_attributes) {
  const int32_t *begin = lists.begin(vertex), *end = lists.end(vertex);
  const int64_t channels = in.channels;
  float* out = d_attributes + vertex * channels;
  int64_t at = 0;
  for (; at + 4 * kLanes <= channels; at += 4 * kLanes) {
    sum_corners<4>(begin, end, raster, d_image + at, channels, kLanes, out + at);
  }
  for (; at + 2 * kLanes <= channels; at += 2 * kLanes) {
    sum_corners<2>(begin, end, raster, d_image + at, channels, kLanes, out + at);
  }
  if (channels - at > kLanes) {
    sum_corners<2>(begin, end, raster, d_image + at, channels, channels - at - kLanes, out + at);
  } else if (channels > at) {
    sum_corners<1>(begin, end, raster, d_image + at, channels, channels - at, out + at);
  }
}

}  // namespace

void interpolate_fwd(const InterpolateInputs& in, float* image, Parallel& parallel) {
  const int64_t pixels = in.width * in.height;
  prefer_huge_pages(image, static_cast<uint64_t>(in.batch * pixels * in.channels) * sizeof(float));
  Array<float> zeros;
  zeros.zero(in.channels);
  const int64_t tasks = blocks(pixels, kPixels);
  parallel.run(in.batch * tasks, [&](int64_t task, int) {
    const int64_t index = task / tasks, first = task % tasks * kPixels;
    interpolate_pixels(in, in.attributes + index * in.vertices * in.channels, zeros.data(),
                       in.raster + index * pixels * 4, first, smaller(pixels, first + kPixels),
                       image + index * pixels * in.channels);
  });
}

void interpolate_bwd(const InterpolateInputs& in, const float* d_image, float* d_attributes, float* d_raster,
                     Parallel& parallel) {
  const int64_t pixels = in.width * in.height, size = in.vertices * in.channels;
  prefer_huge_pages(d_attributes, static_cast<uint64_t>(in.batch * size) * sizeof(float));
  prefer_huge_pages(d_raster, static_cast<uint64_t>(in.batch * pixels * 4) * sizeof(float));
  Array<float> zeros;
  zeros.zero(in.channels);
  Lists<int32_t> lists;
  for (int64_t index = 0; index < in.batch; ++index) {
    const float* raster = in.raster + index * pixels * 4;
    const float* d = d_image + index * pixels * in.channels;
    list_corners(raster, pixels, in.indices, in.faces, in.vertices, parallel, &lists);
    const int64_t by_pixel = blocks(pixels, kPixels), by_vertex = blocks(in.vertices, kVertices);
    parallel.run(by_pixel + by_vertex, [&](int64_t task, int) {
      if (task < by_pixel) {
        const int64_t first = task * kPixels;
        weights_bwd(in, in.attributes + index * size, zeros.data(), raster, d, first, smaller(pixels, first + kPixels),
                    d_raster + index * pixels * 4);
      } else {
        const int64_t first = (task - by_pixel) * kVertices;
        for (int64_t vertex = first; vertex < smaller(in.vertices, first + kVertices); ++vertex) {
          attributes_bwd(in, lists, raster, d, vertex, d_attributes + index * size);
        }
      }
    });
  }
}

}  // namespace GPHM_ISA
}  // namespace gphm
