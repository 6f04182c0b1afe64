// The boundary of the CPU library for meshes: XLA FFI handlers, and the same ops as plain C functions.
#include <string>

#include "handlers.h"

namespace gphm {
namespace {

// --- checks ---

constexpr int64_t kMaxFaces = (1 << 24) - 1;        // face + 1 must be exact in float32
constexpr int64_t kMaxCorners = (int64_t{1} << 31) - 1;  // 3 a pixel, numbered in int32
constexpr int kCubePatterns = 256, kCubeFaces = 12;

std::string check_image(const char* op, int64_t width, int64_t height, int64_t faces) {
  const std::string name(op);
  if (width < 1 || height < 1 || width > kMaxPixels || height > kMaxPixels) {
    return name + ": width and height must be from 1 to 1048576 pixels";
  }
  if (3 * width * height > kMaxCorners) return name + ": an image of more than 2^31 / 3 pixels; draw it in parts";
  if (faces > kMaxFaces) return name + ": more than 2^24 - 1 faces, whose indices float32 cannot hold";
  return "";
}

std::string check_tetrahedra(const TetrahedraInputs& in) {
  const std::string name = "marching_tetrahedra";
  int64_t edges = 7;
  for (int64_t side : in.shape) {
    if (side < 2) return name + ": the grid must have at least 2 vertices a side";
    if (side > kMaxCorners / edges) return name + ": more edges than int32 can number; use fewer cells";
    edges *= side;
  }
  if (in.max_vertices < 1 || in.max_faces < 1) return name + ": max_vertices and max_faces must be at least 1";
  // The tables lead into memory.
  for (int code = 0; code < kCubePatterns; ++code) {
    const int32_t number = in.cube_number[code];
    if (number < 0 || number > kCubeFaces) return name + ": a cube has from 0 to 12 faces";
    for (int i = 0; i < 6 * number; i += 2) {
      const int32_t* edge = in.cube_edges + code * kCubeFaces * 6 + i;
      if (edge[0] < 0 || edge[0] > 7 || edge[1] < 0 || edge[1] > 6 || (edge[0] & (edge[1] + 1))) {
        return name + ": an edge of a cube's faces leaves the cube";
      }
    }
  }
  return "";
}

// --- ops ---

std::string run_rasterize_fwd(const RasterizeInputs& in, float* raster, Parallel& pool, int32_t isa) {
  return guarded("rasterize_fwd", check_image("rasterize_fwd", in.width, in.height, in.faces), isa,
                 [&](int chosen) { GPHM_DISPATCH(chosen, rasterize_fwd(in, raster, pool)); });
}

std::string run_rasterize_bwd(const RasterizeInputs& in, const float* raster, const float* d_raster,
                              float* d_positions, Parallel& pool, int32_t isa) {
  return guarded("rasterize_bwd", check_image("rasterize_bwd", in.width, in.height, in.faces), isa, [&](int chosen) {
    GPHM_DISPATCH(chosen, rasterize_bwd(in, raster, d_raster, d_positions, pool));
  });
}

std::string run_interpolate_fwd(const InterpolateInputs& in, float* image, Parallel& pool, int32_t isa) {
  return guarded("interpolate_fwd", check_image("interpolate_fwd", in.width, in.height, in.faces), isa,
                 [&](int chosen) { GPHM_DISPATCH(chosen, interpolate_fwd(in, image, pool)); });
}

std::string run_interpolate_bwd(const InterpolateInputs& in, const float* d_image, float* d_attributes,
                                float* d_raster, Parallel& pool, int32_t isa) {
  return guarded("interpolate_bwd", check_image("interpolate_bwd", in.width, in.height, in.faces), isa,
                 [&](int chosen) {
                   GPHM_DISPATCH(chosen, interpolate_bwd(in, d_image, d_attributes, d_raster, pool));
                 });
}

std::string run_antialias_fwd(const AntialiasInputs& in, float* result, Parallel& pool, int32_t isa) {
  return guarded("antialias_fwd", check_image("antialias_fwd", in.width, in.height, in.faces), isa,
                 [&](int chosen) { GPHM_DISPATCH(chosen, antialias_fwd(in, result, pool)); });
}

std::string run_antialias_bwd(const AntialiasInputs& in, const float* d_result, float* d_image, float* d_positions,
                              Parallel& pool, int32_t isa) {
  return guarded("antialias_bwd", check_image("antialias_bwd", in.width, in.height, in.faces), isa, [&](int chosen) {
    GPHM_DISPATCH(chosen, antialias_bwd(in, d_result, d_image, d_positions, pool));
  });
}

std::string run_marching_tetrahedra(const TetrahedraInputs& in, const TetrahedraResults& out, Parallel& pool,
                                    int32_t isa) {
  return guarded("marching_tetrahedra", check_tetrahedra(in), isa,
                 [&](int chosen) { GPHM_DISPATCH(chosen, marching_tetrahedra(in, out, pool)); });
}

// --- FFI handlers ---

std::string rasterize_shapes(const Floats& positions, const Ints& faces, int64_t width, int64_t height,
                             RasterizeInputs* in) {
  const std::string expected = "rasterize: clip_positions must be [b, v, 4] and faces [f, 3]";
  if (positions.dimensions().size() != 3 || faces.dimensions().size() != 2) return expected;
  const int64_t b = positions.dimensions()[0], v = positions.dimensions()[1], f = faces.dimensions()[0];
  if (!has_shape(positions, {b, v, 4}) || !has_shape(faces, {f, 3})) return expected;
  *in = RasterizeInputs{b, v, f, width, height, positions.typed_data(), faces.typed_data()};
  return "";
}

ffi::Error rasterize_fwd_handler(ffi::ThreadPool pool, int32_t width, int32_t height, int32_t num_threads, int32_t isa,
                                 Floats positions, Ints faces, FloatsOut raster) {
  RasterizeInputs in;
  std::string problem = rasterize_shapes(positions, faces, width, height, &in);
  if (!problem.empty()) return to_error(problem);
  if (!has_shape(*raster, {in.batch, height, width, 4})) {
    return to_error("rasterize_fwd: the result must be [b, height, width, 4]");
  }
  XlaPool parallel(pool, num_threads);
  return to_error(run_rasterize_fwd(in, raster->typed_data(), parallel, isa));
}

ffi::Error rasterize_bwd_handler(ffi::ThreadPool pool, int32_t width, int32_t height, int32_t num_threads, int32_t isa,
                                 Floats positions, Ints faces, Floats raster, Floats d_raster, FloatsOut d_positions) {
  RasterizeInputs in;
  std::string problem = rasterize_shapes(positions, faces, width, height, &in);
  if (!problem.empty()) return to_error(problem);
  if (!has_shape(raster, {in.batch, height, width, 4}) || !has_shape(d_raster, {in.batch, height, width, 4}) ||
      !has_shape(*d_positions, {in.batch, in.vertices, 4})) {
    return to_error("rasterize_bwd: raster and its cotangent must be [b, height, width, 4], the result [b, v, 4]");
  }
  XlaPool parallel(pool, num_threads);
  return to_error(run_rasterize_bwd(in, raster.typed_data(), d_raster.typed_data(), d_positions->typed_data(),
                                    parallel, isa));
}

std::string interpolate_shapes(const Floats& attributes, const Floats& raster, const Ints& faces,
                               InterpolateInputs* in) {
  const std::string expected = "interpolate: attributes must be [b, v, c], raster [b, h, w, 4] and faces [f, 3]";
  if (attributes.dimensions().size() != 3 || raster.dimensions().size() != 4 || faces.dimensions().size() != 2) {
    return expected;
  }
  const int64_t b = attributes.dimensions()[0], v = attributes.dimensions()[1], c = attributes.dimensions()[2];
  const int64_t h = raster.dimensions()[1], w = raster.dimensions()[2], f = faces.dimensions()[0];
  if (!has_shape(raster, {b, h, w, 4}) || !has_shape(faces, {f, 3})) return expected;
  *in = InterpolateInputs{b, v, c, f, w, h, attributes.typed_data(), raster.typed_data(), faces.typed_data()};
  return "";
}

ffi::Error interpolate_fwd_handler(ffi::ThreadPool pool, int32_t num_threads, int32_t isa, Floats attributes,
                                   Floats raster, Ints faces, FloatsOut image) {
  InterpolateInputs in;
  std::string problem = interpolate_shapes(attributes, raster, faces, &in);
  if (!problem.empty()) return to_error(problem);
  if (!has_shape(*image, {in.batch, in.height, in.width, in.channels})) {
    return to_error("interpolate_fwd: the result must be [b, h, w, c]");
  }
  XlaPool parallel(pool, num_threads);
  return to_error(run_interpolate_fwd(in, image->typed_data(), parallel, isa));
}

ffi::Error interpolate_bwd_handler(ffi::ThreadPool pool, int32_t num_threads, int32_t isa, Floats attributes,
                                   Floats raster, Ints faces, Floats d_image, FloatsOut d_attributes,
                                   FloatsOut d_raster) {
  InterpolateInputs in;
  std::string problem = interpolate_shapes(attributes, raster, faces, &in);
  if (!problem.empty()) return to_error(problem);
  if (!has_shape(d_image, {in.batch, in.height, in.width, in.channels}) ||
      !has_shape(*d_attributes, {in.batch, in.vertices, in.channels}) ||
      !has_shape(*d_raster, {in.batch, in.height, in.width, 4})) {
    return to_error("interpolate_bwd: d_image must be [b, h, w, c], results shaped as attributes and raster");
  }
  XlaPool parallel(pool, num_threads);
  return to_error(run_interpolate_bwd(in, d_image.typed_data(), d_attributes->typed_data(), d_raster->typed_data(),
                                      parallel, isa));
}

std::string antialias_shapes(const Floats& image, const Floats& raster, const Floats& positions, const Ints& faces,
                             AntialiasInputs* in) {
  const std::string expected =
      "antialias: image must be [b, h, w, c], raster [b, h, w, 4], clip_positions [b, v, 4] and faces [f, 3]";
  if (image.dimensions().size() != 4 || positions.dimensions().size() != 3 || faces.dimensions().size() != 2) {
    return expected;
  }
  const int64_t b = image.dimensions()[0], h = image.dimensions()[1], w = image.dimensions()[2];
  const int64_t c = image.dimensions()[3], v = positions.dimensions()[1], f = faces.dimensions()[0];
  if (!has_shape(raster, {b, h, w, 4}) || !has_shape(positions, {b, v, 4}) || !has_shape(faces, {f, 3})) {
    return expected;
  }
  *in = AntialiasInputs{b, v, c, f, w, h, image.typed_data(), raster.typed_data(), positions.typed_data(),
                        faces.typed_data()};
  return "";
}

ffi::Error antialias_fwd_handler(ffi::ThreadPool pool, int32_t num_threads, int32_t isa, Floats image, Floats raster,
                                 Floats positions, Ints faces, FloatsOut result) {
  AntialiasInputs in;
  std::string problem = antialias_shapes(image, raster, positions, faces, &in);
  if (!problem.empty()) return to_error(problem);
  if (!has_shape(*result, {in.batch, in.height, in.width, in.channels})) {
    return to_error("antialias_fwd: the result must be shaped as the image");
  }
  XlaPool parallel(pool, num_threads);
  return to_error(run_antialias_fwd(in, result->typed_data(), parallel, isa));
}

ffi::Error antialias_bwd_handler(ffi::ThreadPool pool, int32_t num_threads, int32_t isa, Floats image, Floats raster,
                                 Floats positions, Ints faces, Floats d_result, FloatsOut d_image,
                                 FloatsOut d_positions) {
  AntialiasInputs in;
  std::string problem = antialias_shapes(image, raster, positions, faces, &in);
  if (!problem.empty()) return to_error(problem);
  if (!has_shape(d_result, {in.batch, in.height, in.width, in.channels}) ||
      !has_shape(*d_image, {in.batch, in.height, in.width, in.channels}) ||
      !has_shape(*d_positions, {in.batch, in.vertices, 4})) {
    return to_error("antialias_bwd: d_result must be shaped as the image, results as image and clip_positions");
  }
  XlaPool parallel(pool, num_threads);
  return to_error(run_antialias_bwd(in, d_result.typed_data(), d_image->typed_data(), d_positions->typed_data(),
                                    parallel, isa));
}

ffi::Error marching_tetrahedra_handler(ffi::ThreadPool pool, int32_t max_vertices, int32_t max_faces,
                                       int32_t num_threads, int32_t isa, Floats sdf, Ints cube_number, Ints cube_edges,
                                       IntsOut edges, IntsOut faces, IntsOut counts) {
  if (sdf.dimensions().size() != 4) return to_error("marching_tetrahedra: sdf must be [b, x, y, z]");
  const int64_t b = sdf.dimensions()[0];
  if (!has_shape(cube_number, {kCubePatterns}) || !has_shape(cube_edges, {kCubePatterns, kCubeFaces, 3, 2}) ||
      !has_shape(*edges, {b, max_vertices, 2}) || !has_shape(*faces, {b, max_faces, 3}) ||
      !has_shape(*counts, {b, 2})) {
    return to_error("marching_tetrahedra: tables must be [256] and [256, 12, 3, 2], results [b, max_vertices, 2], "
                    "[b, max_faces, 3] and [b, 2]");
  }
  TetrahedraInputs in{b, {sdf.dimensions()[1], sdf.dimensions()[2], sdf.dimensions()[3]}, max_vertices, max_faces,
                      sdf.typed_data(), cube_number.typed_data(), cube_edges.typed_data()};
  XlaPool parallel(pool, num_threads);
  return to_error(run_marching_tetrahedra(
      in, TetrahedraResults{edges->typed_data(), faces->typed_data(), counts->typed_data()}, parallel, isa));
}

}  // namespace
}  // namespace gphm

