// The boundary of the CPU library for splats and point MLPs: XLA FFI handlers, and the same ops as plain C functions.
#include <string>

#include "handlers.h"

namespace gphm {
namespace {

// --- checks ---

constexpr int64_t kMaxNumber = 1 << 30;  // splats or rows of one image

std::string check_blend(const BlendInputs& in) {
  if (in.width < 1 || in.height < 1 || in.width > kMaxPixels || in.height > kMaxPixels) {
    return "blend: width and height must be from 1 to 1048576 pixels";
  }
  if (in.channels < 1) return "blend: features need at least one channel";
  if (in.splats > kMaxNumber) return "blend: more than 2^30 splats in one image";
  return "";
}

std::string check_project(const ProjectInputs& in) {
  if (in.channels < 1) return "project: features need at least one channel";
  if (in.splats > kMaxNumber) return "project: more than 2^30 splats in one image";
  if (!(in.near > 0 && in.near < in.far)) return "project: near and far must fulfil 0 < near < far";
  if (!(in.eps2d >= 0)) return "project: eps2d must be at least 0";
  return "";
}

std::string check_mlp(const MlpInputs& in) {
  constexpr int64_t kMaxLayers = 1 << 10, kMaxWidth = 1 << 16;
  if (in.layers < 1 || in.layers > kMaxLayers) return "mlp: sizes must name from 1 to 1024 layers";
  for (int64_t l = 0; l <= in.layers; ++l) {
    if (in.sizes[l] < 1 || in.sizes[l] > kMaxWidth) return "mlp: every layer's width must be from 1 to 65536";
  }
  if (in.rows > kMaxNumber) return "mlp: more than 2^30 rows of features";
  return "";
}

std::string run_project_fwd(const ProjectInputs& in, const ProjectResults& out, Parallel& pool, int32_t isa) {
  return guarded("project_fwd", check_project(in), isa,
                 [&](int chosen) { GPHM_DISPATCH(chosen, project_fwd(in, out, pool)); });
}

std::string run_project_bwd(const ProjectInputs& in, const ProjectCotangents& d, const ProjectGradients& out,
                            Parallel& pool, int32_t isa) {
  return guarded("project_bwd", check_project(in), isa,
                 [&](int chosen) { GPHM_DISPATCH(chosen, project_bwd(in, d, out, pool)); });
}

std::string run_blend_fwd(const BlendInputs& in, float* image, float* alpha, Parallel& pool, int32_t isa) {
  return guarded("blend_fwd", check_blend(in), isa,
                 [&](int chosen) { GPHM_DISPATCH(chosen, blend_fwd(in, image, alpha, pool)); });
}

std::string run_blend_bwd(const BlendInputs& in, const BlendCotangents& d, const BlendGradients& out, Parallel& pool,
                          int32_t isa) {
  return guarded("blend_bwd", check_blend(in), isa,
                 [&](int chosen) { GPHM_DISPATCH(chosen, blend_bwd(in, d, out, pool)); });
}

std::string run_mlp_fwd(const MlpInputs& in, float* result, Parallel& pool, int32_t isa) {
  return guarded("mlp_fwd", check_mlp(in), isa,
                 [&](int chosen) { GPHM_DISPATCH(chosen, mlp_fwd(in, result, pool)); });
}

std::string run_mlp_bwd(const MlpInputs& in, const float* d_result, const MlpGradients& out, Parallel& pool,
                        int32_t isa) {
  return guarded("mlp_bwd", check_mlp(in), isa,
                 [&](int chosen) { GPHM_DISPATCH(chosen, mlp_bwd(in, d_result, out, pool)); });
}

// Inputs and sizes of a projection; `limits` is near, far, eps2d.
ProjectInputs project_inputs(const int64_t* sizes, const float* const* arrays) {
  return ProjectInputs{sizes[0],     sizes[1],  sizes[2],  arrays[7][0], arrays[7][1], arrays[7][2],
                       arrays[0],    arrays[1], arrays[2], arrays[3],    arrays[4],    arrays[5],
                       arrays[6]};
}

std::string project_shapes(const Floats& means, const Floats& quats, const Floats& scales, const Floats& opacities,
                           const Floats& features, const Floats& world_to_camera, const Floats& intrinsics,
                           const Floats& limits, ProjectInputs* in) {
  if (features.dimensions().size() != 3) return "project: features must be [batch, splats, channels]";
  const int64_t b = features.dimensions()[0], n = features.dimensions()[1];
  if (!has_shape(means, {b, n, 3}) || !has_shape(quats, {b, n, 4}) || !has_shape(scales, {b, n, 3}) ||
      !has_shape(opacities, {b, n}) || !has_shape(world_to_camera, {b, 4, 4}) || !has_shape(intrinsics, {b, 3, 3}) ||
      !has_shape(limits, {3})) {
    return "project: means, quats, scales, opacities, world_to_camera, intrinsics and limits must be [b, n, 3], "
           "[b, n, 4], [b, n, 3], [b, n], [b, 4, 4], [b, 3, 3] and [3] for features [b, n, c]";
  }
  const int64_t sizes[] = {b, n, features.dimensions()[2]};
  const float* const arrays[] = {means.typed_data(),    quats.typed_data(),           scales.typed_data(),
                                 opacities.typed_data(), features.typed_data(),       world_to_camera.typed_data(),
                                 intrinsics.typed_data(), limits.typed_data()};
  *in = project_inputs(sizes, arrays);
  return "";
}

ffi::Error project_fwd_handler(ffi::ThreadPool pool, int32_t num_threads, int32_t isa, Floats means, Floats quats,
                               Floats scales, Floats opacities, Floats features, Floats world_to_camera,
                               Floats intrinsics, Floats limits, FloatsOut means2d, FloatsOut conics,
                               FloatsOut drawn_opacities, FloatsOut depths) {
  ProjectInputs in;
  std::string problem =
      project_shapes(means, quats, scales, opacities, features, world_to_camera, intrinsics, limits, &in);
  if (!problem.empty()) return to_error(problem);
  const int64_t b = in.batch, n = in.splats;
  if (!has_shape(*means2d, {b, n, 2}) || !has_shape(*conics, {b, n, 3}) || !has_shape(*drawn_opacities, {b, n}) ||
      !has_shape(*depths, {b, n})) {
    return to_error("project_fwd: results must be [b, n, 2], [b, n, 3], [b, n] and [b, n]");
  }
  XlaPool parallel(pool, num_threads);
  return to_error(run_project_fwd(in,
                                  ProjectResults{means2d->typed_data(), conics->typed_data(),
                                                 drawn_opacities->typed_data(), depths->typed_data()},
                                  parallel, isa));
}

ffi::Error project_bwd_handler(ffi::ThreadPool pool, int32_t num_threads, int32_t isa, Floats means, Floats quats,
                               Floats scales, Floats opacities, Floats features, Floats world_to_camera,
                               Floats intrinsics, Floats limits, Floats d_means2d, Floats d_conics,
                               Floats d_drawn_opacities, FloatsOut d_means, FloatsOut d_quats, FloatsOut d_scales,
                               FloatsOut d_opacities, FloatsOut d_world_to_camera, FloatsOut d_intrinsics) {
  ProjectInputs in;
  std::string problem =
      project_shapes(means, quats, scales, opacities, features, world_to_camera, intrinsics, limits, &in);
  if (!problem.empty()) return to_error(problem);
  const int64_t b = in.batch, n = in.splats;
  if (!has_shape(d_means2d, {b, n, 2}) || !has_shape(d_conics, {b, n, 3}) || !has_shape(d_drawn_opacities, {b, n}) ||
      !has_shape(*d_means, {b, n, 3}) || !has_shape(*d_quats, {b, n, 4}) || !has_shape(*d_scales, {b, n, 3}) ||
      !has_shape(*d_opacities, {b, n}) || !has_shape(*d_world_to_camera, {b, 4, 4}) ||
      !has_shape(*d_intrinsics, {b, 3, 3})) {
    return to_error("project_bwd: cotangents must be shaped as the results of project_fwd, results as its inputs");
  }
  XlaPool parallel(pool, num_threads);
  return to_error(run_project_bwd(
      in, ProjectCotangents{d_means2d.typed_data(), d_conics.typed_data(), d_drawn_opacities.typed_data()},
      ProjectGradients{d_means->typed_data(), d_quats->typed_data(), d_scales->typed_data(), d_opacities->typed_data(),
                       d_world_to_camera->typed_data(), d_intrinsics->typed_data()},
      parallel, isa));
}

std::string blend_shapes(const Floats& means, const Floats& conics, const Floats& opacities, const Floats& depths,
                         const Floats& features, const Floats& background, int64_t width, int64_t height,
                         BlendInputs* in) {
  if (features.dimensions().size() != 3) return "blend: features must be [batch, splats, channels]";
  const int64_t b = features.dimensions()[0], n = features.dimensions()[1], c = features.dimensions()[2];
  if (!has_shape(means, {b, n, 2}) || !has_shape(conics, {b, n, 3}) || !has_shape(opacities, {b, n}) ||
      !has_shape(depths, {b, n}) || !has_shape(background, {b, c})) {
    return "blend: means, conics, opacities, depths and background must be [b, n, 2], [b, n, 3], [b, n], [b, n] and "
           "[b, c] for features [b, n, c]";
  }
  *in = BlendInputs{b, n, c, width, height, means.typed_data(), conics.typed_data(), opacities.typed_data(),
                    depths.typed_data(), features.typed_data(), background.typed_data()};
  return "";
}

ffi::Error blend_fwd_handler(ffi::ThreadPool pool, int32_t width, int32_t height, int32_t num_threads, int32_t isa,
                             Floats means, Floats conics, Floats opacities, Floats depths, Floats features,
                             Floats background, FloatsOut image, FloatsOut alpha) {
  BlendInputs in;
  std::string problem =
      blend_shapes(means, conics, opacities, depths, features, background, width, height, &in);
  if (!problem.empty()) return to_error(problem);
  if (!has_shape(*image, {in.batch, height, width, in.channels}) || !has_shape(*alpha, {in.batch, height, width})) {
    return to_error("blend_fwd: results must be [b, height, width, c] and [b, height, width]");
  }
  XlaPool parallel(pool, num_threads);
  return to_error(run_blend_fwd(in, image->typed_data(), alpha->typed_data(), parallel, isa));
}

ffi::Error blend_bwd_handler(ffi::ThreadPool pool, int32_t width, int32_t height, int32_t num_threads, int32_t isa,
                             Floats means, Floats conics, Floats opacities, Floats depths, Floats features,
                             Floats background, Floats d_image, Floats d_alpha, FloatsOut d_means, FloatsOut d_conics,
                             FloatsOut d_opacities, FloatsOut d_features, FloatsOut d_background) {
  BlendInputs in;
  std::string problem =
      blend_shapes(means, conics, opacities, depths, features, background, width, height, &in);
  if (!problem.empty()) return to_error(problem);
  const int64_t b = in.batch, n = in.splats, c = in.channels;
  if (!has_shape(d_image, {b, height, width, c}) || !has_shape(d_alpha, {b, height, width}) ||
      !has_shape(*d_means, {b, n, 2}) || !has_shape(*d_conics, {b, n, 3}) || !has_shape(*d_opacities, {b, n}) ||
      !has_shape(*d_features, {b, n, c}) || !has_shape(*d_background, {b, c})) {
    return to_error("blend_bwd: cotangents must be [b, height, width, c] and [b, height, width], results shaped as inputs");
  }
  XlaPool parallel(pool, num_threads);
  return to_error(run_blend_bwd(in, BlendCotangents{d_image.typed_data(), d_alpha.typed_data()},
                                BlendGradients{d_means->typed_data(), d_conics->typed_data(),
                                               d_opacities->typed_data(), d_features->typed_data(),
                                               d_background->typed_data()},
                                parallel, isa));
}

std::string mlp_shapes(ffi::Span<const int64_t> sizes, const Floats& features, const Floats& parameters,
                       const Floats& first_bias, MlpInputs* in) {
  if (features.dimensions().size() != 3 || first_bias.dimensions().size() != 3 || sizes.size() < 2) {
    return "mlp: features must be [i, n, d], first_bias [i, f, w], and sizes at least d, w";
  }
  const int64_t layers = static_cast<int64_t>(sizes.size()) - 1;
  *in = MlpInputs{features.dimensions()[0], first_bias.dimensions()[1], features.dimensions()[1], layers, sizes.begin(),
                  features.typed_data(), parameters.typed_data(), first_bias.typed_data()};
  std::string problem = check_mlp(*in);
  if (!problem.empty()) return problem;
  int64_t number = 0;
  for (int64_t l = 0; l < layers; ++l) number += (in->sizes[l] + 1) * in->sizes[l + 1];
  if (!has_shape(features, {in->images, in->rows, in->sizes[0]}) ||
      !has_shape(first_bias, {in->images, in->frames, in->sizes[1]}) || !has_shape(parameters, {number})) {
    return "mlp: features, first_bias and parameters do not have the shapes that sizes gives";
  }
  return "";
}

ffi::Error mlp_fwd_handler(ffi::ThreadPool pool, ffi::Span<const int64_t> sizes, int32_t num_threads, int32_t isa,
                           Floats features, Floats parameters, Floats first_bias, FloatsOut result) {
  MlpInputs in;
  std::string problem = mlp_shapes(sizes, features, parameters, first_bias, &in);
  if (!problem.empty()) return to_error(problem);
  if (!has_shape(*result, {in.images, in.frames, in.rows, in.sizes[in.layers]})) {
    return to_error("mlp_fwd: the result must be [i, f, n, e]");
  }
  XlaPool parallel(pool, num_threads);
  return to_error(run_mlp_fwd(in, result->typed_data(), parallel, isa));
}

ffi::Error mlp_bwd_handler(ffi::ThreadPool pool, ffi::Span<const int64_t> sizes, int32_t num_threads, int32_t isa,
                           Floats features, Floats parameters, Floats first_bias, Floats d_result,
                           FloatsOut d_features, FloatsOut d_parameters, FloatsOut d_first_bias) {
  MlpInputs in;
  std::string problem = mlp_shapes(sizes, features, parameters, first_bias, &in);
  if (!problem.empty()) return to_error(problem);
  if (!has_shape(d_result, {in.images, in.frames, in.rows, in.sizes[in.layers]}) ||
      !has_shape(*d_features, {in.images, in.rows, in.sizes[0]}) ||
      !has_shape(*d_parameters, {parameters.dimensions()[0]}) ||
      !has_shape(*d_first_bias, {in.images, in.frames, in.sizes[1]})) {
    return to_error("mlp_bwd: d_result must be [i, f, n, e], results shaped as inputs");
  }
  XlaPool parallel(pool, num_threads);
  return to_error(run_mlp_bwd(in, d_result.typed_data(),
                              MlpGradients{d_features->typed_data(), d_parameters->typed_data(),
                                           d_first_bias->typed_data()},
                              parallel, isa));
}

}  // namespace
}  // namespace gphm

