// The one matrix product: a block's tile of A B^T, summed over k, whatever stands in the rows of A and B.
//
// Stages of k pass through a ring in shared memory while the next ones are under way. The warps of a block split the
// tile's columns or, where these are few, each stage's k; then their sums are added at the end, in the order of the
// warps.
#pragma once

#include "cuda/numbers.h"

namespace fastrnn {
namespace cuda {

constexpr int kWarps = 4, kThreads = 32 * kWarps;
// At least: leaves each thread 168 registers, or 255, of which the large tiles need nearly all.
template <class N>
constexpr int kBlocksPerSm = sizeof(typename N::Sum) == 8 ? 2 : 3;

// Rows of k numbers each, at data + r * stride; those from `count` on are zero. `chunk`: bytes that divide every row's
// address and length, 16 at most; copies are of so many.
template <class T>
struct RowOperand {
  const T* data;
  int64_t stride, count;
  int chunk;
  FASTRNN_DEVICE const T* row(int64_t r) const { return r < count ? data + r * stride : nullptr; }
};

// kRows x kColumns of A B^T. After `run` either `each` gives the sums, or `share` and `at`.
template <class N, int kRows, int kColumns>
class Tile {
  using T = typename N::Storage;
  using Sum = typename N::Sum;
  static constexpr int kStageK = 128 / int(sizeof(T));
  static constexpr int kPitch = kStageK + 16 / int(sizeof(T));  // rows start at other banks
  static constexpr int kStageSize = (kRows + kColumns) * kPitch;
  static constexpr int kMost = 46 * 1024;  // with the rows' addresses at most what every GPU gives unasked
  static constexpr int kFit = kMost / (kStageSize * int(sizeof(T)));
  static constexpr int kStages = kFit < 8 ? kFit : 8;
  static constexpr bool kSplitK = kColumns < 8 * kWarps;
  static constexpr int kWarpColumns = kSplitK ? kColumns : kColumns / kWarps;
  static constexpr int kWarpK = kSplitK ? kStageK / kWarps : kStageK;
  static constexpr int kSumPitch = kColumns + 1;
  static_assert(kStages >= 2 && kRows % 16 == 0 && kWarpColumns % 8 == 0 && kWarpK % N::kStep == 0);
  static constexpr size_t kRing = kStages * kStageSize * sizeof(T);
  static constexpr size_t kSums = (kSplitK ? kWarps : 1) * kRows * kSumPitch * sizeof(Sum);
  static constexpr size_t kRingOrSums = (kRing > kSums ? kRing : kSums) + 15 & ~size_t(15);

 public:
  static constexpr size_t kSharedBytes = kRingOrSums + (kRows + kColumns) * sizeof(T*);

  template <class A, class B>
  FASTRNN_DEVICE void run(const A& a, int64_t first_row, const B& b, int64_t first_column, int64_t k_size) {
    const int tid = int(threadIdx.x);
    for (int i = tid; i < kRows; i += kThreads) addresses()[i] = a.row(first_row + i);
    for (int i = tid; i < kColumns; i += kThreads) addresses()[kRows + i] = b.row(first_column + i);
    __syncthreads();
    int64_t fetched = 0;   // k
    int to = 0, from = 0;  // places in the ring
    const auto fetch = [&] {
      if (fetched < k_size) {
        T* stage = ring() + to * kStageSize;
        fetch_operand<kRows>(a.chunk, addresses(), fetched, k_size, stage);
        fetch_operand<kColumns>(b.chunk, addresses() + kRows, fetched, k_size, stage + kRows * kPitch);
      }
      fetched += kStageK;
      to = to + 1 == kStages ? 0 : to + 1;
      copy_async_commit();
    };
#pragma unroll 1
    for (int s = 0; s < kStages - 1; s++) fetch();
    for (int64_t k = 0; k < k_size; k += kStageK) {
      copy_async_wait<kStages - 2>();
      __syncthreads();  // this stage is there; all are done with the one before, whose place is taken now
      fetch();
      multiply(ring() + from * kStageSize);
      from = from + 1 == kStages ? 0 : from + 1;
    }
    copy_async_wait<0>();
    __syncthreads();
  }

