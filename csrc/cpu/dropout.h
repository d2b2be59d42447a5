// Dropout between layers: the mask is computed where it is needed, never stored.
#pragma once

#include "philox.h"

namespace fastrnn {

class DropoutMask {
 public:
  explicit DropoutMask(const Dropout& dropout) : rule_(dropout) {}

  // out = x * mask / (1 - p), one row of one layer and direction; in place is fine.
  template <class T>
  void apply(const T* x, T* out, int64_t units, uint32_t b, uint32_t t, uint32_t stream) const {
    for (int64_t first = 0; first < units; first += 4 * kBlocks) {
      uint32_t word[4][kBlocks];
      for (int i = 0; i < kBlocks; i++) word[0][i] = uint32_t(first / 4) + uint32_t(i);
      for (int i = 0; i < kBlocks; i++) word[1][i] = b;
      for (int i = 0; i < kBlocks; i++) word[2][i] = t;
      for (int i = 0; i < kBlocks; i++) word[3][i] = stream;
      philox4x32(word, rule_.key[0], rule_.key[1]);
      const int64_t end = units - first < 4 * kBlocks ? units - first : 4 * kBlocks;
      for (int64_t u = 0; u < end; u++) out[first + u] = rule_.apply(x[first + u], word[u % 4][u / 4]);
    }
  }

 private:
  static constexpr int kBlocks = 16;  // counters at a time
  DropoutRule rule_;
};

}  // namespace fastrnn
