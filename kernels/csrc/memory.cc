#include "memory.h"

#include <mutex>

namespace gphm {

namespace {

constexpr uint64_t kHuge = 2u << 20;        // bytes of a huge page
#if defined(__SANITIZE_ADDRESS__)
constexpr uint64_t kLarge = UINT64_MAX;     // a sanitizer sees errors at the ends of its own blocks alone
#else
constexpr uint64_t kLarge = 1u << 20;       // smaller blocks are the allocator's affair
#endif
constexpr uint64_t kMostKept = 256u << 20;  // bytes kept for the next call, in all
constexpr int kMostBlocks = 64;

struct Block {
  void* data;
  uint64_t bytes;
};

// Never destroyed: a pool's threads may outlive the library's static objects.
struct Kept {
  std::mutex mutex;
  Block blocks[kMostBlocks];
  int number = 0;
  uint64_t bytes = 0;
};
Kept& kept() {
  static Kept* const instance = new Kept;
  return *instance;
}

}  // namespace

void prefer_huge_pages(void* data, uint64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  uint64_t first = (reinterpret_cast<uint64_t>(data) + kHuge - 1) / kHuge * kHuge;
  uint64_t last = (reinterpret_cast<uint64_t>(data) + bytes) / kHuge * kHuge;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a hint: may fail
#else
  (void)data, (void)bytes;
#endif
}

void* take_block(uint64_t wanted, uint64_t* bytes) {
  const uint64_t aligned = wanted >= kLarge ? kHuge : 64;
  *bytes = (wanted + aligned - 1) / aligned * aligned;
  if (wanted >= kLarge) {
    Kept& pool = kept();
    std::lock_guard<std::mutex> lock(pool.mutex);
    int best = -1;
    for (int i = 0; i < pool.number; ++i) {
      const uint64_t size = pool.blocks[i].bytes;
      if (size >= *bytes && size <= 2 * *bytes && (best < 0 || size < pool.blocks[best].bytes)) best = i;
    }
    if (best >= 0) {
      const Block found = pool.blocks[best];
      pool.blocks[best] = pool.blocks[--pool.number];
      pool.bytes -= found.bytes;
      *bytes = found.bytes;
      return found.data;
    }
  }
  void* fresh = nullptr;
  if (*bytes < wanted || posix_memalign(&fresh, aligned, *bytes)) throw std::bad_alloc();
  if (wanted >= kLarge) prefer_huge_pages(fresh, *bytes);
  return fresh;
}

void give_block(void* data, uint64_t bytes) {
  if (data && bytes >= kLarge) {
    Kept& pool = kept();
    std::lock_guard<std::mutex> lock(pool.mutex);
    if (pool.number < kMostBlocks && pool.bytes + bytes <= kMostKept) {
      pool.blocks[pool.number++] = {data, bytes};
      pool.bytes += bytes;
      return;
    }
  }
  std::free(data);
}

}  // namespace gphm