#define GPHM_MLP_BINDING                                                                                 \
  ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<ffi::Span<const int64_t>>("sizes") GPHM_COMMON_ATTRIBUTES \
      GPHM_FLOATS GPHM_FLOATS GPHM_FLOATS
#define GPHM_PROJECT_BINDING                                                                              \
  ffi::Ffi::Bind().Ctx<ffi::ThreadPool>() GPHM_COMMON_ATTRIBUTES GPHM_FLOATS GPHM_FLOATS GPHM_FLOATS GPHM_FLOATS \
      GPHM_FLOATS GPHM_FLOATS GPHM_FLOATS GPHM_FLOATS
#define GPHM_BLEND_BINDING \
  GPHM_IMAGE_BINDING GPHM_FLOATS GPHM_FLOATS GPHM_FLOATS GPHM_FLOATS GPHM_FLOATS GPHM_FLOATS

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(gphm_project_fwd, gphm::project_fwd_handler,
                              GPHM_PROJECT_BINDING GPHM_FLOATS_OUT GPHM_FLOATS_OUT GPHM_FLOATS_OUT GPHM_FLOATS_OUT);
XLA_FFI_DEFINE_HANDLER_SYMBOL(gphm_project_bwd, gphm::project_bwd_handler,
                              GPHM_PROJECT_BINDING GPHM_FLOATS GPHM_FLOATS GPHM_FLOATS GPHM_FLOATS_OUT GPHM_FLOATS_OUT
                                  GPHM_FLOATS_OUT GPHM_FLOATS_OUT GPHM_FLOATS_OUT GPHM_FLOATS_OUT);
