// The boundary of the CPU library: XLA FFI handlers, the same ops as plain C functions, and the run-time choice of
// instruction set. Shapes are checked here again; nothing aborts and no exception leaves.
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu_ops.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace gphm {
namespace {

#define GPHM_EXPORT extern "C" __attribute__((visibility("default")))

// --- instruction sets: 0 the best of this machine, 1 baseline, 2 x86-64-v3, 3 x86-64-v4 ---

int best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
            __builtin_cpu_supports("bmi2");
  bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512vl");
  return v4 ? 3 : v3 ? 2 : 1;
#else
  return 1;
#endif
}

// The set to use, or 0 if this machine lacks the one asked for.
int resolve_isa(int32_t asked) {
  static const int best = best_isa();
  if (asked == 0) return best;
  return asked >= 1 && asked <= best ? asked : 0;
}

#if defined(__x86_64__)
#define GPHM_DISPATCH(isa, call)     \
  switch (isa) {                     \
    case 3: v4::call; break;         \
    case 2: v3::call; break;         \
    default: base::call; break;      \
  }
#else
#define GPHM_DISPATCH(isa, call) (void)(isa), base::call
#endif

// --- pools ---

class XlaPool final : public Parallel {
 public:
  XlaPool(ffi::ThreadPool pool, int32_t limit) : pool_(pool) {
    int64_t threads = pool.num_threads();
    threads = threads < 1 ? 1 : threads;
    workers_ = static_cast<int>(limit > 0 && limit < threads ? limit : threads);
  }
  int workers() const override { return workers_; }
  void run(int64_t tasks, Body body) override {
    auto loop = std::make_shared<SharedLoop>(tasks, body);
    try {
      for (int64_t i = 1; i < workers_ && i < tasks; ++i) {
        pool_.Schedule([loop] { loop->help(); });
      }
    } catch (...) {  // no memory for another helper; those before it do the work
    }
    loop->finish();  // whatever happened: helpers call a body that lives on this thread's stack
  }

 private:
  ffi::ThreadPool pool_;
  int workers_;
};

// Threads of its own, for callers outside XLA.
class OwnThreads final : public Parallel {
 public:
  explicit OwnThreads(int32_t limit) {
    int threads = static_cast<int>(std::thread::hardware_concurrency());
    workers_ = limit > 0 ? limit : threads < 1 ? 1 : threads;
  }
  int workers() const override { return workers_; }
  void run(int64_t tasks, Body body) override {
    SharedLoop loop(tasks, body);
    std::vector<std::thread> threads;
    try {
      for (int64_t i = 1; i < workers_ && i < tasks; ++i) threads.emplace_back([&loop] { loop.help(); });
    } catch (const std::exception&) {  // the system has no more threads or memory: those that run do the work
    }
    loop.work(0);
    for (std::thread& thread : threads) thread.join();
    loop.finish();
  }

 private:
  int workers_;
};

// --- checks shared by both boundaries; an empty string is success ---

constexpr int64_t kMaxPixels = 1 << 20;    // a side of an image: coordinates stay exact in float32
constexpr int64_t kMaxNumber = 1 << 30;    // splats or rows of one image
constexpr int64_t kMaxFaces = (1 << 24) - 1;  // face + 1 must be exact in float32

std::string check_blend(const BlendInputs& in) {
  if (in.width < 1 || in.height < 1 || in.width > kMaxPixels || in.height > kMaxPixels) {
    return "blend: width and height must be from 1 to 1048576 pixels";
  }
  if (in.channels < 1) return "blend: features need at least one channel";
  if (in.splats > kMaxNumber) return "blend: more than 2^30 splats in one image";
  return "";
}

std::string check_rasterize(const RasterizeInputs& in) {
  if (in.width < 1 || in.height < 1 || in.width > kMaxPixels || in.height > kMaxPixels) {
    return "rasterize_fwd: width and height must be from 1 to 1048576 pixels";
  }
  if (in.faces > kMaxFaces) return "rasterize_fwd: more than 2^24 - 1 faces, whose indices float32 cannot hold";
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

// Runs an op on the instruction set asked for; returns what went wrong.
template <typename F>
std::string guarded(const char* name, std::string problem, int32_t isa, F op) {
  if (!problem.empty()) return problem;
  int chosen = resolve_isa(isa);
  if (chosen == 0) return std::string(name) + ": this machine lacks the instruction set asked for";
  try {
    op(chosen);
  } catch (const std::bad_alloc&) {
    return std::string(name) + ": out of memory";
  } catch (const std::exception& error) {
    return std::string(name) + ": " + error.what();
  }
  return "";
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

std::string run_rasterize_fwd(const RasterizeInputs& in, float* raster, Parallel& pool, int32_t isa) {
  return guarded("rasterize_fwd", check_rasterize(in), isa,
                 [&](int chosen) { GPHM_DISPATCH(chosen, rasterize_fwd(in, raster, pool)); });
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

// --- XLA FFI ---

using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;
using FloatsOut = ffi::ResultBuffer<ffi::F32>;

ffi::Error to_error(const std::string& problem, ffi::ErrorCode code = ffi::ErrorCode::kInvalidArgument) {
  if (problem.empty()) return ffi::Error::Success();
  bool memory = problem.find("out of memory") != std::string::npos;
  return ffi::Error(memory ? ffi::ErrorCode::kResourceExhausted : code, problem);
}

template <typename B>
bool has_shape(const B& buffer, std::initializer_list<int64_t> shape) {
  auto dims = buffer.dimensions();
  if (dims.size() != shape.size()) return false;
  size_t axis = 0;
  for (int64_t size : shape) {
    if (dims[axis++] != size) return false;
  }
  return true;
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

ffi::Error rasterize_fwd_handler(ffi::ThreadPool pool, int32_t width, int32_t height, int32_t num_threads, int32_t isa,
                                 Floats positions, Ints faces, FloatsOut raster) {
  if (positions.dimensions().size() != 3 || faces.dimensions().size() != 2) {
    return to_error("rasterize_fwd: clip_positions must be [b, v, 4] and faces [f, 3]");
  }
  const int64_t b = positions.dimensions()[0], v = positions.dimensions()[1], f = faces.dimensions()[0];
  if (!has_shape(positions, {b, v, 4}) || !has_shape(faces, {f, 3}) || !has_shape(*raster, {b, height, width, 4})) {
    return to_error("rasterize_fwd: clip_positions [b, v, 4] and faces [f, 3] must give [b, height, width, 4]");
  }
  XlaPool parallel(pool, num_threads);
  RasterizeInputs in{b, v, f, width, height, positions.typed_data(), faces.typed_data()};
  return to_error(run_rasterize_fwd(in, raster->typed_data(), parallel, isa));
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

// --- C ---

// Copies a message for the caller; returns 0 on success, 1 otherwise.
int32_t report(const std::string& problem, char* message, int64_t room) {
  if (problem.empty()) return 0;
  if (room > 0) message[problem.copy(message, static_cast<size_t>(room - 1))] = '\0';
  return 1;
}

}  // namespace
}  // namespace gphm

#define GPHM_COMMON_ATTRIBUTES .Attr<int32_t>("num_threads").Attr<int32_t>("isa")
#define GPHM_IMAGE_BINDING \
  ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<int32_t>("width").Attr<int32_t>("height") GPHM_COMMON_ATTRIBUTES
#define GPHM_MLP_BINDING                                                                                        \
  ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<ffi::Span<const int64_t>>("sizes") GPHM_COMMON_ATTRIBUTES        \
      .Arg<gphm::Floats>().Arg<gphm::Floats>().Arg<gphm::Floats>()
#define GPHM_BLEND_ARGUMENTS                                                                         \
  .Arg<gphm::Floats>().Arg<gphm::Floats>().Arg<gphm::Floats>().Arg<gphm::Floats>().Arg<gphm::Floats>() \
      .Arg<gphm::Floats>()

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(gphm_blend_fwd, gphm::blend_fwd_handler,
                              GPHM_IMAGE_BINDING GPHM_BLEND_ARGUMENTS.Ret<gphm::Floats>().Ret<gphm::Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(gphm_blend_bwd, gphm::blend_bwd_handler,
                              GPHM_IMAGE_BINDING GPHM_BLEND_ARGUMENTS.Arg<gphm::Floats>()
                                  .Arg<gphm::Floats>()
                                  .Ret<gphm::Floats>()
                                  .Ret<gphm::Floats>()
                                  .Ret<gphm::Floats>()
                                  .Ret<gphm::Floats>()
                                  .Ret<gphm::Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(gphm_rasterize_fwd, gphm::rasterize_fwd_handler,
                              GPHM_IMAGE_BINDING.Arg<gphm::Floats>().Arg<gphm::Ints>().Ret<gphm::Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(gphm_mlp_fwd, gphm::mlp_fwd_handler, GPHM_MLP_BINDING.Ret<gphm::Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(gphm_mlp_bwd, gphm::mlp_bwd_handler,
                              GPHM_MLP_BINDING.Arg<gphm::Floats>()
                                  .Ret<gphm::Floats>()
                                  .Ret<gphm::Floats>()
                                  .Ret<gphm::Floats>());
#pragma GCC visibility pop

// The best instruction set of this machine, numbered as above.
GPHM_EXPORT int32_t gphm_best_isa() { return gphm::resolve_isa(0); }

// The C functions take sizes, a table of inputs and a table of outputs: float32, indices int32.

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

// `sizes` is batch, vertices, faces, width, height; `inputs` is the positions and the indices; `outputs` is the raster.
GPHM_EXPORT int32_t gphm_c_rasterize_fwd(const int64_t* sizes, const void* const* inputs, float* const* outputs,
                                         int32_t num_threads, int32_t isa, char* message, int64_t room) {
  gphm::OwnThreads pool(num_threads);
  gphm::RasterizeInputs in{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], static_cast<const float*>(inputs[0]),
                           static_cast<const int32_t*>(inputs[1])};
  return gphm::report(gphm::run_rasterize_fwd(in, outputs[0], pool, isa), message, room);
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
