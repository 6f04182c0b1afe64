// Vectors of GPHM_LANES floats in the compiler's own vector extensions (GCC and Clang, any architecture).
#ifndef GPHM_VECTORS_H_
#define GPHM_VECTORS_H_

#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define GPHM_INLINE static inline __attribute__((always_inline))
#define GPHM_VECTOR(type, lanes) __attribute__((vector_size(sizeof(type) * (lanes)))) type

namespace gphm {
namespace GPHM_ISA {

constexpr int kLanes = GPHM_LANES;
typedef GPHM_VECTOR(float, kLanes) Vec;
typedef GPHM_VECTOR(int32_t, kLanes) Mask;  // a lane is 0 or -1
typedef GPHM_VECTOR(float, 4) Vec4;
typedef GPHM_VECTOR(float, 8) Vec8;
typedef GPHM_VECTOR(int32_t, 4) Int4;

GPHM_INLINE Vec splat(float value) { return value - Vec{}; }

// Arrays of plain floats are read and written as vectors; memcpy is the one way that is not undefined behaviour.
template <typename V>
GPHM_INLINE V load(const float* from) {
  V value;
  __builtin_memcpy(&value, from, sizeof(V));
  return value;
}
template <typename V>
GPHM_INLINE void store(float* to, V value) {
  __builtin_memcpy(to, &value, sizeof(V));
}

// The first `number` floats, fewer than a vector; nothing beyond them is touched, and the other lanes are zero.
GPHM_INLINE Vec load_part(const float* from, int64_t number) {
#if GPHM_LANES == 16 && defined(__AVX512F__)
  return (Vec)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << number) - 1), from);
#else
  Vec value{};
  for (int64_t lane = 0; lane < number; ++lane) value[lane] = from[lane];
  return value;
#endif
}
GPHM_INLINE void store_part(float* to, Vec value, int64_t number) {
#if GPHM_LANES == 16 && defined(__AVX512F__)
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << number) - 1), (__m512)value);
#else
  for (int64_t lane = 0; lane < number; ++lane) to[lane] = value[lane];
#endif
}

// A row of floats vector by vector: call(at, part) for each, where part is kLanes or, at the end, what is left.
template <typename Call>
GPHM_INLINE void each_vector(int64_t size, const Call& call) {
  int64_t at = 0;
  for (; at + kLanes <= size; at += kLanes) call(at, int64_t{kLanes});
  if (at < size) call(at, size - at);
}
GPHM_INLINE Vec load(const float* from, int64_t part) { return part == kLanes ? load<Vec>(from) : load_part(from, part); }
GPHM_INLINE void store(float* to, Vec value, int64_t part) {
  if (part == kLanes) {
    store(to, value);
  } else {
    store_part(to, value, part);
  }
}

GPHM_INLINE float sum(Vec value) {
  for (int width = kLanes / 2; width; width /= 2) {
    for (int lane = 0; lane < width; ++lane) value[lane] += value[lane + width];
  }
  return value[0];
}

// Bit i is set where lane i is.
GPHM_INLINE uint32_t bits(Mask mask) {
#if GPHM_LANES == 16 && defined(__AVX512DQ__)
  return _mm512_movepi32_mask((__m512i)mask);
#elif GPHM_LANES == 8 && defined(__AVX__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
#elif GPHM_LANES == 4 && defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps((__m128)mask));
#else
  uint32_t found = 0;
  for (int lane = 0; lane < kLanes; ++lane) found |= static_cast<uint32_t>(mask[lane] & 1) << lane;
  return found;
#endif
}

GPHM_INLINE bool any(Mask mask) {
#if GPHM_LANES == 16 && defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif GPHM_LANES == 8 && defined(__AVX__)
  return _mm256_movemask_ps((__m256)mask) != 0;
#elif GPHM_LANES == 4 && defined(__SSE2__)
  return _mm_movemask_ps((__m128)mask) != 0;
#else
  int32_t found = 0;
  for (int lane = 0; lane < kLanes; ++lane) found |= mask[lane];
  return found != 0;
#endif
}

GPHM_INLINE Vec select(Mask mask, Vec yes, Vec no) { return mask ? yes : no; }
GPHM_INLINE Vec keep(Mask mask, Vec value) { return (Vec)((Mask)value & mask); }