XLA_FFI_DEFINE_HANDLER_SYMBOL(gphm_blend_fwd, gphm::blend_fwd_handler,
                              GPHM_BLEND_BINDING GPHM_FLOATS_OUT GPHM_FLOATS_OUT);
XLA_FFI_DEFINE_HANDLER_SYMBOL(gphm_blend_bwd, gphm::blend_bwd_handler,
                              GPHM_BLEND_BINDING GPHM_FLOATS GPHM_FLOATS GPHM_FLOATS_OUT GPHM_FLOATS_OUT GPHM_FLOATS_OUT
                                  GPHM_FLOATS_OUT GPHM_FLOATS_OUT);
XLA_FFI_DEFINE_HANDLER_SYMBOL(gphm_mlp_fwd, gphm::mlp_fwd_handler, GPHM_MLP_BINDING GPHM_FLOATS_OUT);
XLA_FFI_DEFINE_HANDLER_SYMBOL(gphm_mlp_bwd, gphm::mlp_bwd_handler,
                              GPHM_MLP_BINDING GPHM_FLOATS GPHM_FLOATS_OUT GPHM_FLOATS_OUT GPHM_FLOATS_OUT);
#pragma GCC visibility pop

// The best instruction set of this machine, numbered as above.
GPHM_EXPORT int32_t gphm_best_isa() { return gphm::resolve_isa(0); }

