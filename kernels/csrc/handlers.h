// What the handlers of the CPU library share: the run-time choice of instruction set, pools of threads, and errors.
// Shapes are checked in the handlers again; nothing aborts and no exception leaves.
#ifndef GPHM_HANDLERS_H_
#define GPHM_HANDLERS_H_

#include <exception>
#include <initializer_list>
#include <memory>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "boundary.h"
#include "cpu_ops.h"

namespace gphm {

// --- instruction sets: 0 the best of this machine, 1 baseline, 2 x86-64-v3, 3 x86-64-v4 ---

inline int best_isa() {
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
inline int resolve_isa(int32_t asked) {
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

// --- checks; an empty string is success ---

constexpr int64_t kMaxPixels = 1 << 20;  // a side of an image: coordinates stay exact in float32

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

// --- XLA FFI ---

using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;
using FloatsOut = ffi::ResultBuffer<ffi::F32>;
using IntsOut = ffi::ResultBuffer<ffi::S32>;

inline ffi::Error to_error(const std::string& problem, ffi::ErrorCode code = ffi::ErrorCode::kInvalidArgument) {
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

}  // namespace gphm

#define GPHM_COMMON_ATTRIBUTES .Attr<int32_t>("num_threads").Attr<int32_t>("isa")
#define GPHM_FLOATS .Arg<gphm::Floats>()
#define GPHM_INTS .Arg<gphm::Ints>()
#define GPHM_FLOATS_OUT .Ret<gphm::Floats>()
#define GPHM_INTS_OUT .Ret<gphm::Ints>()
#define GPHM_IMAGE_BINDING \
  ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<int32_t>("width").Attr<int32_t>("height") GPHM_COMMON_ATTRIBUTES

#endif  // GPHM_HANDLERS_H_