// a b - c d, to about one rounding where there are fused multiply-adds (Kahan): what the rounding of c d loses is added
// again. Written out, since a compiler that sees c d - c d makes it zero before it fuses anything.
GPHM_INLINE Vec difference(Vec a, Vec b, Vec c, Vec d) {
  const Vec product = c * d;
#if GPHM_LANES == 16 && defined(__AVX512F__)
  const Vec lost = (Vec)_mm512_fnmadd_ps((__m512)c, (__m512)d, (__m512)product);
  return (Vec)_mm512_fmsub_ps((__m512)a, (__m512)b, (__m512)product) + lost;
#elif GPHM_LANES == 8 && defined(__FMA__)
  const Vec lost = (Vec)_mm256_fnmadd_ps((__m256)c, (__m256)d, (__m256)product);
  return (Vec)_mm256_fmsub_ps((__m256)a, (__m256)b, (__m256)product) + lost;
#else
  return a * b - product;
#endif
}

// 2^x for x in [-126, 127], relative error below 2e-7; below -126 it is 2^-126.
GPHM_INLINE Vec exp2(Vec x) {
  x = select(x > splat(-126.f), x, splat(-126.f));
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
  const Vec magic = splat(12582912.f);
  Vec shifted = x + magic;
  Vec r = x - (shifted - magic);
  // Minimax in relative error on [-1/2, 1/2], with the constant term held at one.
  Vec p = splat(0.00132647261f);
  p = p * r + 0.00967151299f;
  p = p * r + 0.0555073358f;
  p = p * r + 0.240222424f;
  p = p * r + 0.693147004f;
  p = p * r + 1.f;
  return (Vec)(((Mask)shifted << 23) + (Mask)p);
}

// log2 x for positive normal x, absolute error below 1e-7 + 6e-8 |log2 x|: exponent and mantissa, which is brought to
// [sqrt(1/2), sqrt(2)), whose logarithm is an odd series in (m - 1) / (m + 1).
GPHM_INLINE Vec log2(Vec x) {
  const Mask half = Mask{} + 0x3f3504f3;  // the bits of sqrt(1/2)
  const Mask exponent = ((Mask)x - half) >> 23;
  const Vec m = (Vec)((Mask)x - (exponent << 23));
  const Vec s = (m - 1.f) / (m + 1.f), square = s * s;
  Vec p = splat(0.320598898f);  // 2 / (9 ln 2), and so on
  p = p * square + 0.412198583f;
  p = p * square + 0.577078016f;
  p = p * square + 0.961796694f;
  p = p * square + 2.88539008f;
  return __builtin_convertvector(exponent, Vec) + s * p;
}

// 1 / x, relative error below 1e-7, for x that is neither zero nor subnormal.
GPHM_INLINE Vec reciprocal(Vec x) {
#if GPHM_LANES == 16 && defined(__AVX512F__)
  Vec guess = (Vec)_mm512_rcp14_ps((__m512)x);
  return guess + guess * (1.f - x * guess);  // Newton's step; a division takes as long as four of these
#else
  return 1.f / x;
#endif
}

// The square root, zero for what is not positive.
GPHM_INLINE Vec root(Vec x) {
  x = x > Vec{} ? x : Vec{};
#if GPHM_LANES == 16 && defined(__AVX512F__)
  return (Vec)_mm512_sqrt_ps((__m512)x);
#elif GPHM_LANES == 8 && defined(__AVX__)
  return (Vec)_mm256_sqrt_ps((__m256)x);
#elif GPHM_LANES == 4 && defined(__SSE2__)
  return (Vec)_mm_sqrt_ps((__m128)x);
#else
  for (int lane = 0; lane < kLanes; ++lane) x[lane] = __builtin_sqrtf(x[lane]);
  return x;
#endif
}

// Transposes a 4x4 block of floats held in four vectors.
GPHM_INLINE void transpose4(Vec4 (&rows)[4]) {
#if defined(__clang__)
#define GPHM_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define GPHM_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, Int4{i, j, k, l})
#endif
  Vec4 low01 = GPHM_SHUFFLE(rows[0], rows[1], 0, 4, 1, 5), high01 = GPHM_SHUFFLE(rows[0], rows[1], 2, 6, 3, 7);
  Vec4 low23 = GPHM_SHUFFLE(rows[2], rows[3], 0, 4, 1, 5), high23 = GPHM_SHUFFLE(rows[2], rows[3], 2, 6, 3, 7);
  rows[0] = GPHM_SHUFFLE(low01, low23, 0, 1, 4, 5);
  rows[1] = GPHM_SHUFFLE(low01, low23, 2, 3, 6, 7);
  rows[2] = GPHM_SHUFFLE(high01, high23, 0, 1, 4, 5);
  rows[3] = GPHM_SHUFFLE(high01, high23, 2, 3, 6, 7);
#undef GPHM_SHUFFLE
}

}  // namespace GPHM_ISA
}  // namespace gphm

#endif  // GPHM_VECTORS_H_