#define GPHM_BINDING ffi::Ffi::Bind().Ctx<ffi::ThreadPool>() GPHM_COMMON_ATTRIBUTES

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(gphm_rasterize_fwd, gphm::rasterize_fwd_handler,
                              GPHM_IMAGE_BINDING GPHM_FLOATS GPHM_INTS GPHM_FLOATS_OUT);
XLA_FFI_DEFINE_HANDLER_SYMBOL(gphm_rasterize_bwd, gphm::rasterize_bwd_handler,
                              GPHM_IMAGE_BINDING GPHM_FLOATS GPHM_INTS GPHM_FLOATS GPHM_FLOATS GPHM_FLOATS_OUT);
XLA_FFI_DEFINE_HANDLER_SYMBOL(gphm_interpolate_fwd, gphm::interpolate_fwd_handler,
                              GPHM_BINDING GPHM_FLOATS GPHM_FLOATS GPHM_INTS GPHM_FLOATS_OUT);
XLA_FFI_DEFINE_HANDLER_SYMBOL(gphm_interpolate_bwd, gphm::interpolate_bwd_handler,
                              GPHM_BINDING GPHM_FLOATS GPHM_FLOATS GPHM_INTS GPHM_FLOATS GPHM_FLOATS_OUT
                                  GPHM_FLOATS_OUT);
