// Launches GPU kernels that were compiled ahead of time, on XLA's stream. The driver's library is opened at run time:
// building this needs no CUDA, and a machine without a GPU loads it. Nothing aborts and no exception leaves.
#include <dlfcn.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "boundary.h"

namespace gphm {
namespace {

// The part of the driver's interface that is used, with the values of its constants. Handles are opaque pointers.
constexpr int kComputeCapabilityMajor = 75, kComputeCapabilityMinor = 76;
constexpr int kMaxDynamicSharedBytes = 8;
constexpr int kSharedBytesWithoutAsking = 48 << 10;

struct Driver {
  int (*init)(unsigned);
  int (*device_count)(int*);
  int (*device)(int*, int);
  int (*device_attribute)(int*, int, int);
  int (*stream_context)(void*, void**);
  int (*push_context)(void*);
  int (*pop_context)(void**);
  int (*context_device)(int*);
  int (*load_module)(void**, const void*);
  int (*find_function)(void**, void*, const char*);
  int (*set_attribute)(void*, int, int);
  int (*launch)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
  int (*error_string)(int, const char**);
};

struct Binary {
  int capability;  // 10 major + minor
  bool ptx;        // text that the driver compiles further; else a cubin
  std::string function;
  std::string image;
  int threads;
  int shared;  // bytes
};

struct Ready {
  void* function;
  int threads;
  int shared;
};

std::mutex mutex;  // guards what follows
Driver driver;     // written before `opened` is set, and never again
std::map<std::string, std::vector<Binary>, std::less<>> binaries;
std::map<std::pair<std::string, void*>, Ready> ready;  // by kernel and context
std::atomic<bool> opened{false};

std::string failure(const char* what, int code) {
  const char* text = nullptr;
  driver.error_string(code, &text);
  return std::string("cuda_launch: ") + what + " failed: " + (text ? text : "unknown error") + " (" +
         std::to_string(code) + ")";
}

template <typename F>
bool resolve(void* library, const char* name, F* function) {
  *function = reinterpret_cast<F>(dlsym(library, name));
  return *function != nullptr;
}

std::string open_driver(const char* name) {
  void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (!library) return std::string("no NVIDIA driver: ") + name + " cannot be loaded";
  Driver found;
  if (!resolve(library, "cuInit", &found.init) || !resolve(library, "cuDeviceGetCount", &found.device_count) ||
      !resolve(library, "cuDeviceGet", &found.device) ||
      !resolve(library, "cuDeviceGetAttribute", &found.device_attribute) ||
      !resolve(library, "cuStreamGetCtx", &found.stream_context) ||
      !resolve(library, "cuCtxPushCurrent_v2", &found.push_context) ||
      !resolve(library, "cuCtxPopCurrent_v2", &found.pop_context) ||
      !resolve(library, "cuCtxGetDevice", &found.context_device) ||
      !resolve(library, "cuModuleLoadData", &found.load_module) ||
      !resolve(library, "cuModuleGetFunction", &found.find_function) ||
      !resolve(library, "cuFuncSetAttribute", &found.set_attribute) ||
      !resolve(library, "cuLaunchKernel", &found.launch) ||
      !resolve(library, "cuGetErrorString", &found.error_string)) {
    return std::string("the NVIDIA driver is too old: ") + name + " lacks a function";
  }
  driver = found;
  if (int code = driver.init(0)) return failure("cuInit", code);
  opened = true;
  return "";
}

std::string read_capability(int device, int* capability) {
  int major = 0, minor = 0;
  int code = driver.device_attribute(&major, kComputeCapabilityMajor, device);
  if (!code) code = driver.device_attribute(&minor, kComputeCapabilityMinor, device);
  if (code) return failure("cuDeviceGetAttribute", code);
  *capability = 10 * major + minor;
  return "";
}

// A cubin for 8.x runs on later 8.x; from 9.0 on Triton compiles for the features of one architecture alone. PTX is
// compiled for any later capability.
bool runs_on(const Binary& binary, int capability) {
  if (binary.ptx) return binary.capability <= capability;
  return binary.capability == capability ||
         (binary.capability / 10 == 8 && capability / 10 == 8 && binary.capability < capability);
}

// A cubin if one fits, else PTX; the latest of either.
const Binary* choose(const std::vector<Binary>& candidates, int capability) {
  const auto rank = [](const Binary& binary) { return std::pair{!binary.ptx, binary.capability}; };
  const Binary* best = nullptr;
  for (const Binary& binary : candidates) {
    if (runs_on(binary, capability) && (!best || rank(binary) > rank(*best))) best = &binary;
  }
  return best;
}

// Loads a kernel into the current context.
std::string load(const std::string& kernel, Ready* result) {
  int device = 0, capability = 0;
  if (int code = driver.context_device(&device)) return failure("cuCtxGetDevice", code);
  std::string problem = read_capability(device, &capability);
  if (!problem.empty()) return problem;
  auto found = binaries.find(kernel);
  if (found == binaries.end()) return "cuda_launch: there is no kernel " + kernel;
  const std::string number = std::to_string(capability / 10) + "." + std::to_string(capability % 10);
  const Binary* binary = choose(found->second, capability);
  if (!binary) {
    return "cuda_launch: " + kernel + " was not compiled for compute capability " + number + "; use backend='xla'";
  }
  void* module = nullptr;
  void* function = nullptr;
  if (int code = driver.load_module(&module, binary->image.c_str())) {
    if (!binary->ptx) return failure("cuModuleLoadData", code);
    return failure(("the driver's compilation of " + kernel + " for compute capability " + number).c_str(), code) +
           "; update the NVIDIA driver, or use backend='xla'";
  }
  if (int code = driver.find_function(&function, module, binary->function.c_str())) {
    return failure("cuModuleGetFunction", code);
  }
  if (binary->shared > kSharedBytesWithoutAsking) {
    int code = driver.set_attribute(function, kMaxDynamicSharedBytes, binary->shared);
    if (code) return failure("cuFuncSetAttribute", code);
  }
  *result = Ready{function, binary->threads, binary->shared};
  return "";
}

// The kernel, loaded into the stream's context, which must be current.
std::string find(std::string_view kernel, void* context, Ready* result) {
  std::lock_guard<std::mutex> lock(mutex);
  std::pair<std::string, void*> key{std::string(kernel), context};
  auto found = ready.find(key);
  if (found == ready.end()) {
    Ready loaded;
    std::string problem = load(key.first, &loaded);
    if (!problem.empty()) return problem;
    found = ready.emplace(std::move(key), loaded).first;
  }
  *result = found->second;
  return "";
}

// Queues a kernel on the stream. Its parameters: the pointers, int32 sizes, and two scratch buffers that Triton adds to
// every kernel and that ours do not use.
std::string launch(void* stream, std::string_view kernel, std::vector<void*> pointers, std::vector<int32_t> sizes,
                   int64_t columns, int64_t rows) {
  if (!opened) return "cuda_launch: the driver is not open";
  if (columns < 0 || columns > INT32_MAX || rows < 0 || rows > 65535) {
    return "cuda_launch: a grid of " + std::to_string(columns) + " by " + std::to_string(rows) + " is out of range";
  }
  if (columns == 0 || rows == 0) return "";
  void* context = nullptr;
  if (int code = driver.stream_context(stream, &context)) return failure("cuStreamGetCtx", code);
  if (int code = driver.push_context(context)) return failure("cuCtxPushCurrent", code);
  Ready chosen;
  std::string problem = find(kernel, context, &chosen);
  if (problem.empty()) {
    void* scratch = nullptr;
    std::vector<void*> parameters;
    for (void*& pointer : pointers) parameters.push_back(&pointer);
    for (int32_t& size : sizes) parameters.push_back(&size);
    parameters.push_back(&scratch);
    parameters.push_back(&scratch);
    int code = driver.launch(chosen.function, static_cast<unsigned>(columns), static_cast<unsigned>(rows), 1,
                             static_cast<unsigned>(chosen.threads), 1, 1, static_cast<unsigned>(chosen.shared), stream,
                             parameters.data(), nullptr);
    if (code) problem = failure("cuLaunchKernel", code);
  }
  driver.pop_context(&context);
  return problem;
}

// What an operation returns, or what it throws.
template <typename F>
std::string guarded(F operation) {
  try {
    return operation();
  } catch (const std::exception& error) {
    return std::string("cuda_launch: ") + error.what();
  }
}

// The operands are the kernel's inputs, then its outputs as they were before; the results share the outputs' memory.
ffi::Error launch_handler(void* stream, std::string_view kernel, ffi::Span<const int64_t> sizes,
                          ffi::Span<const int64_t> grid, ffi::RemainingArgs operands, ffi::RemainingRets results) {
  std::string problem = guarded([&]() -> std::string {
    if (grid.size() != 2 || operands.size() < results.size()) return "cuda_launch: malformed call";
    const size_t inputs = operands.size() - results.size();
    std::vector<void*> pointers;
    for (size_t i = 0; i < operands.size(); ++i) {
      auto buffer = operands.get<ffi::AnyBuffer>(i);
      if (!buffer.has_value()) return "cuda_launch: operand " + std::to_string(i) + " cannot be read";
      pointers.push_back(buffer->untyped_data());
    }
    for (size_t i = 0; i < results.size(); ++i) {
      auto buffer = results.get<ffi::AnyBuffer>(i);
      if (!buffer.has_value() || (*buffer)->untyped_data() != pointers[inputs + i]) {
        return "cuda_launch: result " + std::to_string(i) + " does not share its operand's memory";
      }
    }
    return launch(stream, kernel, std::move(pointers), std::vector<int32_t>(sizes.begin(), sizes.end()), grid[0],
                  grid[1]);
  });
  return problem.empty() ? ffi::Error::Success() : ffi::Error(ffi::ErrorCode::kInternal, problem);
}

}  // namespace
}  // namespace gphm

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(gphm_cuda_launch, gphm::launch_handler,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::PlatformStream<void*>>()
                                  .Attr<std::string_view>("kernel")
                                  .Attr<ffi::Span<const int64_t>>("sizes")
                                  .Attr<ffi::Span<const int64_t>>("grid")
                                  .RemainingArgs()
                                  .RemainingRets());