  // Calls put(row, column, sum) for this thread's part of the tile; where the warps split k, for its share of the sums.
  template <class Put>
  FASTRNN_DEVICE void each(Put&& put) const {
    const int lane = int(threadIdx.x) % 32, first = kSplitK ? 0 : warp() * kWarpColumns;
#pragma unroll
    for (int m = 0; m < kRows / 16; m++) {
#pragma unroll
      for (int n = 0; n < kWarpColumns / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          put(m * 16 + lane / 4 + i / 2 * 8, first + n * 8 + lane % 4 * 2 + i % 2, sum_[m][n][i]);
        }
      }
    }
  }

  // Shares the warps' sums; from then on `at` gives any number of the tile to any thread.
  FASTRNN_DEVICE void share() {
    Sum* own = sums() + (kSplitK ? warp() * kRows * kSumPitch : 0);
    each([&](int row, int column, Sum sum) { own[row * kSumPitch + column] = sum; });
    __syncthreads();
  }
  FASTRNN_DEVICE Sum at(int row, int column) const {
    Sum sum = 0;
#pragma unroll
    for (int w = 0; w < (kSplitK ? kWarps : 1); w++) sum += sums()[(w * kRows + row) * kSumPitch + column];
    return sum;
  }

 private:
  static FASTRNN_DEVICE int warp() { return int(threadIdx.x) / 32; }
  static FASTRNN_DEVICE T* ring() { return reinterpret_cast<T*>(shared_memory()); }
  static FASTRNN_DEVICE Sum* sums() { return reinterpret_cast<Sum*>(shared_memory()); }
  static FASTRNN_DEVICE const T** addresses() { return reinterpret_cast<const T**>(shared_memory() + kRingOrSums); }

  template <int kCount>
  static FASTRNN_DEVICE void fetch_operand(int chunk, const T* const* rows, int64_t k, int64_t k_size, T* to) {
    switch (chunk) {
      case 16:
        return fetch_chunks<16, kCount>(rows, k, k_size, to);
      case 8:
        return fetch_chunks<8, kCount>(rows, k, k_size, to);
      case 4:
        return fetch_chunks<4, kCount>(rows, k, k_size, to);
      default:
        for (int i = int(threadIdx.x); i < kCount * kStageK; i += kThreads) {
          const int r = i / kStageK, at = i % kStageK;
          to[r * kPitch + at] = rows[r] && k + at < k_size ? rows[r][k + at] : T{};
        }
    }
  }

  template <int kBytes, int kCount>
  static FASTRNN_DEVICE void fetch_chunks(const T* const* rows, int64_t k, int64_t k_size, T* to) {
    if constexpr (kBytes >= int(sizeof(T))) {
      constexpr int size = kBytes / int(sizeof(T)), chunks = kStageK / size;
      for (int i = int(threadIdx.x); i < kCount * chunks; i += kThreads) {
        const int r = i / chunks, at = i % chunks * size;
        const bool exists = rows[r] && k + at < k_size;
        T* chunk = to + r * kPitch + at;
        if (exists) {
          copy_async<kBytes>(chunk, rows[r] + k + at);
        } else {
#pragma unroll
          for (int j = 0; j < size; j++) chunk[j] = T{};
        }
      }
    }
  }

  FASTRNN_DEVICE void multiply(const T* stage) {
    const int lane = int(threadIdx.x) % 32;
    const T* a = stage + (kSplitK ? warp() * kWarpK : 0);
    const T* b = stage + kRows * kPitch + (kSplitK ? warp() * kWarpK : warp() * kWarpColumns * kPitch);
#pragma unroll
    for (int k = 0; k < kWarpK; k += N::kStep) {
#pragma unroll
      for (int m = 0; m < kRows / 16; m++) {
#pragma unroll
        for (int n = 0; n < kWarpColumns / 8; n++) {
          N::multiply(sum_[m][n], a + m * 16 * kPitch + k, b + n * 8 * kPitch + k, kPitch, lane);
        }
      }
    }
  }

  Sum sum_[kRows / 16][kWarpColumns / 8][4] = {};
};

}  // namespace cuda
}  // namespace fastrnn
