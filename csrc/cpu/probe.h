// Loops whose speed is a limit of the machine: what the kernels' times are compared with.
#pragma once

#include "cpu/simd.h"

namespace fastrnn {
namespace FASTRNN_ISA {

// Multiplies and adds in registers alone, as many at once as a tile of the matrix kernel. Returns the operations done.
template <class T>
int64_t fma_chains(int64_t rounds, void* sink) {
  constexpr int kChains = kRegisters * 3 / 4;
  const Vec<T> half = set1(T(0.5));
  Vec<T> acc[kChains];
  for (int k = 0; k < kChains; k++) acc[k] = set1(T(k));  // equal chains would be computed once
  for (int64_t i = 0; i < rounds; i++) {
    FASTRNN_UNROLL
    for (int k = 0; k < kChains / 2; k++) acc[k] = acc[k] * half + half;
    FASTRNN_UNROLL
    for (int k = kChains / 2; k < kChains; k++) acc[k] = acc[k] * half + half;
  }
  Vec<T> sum{};
  for (int k = 0; k < kChains; k++) sum += acc[k];
  store(static_cast<T*>(sink), sum);
  return 2 * rounds * kChains * kWidth<T>;
}

// Reads `bytes` (a multiple of 512) once.
template <class T>
void read_once(const void* data, int64_t bytes, void* sink) {
  constexpr int64_t w = kWidth<T>, kStreams = 8;
  const T* p = static_cast<const T*>(data);
  Vec<T> acc[kStreams] = {};
  for (int64_t i = 0; i < bytes / int64_t(sizeof(T)); i += kStreams * w) {
    FASTRNN_UNROLL
    for (int k = 0; k < kStreams; k++) acc[k] += load(p + i + k * w);
  }
  Vec<T> sum{};
  for (int k = 0; k < kStreams; k++) sum += acc[k];
  store(static_cast<T*>(sink), sum);
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn
