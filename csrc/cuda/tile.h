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
// What divides the address and the length of every row, 16 bytes at most.
template <class T>
int chunk_of(const T* data, int64_t stride, int64_t k_size) {
  const uint64_t all =
      reinterpret_cast<uintptr_t>(data) | uint64_t(stride) * sizeof(T) | uint64_t(k_size) * sizeof(T) | 16;
  return int(all & -all);
}
template <class T>
RowOperand<std::remove_const_t<T>> rows_of(T* data, int64_t stride, int64_t count, int64_t k_size) {
  return {data, stride, count, chunk_of(data, stride, k_size)};
}

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
    const Fetcher<kRows> fetch_a(a, first_row, addresses());
    const Fetcher<kColumns> fetch_b(b, first_column, addresses() + kRows);
    if (a.chunk < 16 || b.chunk < 16) __syncthreads();
    int64_t fetched = 0;   // k
    int to = 0, from = 0;  // places in the ring
    const auto fetch = [&] {
      if (fetched < k_size) {
        T* stage = ring() + to * kStageSize;
        fetch_a(fetched, k_size, stage);
        fetch_b(fetched, k_size, stage + kRows * kPitch);
      }
      fetched += kStageK;
      to = to + 1 == kStages ? 0 : to + 1;
      copy_async_commit();
    };
#pragma unroll 1
    for (int s = 0; s < kStages - 1; s++) fetch();
#pragma unroll 1
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

  // Brings kCount rows of an operand, kStageK of k at a time. Eight threads share a row where copies are of 16 bytes.
  template <int kCount>
  class Fetcher {
    static constexpr int kSize = 16 / int(sizeof(T)), kSharers = kStageK / kSize, kApart = kThreads / kSharers;
    static_assert(kCount % kApart == 0);

   public:
    template <class Operand>
    FASTRNN_DEVICE Fetcher(const Operand& operand, int64_t first, const T** addresses)
        : chunk_(operand.chunk), addresses_(addresses) {
      const int tid = int(threadIdx.x);
      if (chunk_ == 16) {
#pragma unroll
        for (int i = 0; i < kCount / kApart; i++) rows_[i] = operand.row(first + tid / kSharers + i * kApart);
      } else {
        for (int i = tid; i < kCount; i += kThreads) addresses_[i] = operand.row(first + i);
      }
    }

    FASTRNN_DEVICE void operator()(int64_t k, int64_t k_size, T* to) const {
      if (chunk_ < 16) return slowly(k, k_size, to);
      const int tid = int(threadIdx.x), at = tid % kSharers * kSize;
      T* own = to + tid / kSharers * kPitch + at;
#pragma unroll
      for (int i = 0; i < kCount / kApart; i++) {
        copy_async_or_zero(own + i * kApart * kPitch, rows_[i] + k + at, rows_[i] && k + at < k_size);
      }
    }

   private:
    FASTRNN_DEVICE void slowly(int64_t k, int64_t k_size, T* to) const {
      switch (chunk_) {
        case 8:
          return in_chunks<8>(k, k_size, to);
        case 4:
          return in_chunks<4>(k, k_size, to);
        default:
#pragma unroll 1
          for (int i = int(threadIdx.x); i < kCount * kStageK; i += kThreads) {
            const int r = i / kStageK, at = i % kStageK;
            to[r * kPitch + at] = addresses_[r] && k + at < k_size ? addresses_[r][k + at] : T{};
          }
      }
    }

    template <int kBytes>
    FASTRNN_DEVICE void in_chunks(int64_t k, int64_t k_size, T* to) const {
      if constexpr (kBytes >= int(sizeof(T))) {
        constexpr int size = kBytes / int(sizeof(T)), chunks = kStageK / size;
#pragma unroll 1
        for (int i = int(threadIdx.x); i < kCount * chunks; i += kThreads) {
          const int r = i / chunks, at = i % chunks * size;
          T* chunk = to + r * kPitch + at;
          if (addresses_[r] && k + at < k_size) {
            copy_async<kBytes>(chunk, addresses_[r] + k + at);
          } else {
#pragma unroll
            for (int j = 0; j < size; j++) chunk[j] = T{};
          }
        }
      }
    }

    const int chunk_;
    const T** const addresses_;
    const T* rows_[kCount / kApart];
  };

  FASTRNN_DEVICE void multiply(const T* stage) {
    const int lane = int(threadIdx.x) % 32;
    const T* a = stage + (kSplitK ? warp() * kWarpK : 0);
    const T* b = stage + kRows * kPitch + (kSplitK ? warp() * kWarpK : warp() * kWarpColumns * kPitch);
#pragma unroll
    for (int k = 0; k < kWarpK; k += N::kStep) {
      if constexpr (N::kOnTensorCores && kTensorCores) {
        uint32_t columns[kWarpColumns / 8][2];
        N::template load_columns<kWarpColumns / 8>(columns, b + k, kPitch, lane);
#pragma unroll
        for (int m = 0; m < kRows / 16; m++) {
          const Fragment rows = N::load_rows(a + m * 16 * kPitch + k, kPitch, lane);
#pragma unroll
          for (int n = 0; n < kWarpColumns / 8; n++) N::mma(sum_[m][n], rows.words, columns[n]);
        }
      } else {
#pragma unroll
        for (int m = 0; m < kRows / 16; m++) {
#pragma unroll
          for (int n = 0; n < kWarpColumns / 8; n++) {
            multiply_plainly(sum_[m][n], a + m * 16 * kPitch + k, kPitch, b + n * 8 * kPitch + k, kPitch, N::kStep,
                             lane);
          }
        }
      }
    }
  }

  Sum sum_[kRows / 16][kWarpColumns / 8][4] = {};
};

}  // namespace cuda
}  // namespace fastrnn
