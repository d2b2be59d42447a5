// SIMD vectors of one ISA, for float and double. Included inside each ISA's source file only (see kernels.inl).
//
// GCC's and Clang's vector types give arithmetic, comparison and selection for every ISA and architecture at once; the
// few operations they lack are written below, the generic way first. a * b + c becomes one FMA (-ffp-contract=fast)
// where the ISA has it.
#pragma once

#include <cstdint>
#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "cells/inline.h"

#define FASTRNN_UNROLL _Pragma("GCC unroll 16")

namespace fastrnn {
namespace FASTRNN_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kRegisters = 32;
#else
constexpr int kVectorBytes = 16, kRegisters = 16;
#endif
#if defined(__FMA__) || defined(__aarch64__)
constexpr bool kHasFma = true;
#else
constexpr bool kHasFma = false;
#endif

template <class T>
constexpr int kWidth = kVectorBytes / int(sizeof(T));

template <class T>
struct VectorTypes;
template <>
struct VectorTypes<float> {
  typedef float Vec __attribute__((vector_size(kVectorBytes)));
  typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorTypes<double> {
  typedef double Vec __attribute__((vector_size(kVectorBytes)));
  typedef uint64_t Bits __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VectorTypes<T>::Vec;
template <class T>
using Bits = typename VectorTypes<T>::Bits;

template <class T>
FASTRNN_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
FASTRNN_INLINE void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

FASTRNN_INLINE constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
FASTRNN_INLINE constexpr int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

#if defined(__AVX512F__)

FASTRNN_INLINE Vec<float> set1(float x) { return _mm512_set1_ps(x); }
FASTRNN_INLINE Vec<double> set1(double x) { return _mm512_set1_pd(x); }
// x limited from above / below; vminps returns its second operand when one is NaN.
FASTRNN_INLINE Vec<float> at_most(Vec<float> x, float limit) { return _mm512_min_ps(set1(limit), x); }
FASTRNN_INLINE Vec<double> at_most(Vec<double> x, double limit) { return _mm512_min_pd(set1(limit), x); }
FASTRNN_INLINE Vec<float> at_least(Vec<float> x, float limit) { return _mm512_max_ps(set1(limit), x); }
FASTRNN_INLINE Vec<double> at_least(Vec<double> x, double limit) { return _mm512_max_pd(set1(limit), x); }
// 14 bits and one Newton step: about 1 ulp, at a quarter of a division's cost. d is finite; a result below the normal
// range is 0 (denormals are flushed here).
FASTRNN_INLINE Vec<float> reciprocal(Vec<float> d) {
  const __m512 y = _mm512_rcp14_ps(d);
  return _mm512_mul_ps(y, _mm512_fnmadd_ps(d, y, _mm512_set1_ps(2.f)));
}
FASTRNN_INLINE Vec<double> reciprocal(Vec<double> d) { return 1.0 / d; }
// The remainder corrects the last bit: a / a is 1.
FASTRNN_INLINE Vec<float> quotient(Vec<float> a, Vec<float> b) {
  const __m512 y = reciprocal(b), q = _mm512_mul_ps(a, y);
  return _mm512_fmadd_ps(_mm512_fnmadd_ps(q, b, a), y, q);
}
FASTRNN_INLINE Vec<double> quotient(Vec<double> a, Vec<double> b) { return a / b; }
// The first n lanes, 0 < n <= width; the others read as 0.
FASTRNN_INLINE Vec<float> load_first(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(__mmask16(0xffffu >> (16 - n)), p);
}
FASTRNN_INLINE Vec<double> load_first(const double* p, int64_t n) {
  return _mm512_maskz_loadu_pd(__mmask8(0xffu >> (8 - n)), p);
}
FASTRNN_INLINE void store_first(float* p, Vec<float> v, int64_t n) {
  _mm512_mask_storeu_ps(p, __mmask16(0xffffu >> (16 - n)), v);
}
FASTRNN_INLINE void store_first(double* p, Vec<double> v, int64_t n) {
  _mm512_mask_storeu_pd(p, __mmask8(0xffu >> (8 - n)), v);
}

#else

#if defined(__AVX2__)
FASTRNN_INLINE Vec<float> set1(float x) { return _mm256_set1_ps(x); }
FASTRNN_INLINE Vec<double> set1(double x) { return _mm256_set1_pd(x); }
#else
// A number meets a vector as many of it; taking 0 from it leaves every bit.
template <class T>
FASTRNN_INLINE Vec<T> set1(T x) {
  return x - Vec<T>{};
}
#endif
#if defined(__AVX2__)
FASTRNN_INLINE Vec<float> at_most(Vec<float> x, float limit) { return _mm256_min_ps(set1(limit), x); }
FASTRNN_INLINE Vec<double> at_most(Vec<double> x, double limit) { return _mm256_min_pd(set1(limit), x); }
FASTRNN_INLINE Vec<float> at_least(Vec<float> x, float limit) { return _mm256_max_ps(set1(limit), x); }
FASTRNN_INLINE Vec<double> at_least(Vec<double> x, double limit) { return _mm256_max_pd(set1(limit), x); }
#else
// x limited from above / below; NaN compares false and stays.
template <class V, class T>
FASTRNN_INLINE V at_most(V x, T limit) {
  const V bound = set1(limit);
  return x > bound ? bound : x;
}
template <class V, class T>
FASTRNN_INLINE V at_least(V x, T limit) {
  const V bound = set1(limit);
  return x < bound ? bound : x;
}
#endif
template <class V>
FASTRNN_INLINE V reciprocal(V d) {
  return 1 / d;
}
template <class V>
FASTRNN_INLINE V quotient(V a, V b) {
  return a / b;
}
// The first n lanes, 0 < n <= width; the others read as 0.
template <class T>
FASTRNN_INLINE Vec<T> load_first(const T* p, int64_t n) {
  if (n == kWidth<T>) return load(p);
  T lanes[kWidth<T>] = {};
  for (int64_t i = 0; i < n; i++) lanes[i] = p[i];
  return load(lanes);
}
template <class T>
FASTRNN_INLINE void store_first(T* p, Vec<T> v, int64_t n) {
  if (n == kWidth<T>) return store(p, v);
  for (int64_t i = 0; i < n; i++) p[i] = v[int(i)];
}

#endif

// sum += x * y, for loops whose sums take nearly all of 16 registers: GCC puts the result of an expression in whichever
// one is free, and then moves sums from one to another, by way of memory too. With 32 it is better left alone.
template <class T>
FASTRNN_INLINE void multiply_add(Vec<T>& sum, Vec<T> x, Vec<T> y) {
#if defined(__FMA__) && !defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(x), "x"(y));
  } else {
    asm("vfmadd231pd %2, %1, %0" : "+x"(sum) : "x"(x), "x"(y));
  }
#else
  sum = x * y + sum;
#if defined(__SSE2__) && !defined(__AVX512F__)
  asm("" : "+x"(sum));  // in its register before the next product takes one
#endif
#endif
}

// v with the lanes from n on set to 0.
template <class T>
FASTRNN_INLINE Vec<T> first_lanes(Vec<T> v, int64_t n) {
  T lanes[kWidth<T>];
  store(lanes, v);
  return load_first(lanes, n);
}

// zip<T, 0>: the lower halves of a and b interleaved (a0 b0 a1 b1 ..); zip<T, 1>: the upper halves.
template <class T, int kHalf, int... kLane>
FASTRNN_INLINE Vec<T> zip(Vec<T> a, Vec<T> b, std::integer_sequence<int, kLane...>) {
  constexpr int w = kWidth<T>;
#if defined(__clang__)
  return __builtin_shufflevector(a, b, ((kHalf * w + kLane) / 2 + (kLane % 2) * w)...);
#else
  const Bits<T> lanes = {decltype(Bits<T>{}[0] + 0)((kHalf * w + kLane) / 2 + (kLane % 2) * w)...};
  return __builtin_shuffle(a, b, lanes);
#endif
}

// Transposes a square of width x width: log2(width) perfect shuffles of its rows.
template <class T>
FASTRNN_INLINE void transpose(Vec<T>* rows) {
  constexpr int w = kWidth<T>;
  constexpr auto lanes = std::make_integer_sequence<int, w>{};
  FASTRNN_UNROLL
  for (int round = 1; round < w; round *= 2) {
    Vec<T> next[w];
    FASTRNN_UNROLL
    for (int i = 0; i < w / 2; i++) {
      next[2 * i] = zip<T, 0>(rows[i], rows[i + w / 2], lanes);
      next[2 * i + 1] = zip<T, 1>(rows[i], rows[i + w / 2], lanes);
    }
    FASTRNN_UNROLL
    for (int i = 0; i < w; i++) rows[i] = next[i];
  }
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn
