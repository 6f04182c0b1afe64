// A parallel loop over independent tasks on a pool that may be busy.
//
// The calling thread always works and never waits for a pool slot: it waits only for tasks that other threads have
// already begun. A pool with no free thread, or none at all, therefore slows a loop down and cannot stop it.
#ifndef GPHM_PARALLEL_H_
#define GPHM_PARALLEL_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <thread>

namespace gphm {

// A reference to a callable; std::function would allocate and, instantiated once per instruction set, would be
// a weak symbol that the linker could pick from the wrong set.
class Body {
 public:
  template <typename F>
  Body(const F& function)  // NOLINT: converts implicitly, like std::function
      : target_(&function), call_([](const void* target, int64_t task, int worker) {
          (*static_cast<const F*>(target))(task, worker);
        }) {}
  void operator()(int64_t task, int worker) const { call_(target_, task, worker); }

 private:
  const void* target_;
  void (*call_)(const void*, int64_t, int);
};

class Parallel {
 public:
  virtual ~Parallel() = default;
  // Threads that may call a body at the same time; `worker` is below it.
  virtual int workers() const = 0;
  // Calls body(task, worker) once for every task in [0, tasks). Throws std::bad_alloc if a body ran out of memory.
  virtual void run(int64_t tasks, Body body) = 0;
};

// The state of one loop. It outlives the loop, since a helper may be given its slot after everything is done.
struct SharedLoop {
  SharedLoop(int64_t tasks, Body body) : tasks(tasks), body(body) {}

  void work(int worker) noexcept {
    for (int64_t task; (task = next.fetch_add(1)) < tasks;) {
      try {
        body(task, worker);
      } catch (...) {  // bodies throw nothing but std::bad_alloc
        failed.store(true);
      }
      done.fetch_add(1, std::memory_order_release);
    }
  }
  void help() noexcept { work(helpers.fetch_add(1) + 1); }
  void finish() {
    work(0);
    while (done.load(std::memory_order_acquire) < tasks) std::this_thread::yield();
    if (failed.load()) throw std::bad_alloc();
  }

  const int64_t tasks;
  const Body body;
  std::atomic<int64_t> next{0}, done{0};
  std::atomic<int> helpers{0};
  std::atomic<bool> failed{false};
};

}  // namespace gphm

#endif  // GPHM_PARALLEL_H_
