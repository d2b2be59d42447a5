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
  } else {
    return Bfloat16Bits{float_to_bfloat16(x)};
  }
}

// Neighbours, which are read and written at once.
template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T numbers[2];
  static FASTRNN_DEVICE Pair of(T first, T second) { return {{first, second}}; }
  FASTRNN_DEVICE T sum(int i) const { return numbers[i]; }
};
template <>
struct Pair<Float16Bits> {
  uint32_t word;
  static FASTRNN_DEVICE Pair of(float first, float second) { return {floats_to_halves(first, second)}; }
  FASTRNN_DEVICE float sum(int i) const { return half_to_float(uint16_t(word >> 16 * i)); }
};
template <>
struct Pair<Bfloat16Bits> {
  uint32_t word;
  static FASTRNN_DEVICE Pair of(float first, float second) { return {floats_to_bfloat16s(first, second)}; }
  FASTRNN_DEVICE float sum(int i) const { return bits_float(i ? word & 0xffff0000u : word << 16); }
};

// Tiles of the right size by plain arithmetic, each lane what a tensor core would leave with it.
template <class T, class Sum>
FASTRNN_DEVICE void multiply_plainly(Sum (&d)[4], const T* a, int a_pitch, const T* b, int b_pitch, int k_size,
                                     int lane) {
  const int g = lane / 4, t = lane % 4;
  for (int k = 0; k < k_size; k++) {
    const Sum a0 = to_sum(a[g * a_pitch + k]), a1 = to_sum(a[(g + 8) * a_pitch + k]);
    const Sum b0 = to_sum(b[2 * t * b_pitch + k]), b1 = to_sum(b[(2 * t + 1) * b_pitch + k]);
    d[0] += a0 * b0;
    d[1] += a0 * b1;
    d[2] += a1 * b0;
    d[3] += a1 * b1;
  }
}

// What a lane holds of 16 rows of k for a product.
struct alignas(16) Fragment {
  uint32_t words[4];
};

// A dtype of tensor cores, N: N::mma multiplies words of kPerWord numbers, made of what stands in memory by
// N::converted.
template <class N, class T>
struct OnTensorCores {
  using Storage = T;
  using Sum = float;
  static constexpr bool kOnTensorCores = true;
  static constexpr int kPerWord = 4 / int(sizeof(T)), kStep = 8 * kPerWord;

  static FASTRNN_DEVICE uint32_t word(const T* p) { return N::converted(*reinterpret_cast<const uint32_t*>(p)); }
  // The same numbers so that words of them need no more conversion.
  static FASTRNN_DEVICE Pair<T> operands(const Pair<T>& pair) {
    if constexpr (kPerWord == 2) {
      return pair;
    } else {
      return {{bits_float(word(&pair.numbers[0])), bits_float(word(&pair.numbers[1]))}};
    }
  }

  // Row of a fragment's word.
  static FASTRNN_DEVICE int row_of(int word, int lane) { return lane / 4 + word % 2 * 8; }

  // Words of 16 rows, or of kTiles times 8, in shared memory. Matrices of 8 rows x 16 bytes are loaded at once, a lane
  // naming a row of one of them and getting a word of each.
  static FASTRNN_DEVICE Fragment load_rows(const T* rows, int pitch, int lane) {
    Fragment fragment;
    load_matrices(fragment.words, rows + lane % 16 * pitch + lane / 16 * (kStep / 2));
    convert(fragment.words);
    return fragment;
  }
  template <int kTiles>
  static FASTRNN_DEVICE void load_columns(uint32_t (&words)[kTiles][2], const T* rows, int pitch, int lane) {
    static_assert(kTiles == 1 || kTiles % 2 == 0);
    const T* at = rows + lane % 8 * pitch + lane / 8 % 2 * (kStep / 2);
    if constexpr (kTiles == 1) {
      load_matrices(words[0], at);
      convert(words[0]);
    } else {
#pragma unroll
      for (int i = 0; i < kTiles; i += 2) {
        uint32_t four[4];
        load_matrices(four, at + (i + lane / 16) * 8 * pitch);
        convert(four);
#pragma unroll
        for (int j = 0; j < 4; j++) words[i + j / 2][j % 2] = four[j];
      }
    }
  }

 private:
  template <int kWords>
  static FASTRNN_DEVICE void convert(uint32_t (&words)[kWords]) {
#pragma unroll
    for (int i = 0; i < kWords; i++) words[i] = N::converted(words[i]);
  }
};

template <class T>
struct Plain {
  using Storage = T;
  using Sum = T;
  static constexpr bool kOnTensorCores = false;
  static constexpr int kStep = 32 / int(sizeof(T));
  static FASTRNN_DEVICE Pair<T> operands(const Pair<T>& pair) { return pair; }
};

// kStep: the k of one product, d (16 x 8) += a (16 x kStep) b (8 x kStep)^T.
struct Float64 : Plain<double> {};
struct Float32 : Plain<float> {};

struct Tf32 : OnTensorCores<Tf32, float> {
  static FASTRNN_DEVICE uint32_t converted(uint32_t word) { return to_tf32(bits_float(word)); }
  static FASTRNN_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma_tf32(d, a, b); }
};
struct Float16 : OnTensorCores<Float16, Float16Bits> {
  static FASTRNN_DEVICE uint32_t converted(uint32_t word) { return word; }
  static FASTRNN_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_float16(d, a, b);
  }
};
struct Bfloat16 : OnTensorCores<Bfloat16, Bfloat16Bits> {
  static FASTRNN_DEVICE uint32_t converted(uint32_t word) { return word; }
  static FASTRNN_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_bfloat16(d, a, b);
  }
};

// What cells/*.h compute with: scalars. Beside products of tensor cores, errors of a few 1e-7 do no harm.
template <class N>
struct ScalarMath {
  using V = typename N::Sum;
  static FASTRNN_DEVICE V set1(V x) { return x; }
  static FASTRNN_DEVICE V sigmoid(V x) {
    if constexpr (N::kOnTensorCores) {
      return fast_reciprocal(1.f + fast_exp(-x));
    } else {
      return V(1) / (V(1) + exp_(-x));
    }
  }
  static FASTRNN_DEVICE V tanh(V x) {
    if constexpr (N::kOnTensorCores) {
      return 1.f - 2.f * fast_reciprocal(1.f + fast_exp(2.f * x));
    } else {
      return tanh_(x);
    }
  }
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
