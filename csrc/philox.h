// Philox4x32-10, a counter-based random generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"),
// and what dropout makes of its words; the same on every device.
#pragma once

#include <cmath>
#include <cstdint>

#include "cells/inline.h"
#include "fastrnn.h"

namespace fastrnn {

// n counters c[.][i] become random words; n at a time, so that a compiler can vectorise.
template <int n>
FASTRNN_INLINE void philox4x32(uint32_t (&c)[4][n], uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; round++) {
    for (int i = 0; i < n; i++) {
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

// The mask of unit u, row b, step t and stream layer * directions + direction is word u % 4 of the counter
// (u / 4, b, t, stream) under the key `seed`: below the threshold the unit is dropped, else it is scaled.
struct DropoutRule {
  explicit DropoutRule(const Dropout& dropout)
      : threshold(uint64_t(std::nearbyint(dropout.p * 4294967296.0))),
        scale(dropout.p < 1 ? 1 / (1 - dropout.p) : 0),
        key{uint32_t(dropout.seed), uint32_t(dropout.seed >> 32)} {}

  // Multiplied by 0, not replaced: NaN stays visible.
  template <class T>
  FASTRNN_INLINE T apply(T x, uint32_t word) const {
    return x * (word < threshold ? T(0) : T(scale));
  }

  uint64_t threshold;  // of 2^32
  double scale;
  uint32_t key[2];
};

}  // namespace fastrnn