#pragma GCC visibility pop

// Opens the driver's library; a second call does nothing.
GPHM_EXPORT int32_t gphm_c_cuda_open(const char* library, char* message, int64_t room) {
  std::lock_guard<std::mutex> lock(gphm::mutex);
  return gphm::report(gphm::guarded([&] { return gphm::opened ? std::string() : gphm::open_driver(library); }), message,
                      room);
}

// Compute capabilities (10 major + minor) of the first `room_devices` devices, and how many there are.
GPHM_EXPORT int32_t gphm_c_cuda_devices(int32_t* capabilities, int32_t room_devices, int32_t* count, char* message,
                                        int64_t room) {
  auto read = [&]() -> std::string {
    int number = 0;
    if (!gphm::opened) return "cuda_launch: the driver is not open";
    if (int code = gphm::driver.device_count(&number)) return gphm::failure("cuDeviceGetCount", code);
    for (int i = 0; i < number && i < room_devices; ++i) {
      int device = 0;
      if (int code = gphm::driver.device(&device, i)) return gphm::failure("cuDeviceGet", code);
      std::string problem = gphm::read_capability(device, &capabilities[i]);
      if (!problem.empty()) return problem;
    }
    *count = number;
    return "";
  };
  return gphm::report(gphm::guarded(read), message, room);
}

// Keeps a kernel's code for one compute capability; it is loaded at its first launch in a context.
GPHM_EXPORT int32_t gphm_c_cuda_add(const char* kernel, const char* function, int32_t capability, int32_t ptx,
                                    const char* image, int64_t bytes, int32_t threads, int32_t shared, char* message,
                                    int64_t room) {
  auto add = [&]() -> std::string {
    std::lock_guard<std::mutex> lock(gphm::mutex);
    gphm::binaries[kernel].push_back(
        gphm::Binary{capability, ptx != 0, function, std::string(image, static_cast<size_t>(bytes)), threads, shared});
    return "";
  };
  return gphm::report(gphm::guarded(add), message, room);
}

// The launch without XLA.
GPHM_EXPORT int32_t gphm_c_cuda_launch(void* stream, const char* kernel, void* const* pointers, int32_t pointer_count,
                                       const int32_t* sizes, int32_t size_count, int64_t columns, int64_t rows,
                                       char* message, int64_t room) {
  auto run = [&] {
    return gphm::launch(stream, kernel, std::vector<void*>(pointers, pointers + pointer_count),
                        std::vector<int32_t>(sizes, sizes + size_count), columns, rows);
  };
  return gphm::report(gphm::guarded(run), message, room);
}
