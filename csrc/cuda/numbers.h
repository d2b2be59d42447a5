// The dtypes that kernels compute in. For each: how numbers are stored, what sums and cell states are kept in, and the
// product of small tiles by one warp, on tensor cores where there are some for it.
#pragma once

#include <type_traits>

#include "cuda/device.h"

namespace fastrnn {
namespace cuda {

struct Float16Bits {
  uint16_t bits;
};
struct Bfloat16Bits {
  uint16_t bits;
};

FASTRNN_DEVICE float to_sum(float x) { return x; }
FASTRNN_DEVICE double to_sum(double x) { return x; }
FASTRNN_DEVICE float to_sum(Float16Bits x) { return half_to_float(x.bits); }
FASTRNN_DEVICE float to_sum(Bfloat16Bits x) { return bits_float(uint32_t(x.bits) << 16); }

template <class T, class Sum>
FASTRNN_DEVICE T from_sum(Sum x) {
  if constexpr (sizeof(T) >= 4) {
    return x;
  } else if constexpr (std::is_same_v<T, Float16Bits>) {
    return Float16Bits{float_to_half(x)};
  } else {  // to nearest, ties to even; NaN stays one
    const uint32_t bits = float_bits(x);
    return Bfloat16Bits{uint16_t(x == x ? (bits + 0x7fffu + (bits >> 16 & 1)) >> 16 : bits >> 16 | 0x40)};
  }
}

// Tiles of the right size by plain arithmetic, each lane what a tensor core would leave with it.
template <class T, class Sum>
FASTRNN_DEVICE void multiply_plainly(Sum (&d)[4], const T* a, const T* b, int pitch, int k_size, int lane) {
  const int g = lane / 4, t = lane % 4;
  for (int k = 0; k < k_size; k++) {
    const Sum a0 = to_sum(a[g * pitch + k]), a1 = to_sum(a[(g + 8) * pitch + k]);
    const Sum b0 = to_sum(b[2 * t * pitch + k]), b1 = to_sum(b[(2 * t + 1) * pitch + k]);
    d[0] += a0 * b0;
    d[1] += a0 * b1;
    d[2] += a1 * b0;
    d[3] += a1 * b1;
  }
}

// The fragments of tiles in shared memory, rows of k: a of 16 rows, b of 8.
template <class T>
FASTRNN_DEVICE void load_pairs(const T* a, const T* b, int pitch, int lane, uint32_t (&fa)[4], uint32_t (&fb)[2]) {
  const int g = lane / 4, at = g * pitch + 2 * (lane % 4);
  const auto pair = [](const T* p) { return *reinterpret_cast<const uint32_t*>(p); };
  fa[0] = pair(a + at);
  fa[1] = pair(a + at + 8 * pitch);
  fa[2] = pair(a + at + 8);
  fa[3] = pair(a + at + 8 * pitch + 8);
  fb[0] = pair(b + at);
  fb[1] = pair(b + at + 8);
}

// kStep: the k of one `multiply`, d (16 x 8) += a (16 x kStep) b (8 x kStep)^T. Both stand in shared memory, with
// `pitch` numbers from row to row.
struct Float64 {
  using Storage = double;
  using Sum = double;
  static constexpr int kStep = 4;
  static FASTRNN_DEVICE void multiply(double (&d)[4], const double* a, const double* b, int pitch, int lane) {
    multiply_plainly(d, a, b, pitch, kStep, lane);
  }
};

struct Float32 {
  using Storage = float;
  using Sum = float;
  static constexpr int kStep = 8;
  static FASTRNN_DEVICE void multiply(float (&d)[4], const float* a, const float* b, int pitch, int lane) {
    multiply_plainly(d, a, b, pitch, kStep, lane);
  }
};

struct Tf32 : Float32 {
  static FASTRNN_DEVICE void multiply(float (&d)[4], const float* a, const float* b, int pitch, int lane) {
    if constexpr (!kTensorCores) return multiply_plainly(d, a, b, pitch, kStep, lane);
    const int at = lane / 4 * pitch + lane % 4;
    const uint32_t fa[4] = {to_tf32(a[at]), to_tf32(a[at + 8 * pitch]), to_tf32(a[at + 4]),
                            to_tf32(a[at + 8 * pitch + 4])};
    const uint32_t fb[2] = {to_tf32(b[at]), to_tf32(b[at + 4])};
    mma_tf32(d, fa, fb);
  }
};

struct Float16 {
  using Storage = Float16Bits;
  using Sum = float;
  static constexpr int kStep = 16;
  static FASTRNN_DEVICE void multiply(float (&d)[4], const Float16Bits* a, const Float16Bits* b, int pitch, int lane) {
    if constexpr (!kTensorCores) return multiply_plainly(d, a, b, pitch, kStep, lane);
    uint32_t fa[4], fb[2];
    load_pairs(a, b, pitch, lane, fa, fb);
    mma_float16(d, fa, fb);
  }
};

struct Bfloat16 {
  using Storage = Bfloat16Bits;
  using Sum = float;
  static constexpr int kStep = 16;
  static FASTRNN_DEVICE void multiply(float (&d)[4], const Bfloat16Bits* a, const Bfloat16Bits* b, int pitch,
                                      int lane) {
    if constexpr (!kTensorCores) return multiply_plainly(d, a, b, pitch, kStep, lane);
    uint32_t fa[4], fb[2];
    load_pairs(a, b, pitch, lane, fa, fb);
    mma_bfloat16(d, fa, fb);
  }
};

// What cells/*.h compute with: scalars.
template <class Sum>
struct ScalarMath {
  using V = Sum;
  static FASTRNN_DEVICE V set1(V x) { return x; }
  static FASTRNN_DEVICE V sigmoid(V x) { return V(1) / (V(1) + exp_(-x)); }
  static FASTRNN_DEVICE V tanh(V x) { return tanh_(x); }
  static FASTRNN_DEVICE V relu(V x) { return x < V(0) ? V(0) : x; }  // NaN passes
  static FASTRNN_DEVICE V zero_where_not_positive(V test, V x) { return test <= V(0) ? V(0) : x; }

 private:
  static FASTRNN_DEVICE float exp_(float x) { return expf(x); }
  static FASTRNN_DEVICE double exp_(double x) { return exp(x); }
  static FASTRNN_DEVICE float tanh_(float x) { return tanhf(x); }
  static FASTRNN_DEVICE double tanh_(double x) { return ::tanh(x); }
};

}  // namespace cuda
}  // namespace fastrnn