// The C functions take sizes, a table of inputs and a table of outputs: float32, indices int32.

// `sizes` is batch, splats, channels; `inputs` as in ProjectInputs, then near, far, eps2d as one array; `outputs` as in
// ProjectResults.
GPHM_EXPORT int32_t gphm_c_project_fwd(const int64_t* sizes, const float* const* inputs, float* const* outputs,
                                       int32_t num_threads, int32_t isa, char* message, int64_t room) {
  gphm::OwnThreads pool(num_threads);
  gphm::ProjectResults results{outputs[0], outputs[1], outputs[2], outputs[3]};
  return gphm::report(gphm::run_project_fwd(gphm::project_inputs(sizes, inputs), results, pool, isa), message, room);
}

// `inputs` as above, then as in ProjectCotangents; `outputs` as in ProjectGradients.
GPHM_EXPORT int32_t gphm_c_project_bwd(const int64_t* sizes, const float* const* inputs, float* const* outputs,
                                       int32_t num_threads, int32_t isa, char* message, int64_t room) {
  gphm::OwnThreads pool(num_threads);
  gphm::ProjectCotangents cotangents{inputs[8], inputs[9], inputs[10]};
  gphm::ProjectGradients gradients{outputs[0], outputs[1], outputs[2], outputs[3], outputs[4], outputs[5]};
  return gphm::report(gphm::run_project_bwd(gphm::project_inputs(sizes, inputs), cotangents, gradients, pool, isa),
                      message, room);
}