XLA_FFI_DEFINE_HANDLER_SYMBOL(gphm_antialias_fwd, gphm::antialias_fwd_handler,
                              GPHM_BINDING GPHM_FLOATS GPHM_FLOATS GPHM_FLOATS GPHM_INTS GPHM_FLOATS_OUT);
XLA_FFI_DEFINE_HANDLER_SYMBOL(gphm_antialias_bwd, gphm::antialias_bwd_handler,
                              GPHM_BINDING GPHM_FLOATS GPHM_FLOATS GPHM_FLOATS GPHM_INTS GPHM_FLOATS GPHM_FLOATS_OUT
                                  GPHM_FLOATS_OUT);
XLA_FFI_DEFINE_HANDLER_SYMBOL(gphm_marching_tetrahedra, gphm::marching_tetrahedra_handler,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<int32_t>("max_vertices")
                                  .Attr<int32_t>("max_faces") GPHM_COMMON_ATTRIBUTES GPHM_FLOATS GPHM_INTS GPHM_INTS
                                  GPHM_INTS_OUT GPHM_INTS_OUT GPHM_INTS_OUT);
#pragma GCC visibility pop

// The C functions take sizes, a table of inputs and a table of outputs: float32, indices int32.

namespace {

const float* floats(const void* array) { return static_cast<const float*>(array); }
const int32_t* ints(const void* array) { return static_cast<const int32_t*>(array); }

// `sizes` is batch, vertices, faces, width, height; `inputs` begins with the positions and the indices.
gphm::RasterizeInputs rasterize_inputs(const int64_t* sizes, const void* const* inputs) {
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], floats(inputs[0]), ints(inputs[1])};
}

