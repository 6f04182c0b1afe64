#include "memory.h"

#include <mutex>

namespace gphm {

namespace {

#if defined(__SANITIZE_ADDRESS__)
#define GPHM_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define GPHM_SANITIZED 1
#endif
#endif
#if defined(GPHM_SANITIZED)
constexpr bool kKeep = false;  // a sanitizer sees errors at the ends of its own blocks alone
#else
constexpr bool kKeep = true;
#endif

constexpr uint64_t kHuge = 2u << 20;        // bytes of a huge page
constexpr uint64_t kLarge = 1u << 20;       // bytes from which a block is made of huge pages, and may be kept
constexpr uint64_t kMostKept = 256u << 20;  // bytes kept for the next call, in all
constexpr int kMostBlocks = 64;

struct Block {
  void* data;
  uint64_t bytes;
};

class Kept {
 public:
  // The smallest block that fits and is not more than twice as large; null if there is none.
  Block take(uint64_t bytes) {
    int best = -1;
    for (int i = 0; i < number_; ++i) {
      const uint64_t size = blocks_[i].bytes;
      if (size >= bytes && size <= 2 * bytes && (best < 0 || size < blocks_[best].bytes)) best = i;
    }
    return best < 0 ? Block{nullptr, 0} : remove(best);
  }
  // Keeps a block, at the expense of those that have waited longest.
  void give(const Block& block) {
    while (number_ == kMostBlocks || bytes_ + block.bytes > kMostKept) std::free(remove(0).data);
    blocks_[number_++] = block;
    bytes_ += block.bytes;
  }

  std::mutex mutex;

 private:
  Block remove(int index) {
    const Block block = blocks_[index];
    for (int i = index + 1; i < number_; ++i) blocks_[i - 1] = blocks_[i];
    --number_;
    bytes_ -= block.bytes;
    return block;
  }

  Block blocks_[kMostBlocks];  // the longest kept first
  int number_ = 0;
  uint64_t bytes_ = 0;
};

// Never destroyed: a pool's threads may outlive the library's static objects.
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
  const bool large = kKeep && wanted >= kLarge;
  const uint64_t aligned = large ? kHuge : 64;
  *bytes = (wanted + aligned - 1) / aligned * aligned;
  if (large) {
    // Never waited for: in a process forked meanwhile, the owner of the lock may not exist.
    std::unique_lock<std::mutex> lock(kept().mutex, std::try_to_lock);
    const Block found = lock ? kept().take(*bytes) : Block{nullptr, 0};
    if (found.data) {
      *bytes = found.bytes;
      return found.data;
    }
  }
  void* fresh = nullptr;
  if (*bytes < wanted || posix_memalign(&fresh, aligned, *bytes)) throw std::bad_alloc();
  if (large) prefer_huge_pages(fresh, *bytes);
  return fresh;
}

void give_block(void* data, uint64_t bytes) {
  // Blocks of whole huge pages are the large ones.
  if (kKeep && data && bytes >= kHuge && bytes <= kMostKept) {
    std::unique_lock<std::mutex> lock(kept().mutex, std::try_to_lock);
    if (lock) {
      kept().give({data, bytes});
      return;
    }
  }
  std::free(data);
}

}  // namespace gphm
