// The CPU operations: plain structs of pointers, and one declaration per instruction set.
//
// Every op source is compiled once per instruction set with GPHM_ISA naming its namespace and GPHM_LANES the floats
// in a vector register; cpu_handlers.cc chooses one at run time. All arrays are contiguous, row-major float32.
#ifndef GPHM_CPU_OPS_H_
#define GPHM_CPU_OPS_H_

#include <cstdint>

#include "parallel.h"

namespace gphm {

struct ProjectInputs {
  int64_t batch, splats, channels;
  float near, far, eps2d;
  const float* means;            // [batch, splats, 3]
  const float* quats;            // [batch, splats, 4], wxyz
  const float* scales;           // [batch, splats, 3]
  const float* opacities;        // [batch, splats]
  const float* features;         // [batch, splats, channels]
  const float* world_to_camera;  // [batch, 4, 4]
  const float* intrinsics;       // [batch, 3, 3]
};

struct ProjectResults {
  float *means2d, *conics, *opacities, *depths;  // [batch, splats, 2 or 3 or none]
};

struct ProjectCotangents {
  const float *means2d, *conics, *opacities;  // shaped as the results
};

struct ProjectGradients {
  float *means, *quats, *scales, *opacities, *world_to_camera, *intrinsics;  // shaped as the inputs
};

struct BlendInputs {
  int64_t batch, splats, channels;
  int64_t width, height;
  const float* means;       // [batch, splats, 2], pixels
  const float* conics;      // [batch, splats, 3], a, b, c of the inverse covariance
  const float* opacities;   // [batch, splats]
  const float* depths;      // [batch, splats]
  const float* features;    // [batch, splats, channels]
  const float* background;  // [batch, channels]
};

struct BlendCotangents {
  const float* image;  // [batch, height, width, channels]
  const float* alpha;  // [batch, height, width]
};

struct BlendGradients {
  float *means, *conics, *opacities, *features, *background;  // shaped as the inputs
};

struct RasterizeInputs {
  int64_t batch, vertices, faces;
  int64_t width, height;
  const float* positions;  // [batch, vertices, 4], clip space
  const int32_t* indices;  // [faces, 3]
};

struct InterpolateInputs {
  int64_t batch, vertices, channels, faces;
  int64_t width, height;
  const float* attributes;  // [batch, vertices, channels]
  const float* raster;      // [batch, height, width, 4]: u, v, unused, face + 1
  const int32_t* indices;   // [faces, 3]
};

struct AntialiasInputs {
  int64_t batch, vertices, channels, faces;
  int64_t width, height;
  const float* image;      // [batch, height, width, channels]
  const float* raster;     // [batch, height, width, 4]: unused, unused, z/w, face + 1
  const float* positions;  // [batch, vertices, 4], clip space
  const int32_t* indices;  // [faces, 3]
};

struct TetrahedraInputs {
  int64_t batch, shape[3];  // grid vertices a side, z fastest
  int64_t max_vertices, max_faces;
  const float* sdf;            // [batch, shape]
  const int32_t* cube_number;  // [256] for each pattern of a cube's signs, how many faces
  const int32_t* cube_edges;   // [256, 12, 3, 2] and the edges that their corners lie on: corner of the cube, direction
};

struct TetrahedraResults {
  int32_t* edges;   // [batch, max_vertices, 2]
  int32_t* faces;   // [batch, max_faces, 3]
  int32_t* counts;  // [batch, 2]
};

struct MlpInputs {
  int64_t images, frames, rows;  // the frames of an image share its features and differ in the first layer's bias
  int64_t layers;
  const int64_t* sizes;     // [layers + 1]: features in, the width after each layer
  const float* features;    // [images, rows, sizes[0]]
  const float* parameters;  // per layer the weights [in, out], row-major, then the bias [out]
  const float* first_bias;  // [images, frames, sizes[1]]
};

struct MlpGradients {
  float *features, *parameters, *first_bias;  // shaped as the inputs
};

#define GPHM_DECLARE_OPS(isa)                                                                             \
  namespace isa {                                                                                         \
  void project_fwd(const ProjectInputs&, const ProjectResults&, Parallel&);                               \
  void project_bwd(const ProjectInputs&, const ProjectCotangents&, const ProjectGradients&, Parallel&);   \
  void blend_fwd(const BlendInputs&, float* image, float* alpha, Parallel&);                              \
  void blend_bwd(const BlendInputs&, const BlendCotangents&, const BlendGradients&, Parallel&);           \
  void rasterize_fwd(const RasterizeInputs&, float* raster, Parallel&);                                   \
  void rasterize_bwd(const RasterizeInputs&, const float* raster, const float* d_raster,                  \
                     float* d_positions, Parallel&);                                                      \
  void interpolate_fwd(const InterpolateInputs&, float* image, Parallel&);                                \
  void interpolate_bwd(const InterpolateInputs&, const float* d_image, float* d_attributes,               \
                       float* d_raster, Parallel&);                                                       \
  void antialias_fwd(const AntialiasInputs&, float* result, Parallel&);                                   \
  void antialias_bwd(const AntialiasInputs&, const float* d_result, float* d_image, float* d_positions,   \
                     Parallel&);                                                                          \
  void marching_tetrahedra(const TetrahedraInputs&, const TetrahedraResults&, Parallel&);                 \
  void mlp_fwd(const MlpInputs&, float* result, Parallel&);                                               \
  void mlp_bwd(const MlpInputs&, const float* d_result, const MlpGradients&, Parallel&);                  \
  }
GPHM_DECLARE_OPS(base)
#if defined(__x86_64__)
GPHM_DECLARE_OPS(v3)
GPHM_DECLARE_OPS(v4)
#endif
#undef GPHM_DECLARE_OPS

}  // namespace gphm

#endif  // GPHM_CPU_OPS_H_