// `sizes` is batch, vertices, channels, faces, width, height; `inputs` begins with attributes, raster and indices.
gphm::InterpolateInputs interpolate_inputs(const int64_t* sizes, const void* const* inputs) {
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], floats(inputs[0]), floats(inputs[1]),
          ints(inputs[2])};
}

// `sizes` as in interpolate_inputs; `inputs` begins with image, raster, positions and indices.
gphm::AntialiasInputs antialias_inputs(const int64_t* sizes, const void* const* inputs) {
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], floats(inputs[0]), floats(inputs[1]),
          floats(inputs[2]), ints(inputs[3])};
}

}  // namespace

// `outputs` is the raster.
GPHM_EXPORT int32_t gphm_c_rasterize_fwd(const int64_t* sizes, const void* const* inputs, float* const* outputs,
                                         int32_t num_threads, int32_t isa, char* message, int64_t room) {
  gphm::OwnThreads pool(num_threads);
  return gphm::report(gphm::run_rasterize_fwd(rasterize_inputs(sizes, inputs), outputs[0], pool, isa), message, room);
}

// `inputs` goes on with the raster and its cotangent; `outputs` is d_positions.
GPHM_EXPORT int32_t gphm_c_rasterize_bwd(const int64_t* sizes, const void* const* inputs, float* const* outputs,
                                         int32_t num_threads, int32_t isa, char* message, int64_t room) {
  gphm::OwnThreads pool(num_threads);
  return gphm::report(gphm::run_rasterize_bwd(rasterize_inputs(sizes, inputs), floats(inputs[2]), floats(inputs[3]),
                                              outputs[0], pool, isa),
                      message, room);
}

