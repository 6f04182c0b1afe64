// Scratch memory of the ops, kept from call to call, and the page-size hint for large arrays.
//
// The types live in the namespace of their instruction set: a std::vector instantiated in a source compiled for
// AVX-512 is a weak symbol that the linker may hand to the baseline code of an older machine.
#ifndef GPHM_MEMORY_H_
#define GPHM_MEMORY_H_

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace gphm {

// Asks for huge pages: touching a fresh 33 MB image page by page costs more than blending it.
void prefer_huge_pages(void* data, uint64_t bytes);

// An uninitialised block of at least `wanted` bytes, 64-byte aligned, and its size; throws std::bad_alloc. Large blocks
// come from those given back before, if one fits: fresh memory has to be zeroed by the system, page by page, and that
// cost a fifth of the backward blend. At most 256 MB are kept.
void* take_block(uint64_t wanted, uint64_t* bytes);
void give_block(void* data, uint64_t bytes);

namespace GPHM_ISA {

// Zeroes an array. An empty one may be null, which memset does not take.
template <typename T>
static inline void set_zero(T* data, int64_t size) {
  if (size) std::memset(static_cast<void*>(data), 0, static_cast<uint64_t>(size) * sizeof(T));
}

// An uninitialised, 64-byte aligned array of plain values. Growing keeps nothing unless asked to.
template <typename T>
class Array {
 public:
  Array() = default;
  explicit Array(int64_t size) { reserve(size); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { give_block(data_, bytes_); }

  // Room for `size` values. The first `kept` survive.
  void reserve(int64_t size, int64_t kept = 0) {
    if (size <= capacity_) return;
    const uint64_t number = static_cast<uint64_t>(kept ? size + size / 2 : size), wanted = number * sizeof(T);
    if (wanted / sizeof(T) < number) throw std::bad_alloc();
    uint64_t bytes;
    void* fresh = take_block(wanted, &bytes);
    if (kept) std::memcpy(fresh, data_, static_cast<uint64_t>(kept) * sizeof(T));
    give_block(data_, bytes_);
    data_ = static_cast<T*>(fresh), bytes_ = bytes;
    capacity_ = static_cast<int64_t>(bytes / sizeof(T));
  }
  void zero(int64_t size) {
    reserve(size);
    set_zero(data_, size);
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
  uint64_t bytes_ = 0;
  int64_t capacity_ = 0;
};

// A fixed number of objects that own memory, one per worker or row.
template <typename T>
class Objects {
 public:
  explicit Objects(int64_t size) : data_(new T[static_cast<uint64_t>(size)]) {}
  Objects(const Objects&) = delete;
  Objects& operator=(const Objects&) = delete;
  ~Objects() { delete[] data_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_;
};

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

}  // namespace GPHM_ISA
}  // namespace gphm

#endif  // GPHM_MEMORY_H_
