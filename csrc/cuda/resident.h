// A matrix that stays with a warp for all steps: as much of it as may be in registers, the rest in shared memory.
#pragma once

#include "cuda/numbers.h"

namespace fastrnn {
namespace cuda {

// Rows of a matrix in shared memory that a Resident is multiplied by: numbers from row to row.
template <class N>
constexpr int resident_pitch(int k_size) {
  // Makes the lanes of a load meet different banks. Tensor cores' are 16 bytes each of two neighbouring rows, k_size
  // being a multiple of 128 bytes.
  return k_size + (N::kOnTensorCores ? 64 : 16) / int(sizeof(typename N::Storage));
}

// kTiles times 16 rows of kSteps * N::kStep numbers. Source: row(r, k) is the address of row r's number k, from which
// on a word can be read if k starts one; null: zeros.
template <class N, int kTiles, int kSteps, bool kOnTensorCores = N::kOnTensorCores>
class Resident;

// Two steps take their k from 16 neighbouring words, four for each lane of a row, so that one load gives them all. The
// order of k within the sums follows from that, and is the matrix's too.
template <class N, int kTiles, int kSteps>
class Resident<N, kTiles, kSteps, true> {
  using T = typename N::Storage;
  // Of a thread: what leaves room for the rest, of which numbers of 32 bits have more. ptxas tells.
  static constexpr int kRegisters = kTiles < 4 && sizeof(T) == 4 ? 80 : 96;
  static constexpr int kMost = kRegisters / (4 * kTiles) / 2 * 2, kKept = kSteps < kMost ? kSteps : kMost;
  // A product that waits for the one before it leaves the tensor cores idle.
  static constexpr int kChains = kTiles < 3 ? 4 / kTiles : 1;
  static_assert(kSteps % 2 == 0);

 public:
  static constexpr size_t kSharedBytes = (kSteps - kKept) * kTiles * 32 * sizeof(Fragment);  // of a warp

  // The block's threads meet before the first product.
  template <class Source>
  FASTRNN_DEVICE void load(const Source& source, char* shared, int lane) {
    shared_ = reinterpret_cast<Fragment*>(shared) + lane;
#pragma unroll
    for (int s = 0; s < kKept; s++) {
#pragma unroll
      for (int tile = 0; tile < kTiles; tile++) kept_[s][tile] = fragment(source, s, tile, lane);
    }
#pragma unroll 1
    for (int s = kKept; s < kSteps; s++) {
#pragma unroll
      for (int tile = 0; tile < kTiles; tile++) *rest(s, tile) = fragment(source, s, tile, lane);
    }
  }

  // d = these times b (8 rows of k)^T, in tiles of 16 x 8. What stands in b is N::operands'.
  FASTRNN_DEVICE void multiply(float (&d)[kTiles][4], const T* b, int pitch, int lane) const {
    const T* row = b + lane / 4 * pitch + lane % 4 * 4 * N::kPerWord;
    float chains[kChains][kTiles][4] = {};
#pragma unroll
    for (int s = 0; s < kSteps; s++) {
      const Fragment words = *reinterpret_cast<const Fragment*>(row + s / 2 * 2 * N::kStep);
      const uint32_t of_step[2] = {words.words[s % 2 * 2], words.words[s % 2 * 2 + 1]};
#pragma unroll
      for (int tile = 0; tile < kTiles; tile++) {
        const Fragment a = s < kKept ? kept_[s < kKept ? s : 0][tile] : *rest(s, tile);
        N::mma(chains[s % kChains][tile], a.words, of_step);
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        d[tile][i] = chains[0][tile][i];
#pragma unroll
        for (int c = 1; c < kChains; c++) d[tile][i] += chains[c][tile][i];
      }
    }
  }

 private:
  template <class Source>
  static FASTRNN_DEVICE Fragment fragment(const Source& source, int s, int tile, int lane) {
    Fragment fragment;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int word = s / 2 * 16 + lane % 4 * 4 + s % 2 * 2 + i / 2;
      const T* at = source.row(tile * 16 + N::row_of(i, lane), word * N::kPerWord);
      fragment.words[i] = at ? N::word(at) : 0;
    }
    return fragment;
  }
  FASTRNN_DEVICE Fragment* rest(int s, int tile) const { return shared_ + ((s - kKept) * kTiles + tile) * 32; }

  Fragment kept_[kKept][kTiles];
  Fragment* shared_;
};

template <class N, int kTiles, int kSteps>
class Resident<N, kTiles, kSteps, false> {
  using T = typename N::Storage;
  static constexpr int kPitch = kSteps * N::kStep + 16 / int(sizeof(T));

 public:
  static constexpr size_t kSharedBytes = kTiles * 16 * kPitch * sizeof(T);

  template <class Source>
  FASTRNN_DEVICE void load(const Source& source, char* shared, int lane) {
    shared_ = reinterpret_cast<T*>(shared);
    for (int r = 0; r < kTiles * 16; r++) {
      for (int k = lane; k < kSteps * N::kStep; k += 32) {
        const T* at = source.row(r, k);
        shared_[r * kPitch + k] = at ? *at : T{};
      }
    }
  }

  FASTRNN_DEVICE void multiply(T (&d)[kTiles][4], const T* b, int pitch, int lane) const {
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++) {
#pragma unroll
      for (int i = 0; i < 4; i++) d[tile][i] = 0;
    }
    for (int k = 0; k < kSteps * N::kStep; k += N::kStep) {
#pragma unroll
      for (int tile = 0; tile < kTiles; tile++) {
        multiply_plainly(d[tile], shared_ + tile * 16 * kPitch + k, kPitch, b + k, pitch, N::kStep, lane);
      }
    }
  }

 private:
  T* shared_;
};

}  // namespace cuda
}  // namespace fastrnn