// `outputs` is the image.
GPHM_EXPORT int32_t gphm_c_interpolate_fwd(const int64_t* sizes, const void* const* inputs, float* const* outputs,
                                           int32_t num_threads, int32_t isa, char* message, int64_t room) {
  gphm::OwnThreads pool(num_threads);
  return gphm::report(gphm::run_interpolate_fwd(interpolate_inputs(sizes, inputs), outputs[0], pool, isa), message,
                      room);
}

// `inputs` goes on with d_image; `outputs` is d_attributes, d_raster.
GPHM_EXPORT int32_t gphm_c_interpolate_bwd(const int64_t* sizes, const void* const* inputs, float* const* outputs,
                                           int32_t num_threads, int32_t isa, char* message, int64_t room) {
  gphm::OwnThreads pool(num_threads);
  return gphm::report(gphm::run_interpolate_bwd(interpolate_inputs(sizes, inputs), floats(inputs[3]), outputs[0],
                                                outputs[1], pool, isa),
                      message, room);
}

// `outputs` is the blended image.
GPHM_EXPORT int32_t gphm_c_antialias_fwd(const int64_t* sizes, const void* const* inputs, float* const* outputs,
                                         int32_t num_threads, int32_t isa, char* message, int64_t room) {
  gphm::OwnThreads pool(num_threads);
  return gphm::report(gphm::run_antialias_fwd(antialias_inputs(sizes, inputs), outputs[0], pool, isa), message, room);
}

// `inputs` goes on with d_result; `outputs` is d_image, d_positions.
GPHM_EXPORT int32_t gphm_c_antialias_bwd(const int64_t* sizes, const void* const* inputs, float* const* outputs,
                                         int32_t num_threads, int32_t isa, char* message, int64_t room) {
  gphm::OwnThreads pool(num_threads);
  return gphm::report(gphm::run_antialias_bwd(antialias_inputs(sizes, inputs), floats(inputs[4]), outputs[0],
                                              outputs[1], pool, isa),
                      message, room);
}

// `sizes` is batch, the vertices a side, max_vertices, max_faces; `inputs` is the sdf and the two tables; `outputs` as
// in TetrahedraResults.
GPHM_EXPORT int32_t gphm_c_marching_tetrahedra(const int64_t* sizes, const void* const* inputs,
                                               int32_t* const* outputs, int32_t num_threads, int32_t isa,
                                               char* message, int64_t room) {
  gphm::OwnThreads pool(num_threads);
  gphm::TetrahedraInputs in{sizes[0], {sizes[1], sizes[2], sizes[3]}, sizes[4], sizes[5], floats(inputs[0]),
                            ints(inputs[1]), ints(inputs[2])};
  return gphm::report(
      gphm::run_marching_tetrahedra(in, gphm::TetrahedraResults{outputs[0], outputs[1], outputs[2]}, pool, isa),
      message, room);
}
