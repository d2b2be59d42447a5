// Dropout between layers from a counter-based generator, Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers:
// as easy as 1, 2, 3"): the mask of (seed, layer, direction, t, b, unit) is computed where it is needed, never stored.
//
// counter = (unit / 4, b, t, layer * directions + direction), key = seed; word unit % 4 of the result is compared with
// p.
#pragma once

#include <cmath>
#include <cstdint>

#include "fastrnn.h"

namespace fastrnn {

class DropoutMask {
 public:
  explicit DropoutMask(const Dropout& dropout)
      : threshold_(uint64_t(std::nearbyint(dropout.p * 4294967296.0))),
        scale_(dropout.p < 1 ? 1 / (1 - dropout.p) : 0),
        key_{uint32_t(dropout.seed), uint32_t(dropout.seed >> 32)} {}

  // out = x * mask / (1 - p), one row of one layer and direction; in place is fine.
  template <class T>
  void apply(const T* x, T* out, int64_t units, uint32_t b, uint32_t t, uint32_t stream) const {
    const T scale = T(scale_);
    for (int64_t first = 0; first < units; first += 4 * kBlocks) {
      uint32_t word[4][kBlocks];
      for (int i = 0; i < kBlocks; i++) word[0][i] = uint32_t(first / 4) + uint32_t(i);
      for (int i = 0; i < kBlocks; i++) word[1][i] = b;
      for (int i = 0; i < kBlocks; i++) word[2][i] = t;
      for (int i = 0; i < kBlocks; i++) word[3][i] = stream;
      philox(word);
      const int64_t end = units - first < 4 * kBlocks ? units - first : 4 * kBlocks;
      for (int64_t u = 0; u < end; u++) {
        // Multiplied by 0, not replaced: NaN stays visible.
        out[first + u] = x[first + u] * (word[u % 4][u / 4] < threshold_ ? T(0) : scale);
      }
    }
  }

 private:
  static constexpr int kBlocks = 16;  // counters at a time, so that the compiler can vectorise

  void philox(uint32_t (&c)[4][kBlocks]) const {
    uint32_t k0 = key_[0], k1 = key_[1];
    for (int round = 0; round < 10; round++) {
      for (int i = 0; i < kBlocks; i++) {
        const uint64_t p0 = uint64_t(0xD2511F53u) * c[0][i], p1 = uint64_t(0xCD9E8D57u) * c[2][i];
        const uint32_t c1 = c[1][i], c3 = c[3][i];
        c[0][i] = uint32_t(p1 >> 32) ^ c1 ^ k0;
        c[1][i] = uint32_t(p1);
        c[2][i] = uint32_t(p0 >> 32) ^ c3 ^ k1;
        c[3][i] = uint32_t(p0);
      }
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
  }

  uint64_t threshold_;  // of 2^32: words below it drop their unit
  double scale_;
  uint32_t key_[2];
};

}  // namespace fastrnn
