// Sigmoid, tanh and relu on SIMD vectors: exact limits (0, 1, -1), NaN stays NaN, about 2 ulp elsewhere.
//
// Both build on e^x - 1 = 2^n q + (2^n - 1), x = n ln 2 + r, q = e^r - 1 = r P(r), |r| <= ln(2)/2: near 0 that keeps
// the relative accuracy that e^x - 1 computed from e^x would lose. P is a minimax polynomial (error 1e-8 and 2e-17).
#pragma once

#include "cpu/simd.h"

namespace fastrnn {
namespace FASTRNN_ISA {

template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr int kMantissaBits = 23;
  static constexpr uint32_t kOne = 0x3f800000u;
  static constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.1219444005469058e-4f;
  static constexpr float kLog2e = 1.4426950408889634f;
  static constexpr float kPoly[] = {
      1.f, 0.50000000134981779f, 0.16666504936963597f, 0.041666464602026542f, 0.0083691843824f, 0.0013933685862617174f};
  // e^x stays finite and normal; 1 / (1 + e^88.3) is below the normal range, hence 0.
  static constexpr float kMin = -87.3f, kMax = 88.3f;
  static constexpr float kTanhMax = 40;  // e^40 + 1 rounds to e^40
};
template <>
struct ExpConstants<double> {
  static constexpr int kMantissaBits = 52;
  static constexpr uint64_t kOne = 0x3ff0000000000000u;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLn2High = 0.6931471803691238, kLn2Low = 1.9082149292705877e-10;
  static constexpr double kLog2e = 1.4426950408889634;
  static constexpr double kPoly[] = {1.0,
                                     0.50000000000000056451,
                                     0.16666666666666671008,
                                     0.041666666666572767692,
                                     0.0083333333333261120526,
                                     0.0013888888932619635148,
                                     0.00019841269874901259234,
                                     0.000024801504180837138252,
                                     2.7557255297969644392e-6,
                                     2.7626426376580332797e-7,
                                     2.5105259538448493419e-8};
  static constexpr double kMin = -708.3, kMax = 709.4;
  static constexpr double kTanhMax = 80;
};

template <class T>
struct SimdMath {
  using V = Vec<T>;
  using C = ExpConstants<T>;

  static FASTRNN_INLINE V set1(T x) { return FASTRNN_ISA::set1(x); }

  // x within [kMin, kMax] or NaN: e^x = scale * (1 + q).
  static FASTRNN_INLINE void exp_parts(V x, V& scale, V& q) {
    const V shifted = x * set1(C::kLog2e) + set1(C::kRound);
    const V n = shifted - set1(C::kRound);
    const V r = (x - n * set1(C::kLn2High)) - n * set1(C::kLn2Low);
    constexpr int terms = int(sizeof(C::kPoly) / sizeof(T));
    V p = set1(C::kPoly[terms - 1]);
    FASTRNN_UNROLL
    for (int i = terms - 2; i >= 0; i--) p = p * r + set1(C::kPoly[i]);
    q = p * r;
    Bits<T> bits;
    __builtin_memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << C::kMantissaBits) + C::kOne;  // n moves into the exponent, the rest falls off
    __builtin_memcpy(&scale, &bits, sizeof scale);
  }

  static FASTRNN_INLINE V exp(V x) {
    V scale, q;
    exp_parts(at_least(at_most(x, C::kMax), C::kMin), scale, q);
    return scale * q + scale;
  }

  static FASTRNN_INLINE V sigmoid(V x) {
    V scale, q;
    exp_parts(at_least(at_most(-x, C::kMax), C::kMin), scale, q);
    return reciprocal(set1(1) + (scale * q + scale));
  }

  static FASTRNN_INLINE V tanh(V x) {  // (e^2x - 1) / (e^2x + 1)
    V scale, q;
    exp_parts(at_least(at_most(x + x, C::kTanhMax), -C::kTanhMax), scale, q);
    const V e = scale * q + (scale - set1(1));
    return quotient(e, e + set1(2));
  }

  static FASTRNN_INLINE V relu(V x) { return at_least(x, T(0)); }

  static FASTRNN_INLINE V zero_where_not_positive(V test, V x) { return test <= set1(0) ? set1(0) : x; }
};

}  // namespace FASTRNN_ISA
}  // namespace fastrnn
