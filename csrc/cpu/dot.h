// Products of a few rows with a row-major matrix as it stands: dot products of its rows. Packing the matrix into panels
// would cost more than so few rows gain from it.
#pragma once

#include "cpu/simd.h"

namespace fastrnn {
namespace FASTRNN_ISA {

constexpr int kMaxDotRows = 6;

// Rows of the matrix that a tile takes at once: a power of two, as many as accumulators for each with each fit.
template <class T>
constexpr int dot_lanes(int rows) {
  int lanes = 1;
  while (lanes < 8 && 2 * lanes <= kWidth<T> && 2 * lanes * rows <= kRegisters * 3 / 4) lanes *= 2;
  return lanes;
}

// Sums each of n vectors, a power of two, halving vectors and sums to go in turns: v[0] takes n sums side by side,
// repeated over its lanes in width / n parts that are still to be added.
template <class T, int n>
FASTRNN_INLINE void merge(Vec<T>* v) {
  constexpr auto lanes = std::make_integer_sequence<int, kWidth<T>>{};
  FASTRNN_UNROLL
  for (int half = n / 2; half > 0; half /= 2) {
    FASTRNN_UNROLL
    for (int i = 0; i < half; i++) v[i] = zip<T, 0>(v[i], v[i + half], lanes) + zip<T, 1>(v[i], v[i + half], lanes);
  }
}

// out[r * out_stride + lane] becomes, or takes in addition, the sum over k of a[r][k] * b[lane][k], r < kRows; lanes
// from `valid` on are 0.
template <class T, int kRows>
__attribute__((noinline)) void dot_tile(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t valid,
                                        int64_t k_size, bool add, T* out, int64_t out_stride) {
  constexpr int w = kWidth<T>, kLanes = dot_lanes<T>(kRows), kGroups = w / kLanes;
  // Fewer accumulators than an FMA's latency needs: even and odd vectors apart.
  constexpr int kStreams = kRows * kLanes * 2 <= kRegisters / 2 ? 2 : 1;
  Vec<T> part[kRows][kGroups];
  for (int g = 0; g < kGroups; g++) {
    const T* row[kLanes];
    FASTRNN_UNROLL
    for (int i = 0; i < kLanes; i++) row[i] = b + min(g + i * kGroups, valid - 1) * b_stride;
    Vec<T> acc[kStreams][kRows][kLanes];
    FASTRNN_UNROLL
    for (int s = 0; s < kStreams; s++) {
      FASTRNN_UNROLL
      for (int r = 0; r < kRows; r++) {
        FASTRNN_UNROLL
        for (int i = 0; i < kLanes; i++) acc[s][r][i] = Vec<T>{};
      }
    }
    const auto accumulate = [&](int s, const auto& vector) __attribute__((always_inline)) {
      Vec<T> x[kRows];
      FASTRNN_UNROLL
      for (int r = 0; r < kRows; r++) x[r] = vector(a + r * a_stride);
      FASTRNN_UNROLL
      for (int i = 0; i < kLanes; i++) {
        const Vec<T> y = vector(row[i]);
        FASTRNN_UNROLL
        for (int r = 0; r < kRows; r++) acc[s][r][i] = x[r] * y + acc[s][r][i];
      }
    };
    int64_t k = 0;
    for (; k + kStreams * w <= k_size; k += kStreams * w) {
      FASTRNN_UNROLL
      for (int s = 0; s < kStreams; s++) {
        accumulate(s, [&](const T* p) __attribute__((always_inline)) { return load(p + k + s * w); });
      }
    }
    for (; k < k_size; k += w) {
      const int64_t n = min(w, k_size - k);
      accumulate(0, [&](const T* p) __attribute__((always_inline)) { return load_first(p + k, n); });
    }
    FASTRNN_UNROLL
    for (int r = 0; r < kRows; r++) {
      if (kStreams == 2) {
        FASTRNN_UNROLL
        for (int i = 0; i < kLanes; i++) acc[0][r][i] += acc[kStreams - 1][r][i];
      }
      merge<T, kLanes>(acc[0][r]);
      part[r][g] = acc[0][r][0];
    }
  }
  FASTRNN_UNROLL
  for (int r = 0; r < kRows; r++) {
    merge<T, kGroups>(part[r]);
    Vec<T> sum = valid < w ? first_lanes<T>(part[r][0], valid) : part[r][0];
    if (add) sum += load(out + r * out_stride);
    store(out + r * out_stride, sum);
  }
}

template <class T>
using DotFunction = void (*)(const T*, int64_t, const T*, int64_t, int64_t, int64_t, bool, T*, int64_t);
template <class T>
constexpr DotFunction<T> kDots[kMaxDotRows + 1] = {nullptr,         &dot_tile<T, 1>, &dot_tile<T, 2>, &dot_tile<T, 3>,
                                                   &dot_tile<T, 4>, &dot_tile<T, 5>, &dot_tile<T, 6>};

}  // namespace FASTRNN_ISA
}  // namespace fastrnn