// `sizes` is batch, splats, channels, width, height.
static gphm::BlendInputs blend_inputs(const int64_t* sizes, const float* const* arrays) {
  return gphm::BlendInputs{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], arrays[0],
                           arrays[1], arrays[2], arrays[3], arrays[4], arrays[5]};
}

// `inputs` as in BlendInputs; `outputs` is image, alpha.
GPHM_EXPORT int32_t gphm_c_blend_fwd(const int64_t* sizes, const float* const* inputs, float* const* outputs,
                                     int32_t num_threads, int32_t isa, char* message, int64_t room) {
  gphm::OwnThreads pool(num_threads);
  return gphm::report(gphm::run_blend_fwd(blend_inputs(sizes, inputs), outputs[0], outputs[1], pool, isa), message, room);
}

// `inputs` as in BlendInputs, then d_image, d_alpha; `outputs` as in BlendGradients.
GPHM_EXPORT int32_t gphm_c_blend_bwd(const int64_t* sizes, const float* const* inputs, float* const* outputs,
                                     int32_t num_threads, int32_t isa, char* message, int64_t room) {
  gphm::OwnThreads pool(num_threads);
  gphm::BlendCotangents cotangents{inputs[6], inputs[7]};
  gphm::BlendGradients gradients{outputs[0], outputs[1], outputs[2], outputs[3], outputs[4]};
  return gphm::report(gphm::run_blend_bwd(blend_inputs(sizes, inputs), cotangents, gradients, pool, isa), message, room);
}

// `sizes` is images, frames, rows, layers, then the layers + 1 widths.
static gphm::MlpInputs mlp_inputs(const int64_t* sizes, const float* const* arrays) {
  return gphm::MlpInputs{sizes[0], sizes[1], sizes[2], sizes[3], sizes + 4, arrays[0], arrays[1], arrays[2]};
}

// `inputs` is features, parameters, first_bias; `outputs` is the result.
GPHM_EXPORT int32_t gphm_c_mlp_fwd(const int64_t* sizes, const float* const* inputs, float* const* outputs,
                                   int32_t num_threads, int32_t isa, char* message, int64_t room) {
  gphm::OwnThreads pool(num_threads);
  return gphm::report(gphm::run_mlp_fwd(mlp_inputs(sizes, inputs), outputs[0], pool, isa), message, room);
}

// `inputs` as in mlp_fwd, then d_result; `outputs` as in MlpGradients.
GPHM_EXPORT int32_t gphm_c_mlp_bwd(const int64_t* sizes, const float* const* inputs, float* const* outputs,
                                   int32_t num_threads, int32_t isa, char* message, int64_t room) {
  gphm::OwnThreads pool(num_threads);
  gphm::MlpGradients gradients{outputs[0], outputs[1], outputs[2]};
  return gphm::report(gphm::run_mlp_bwd(mlp_inputs(sizes, inputs), inputs[3], gradients, pool, isa), message, room);
}
