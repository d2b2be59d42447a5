// What is done number by number between the products: copies, states, dropout, sums.
#pragma once

#include "cuda/numbers.h"
#include "cuda/rows.h"
#include "philox.h"

namespace fastrnn {
namespace cuda {

constexpr unsigned kPointwiseThreads = 256;

// Runs body(i) for every i < n, each in a thread of its own.
template <class Body>
struct Pointwise {
  int64_t n;
  Body body;
};
template <class Body>
__global__ void pointwise(Pointwise<Body> p) {
  const int64_t i = int64_t(blockIdx.x) * kPointwiseThreads + threadIdx.x;
  if (i < p.n) p.body(i);
}
template <class Body>
void run_pointwise(int64_t n, cudaStream_t stream, const Body& body) {
  if (n == 0) return;
  launch(pointwise<Body>, dim3(unsigned((n + kPointwiseThreads - 1) / kPointwiseThreads)), kPointwiseThreads, 0, stream,
         Pointwise<Body>{n, body});
}

// to = from, in the other's dtype; from null: zeros.
template <class To, class From>
struct Convert {
  const From* from;
  To* to;
  FASTRNN_DEVICE void operator()(int64_t i) const {
    if (from) {
      to[i] = from_sum<To>(to_sum(from[i]));
    } else {
      to[i] = To{};
    }
  }
};

// (B, width): what each row's last step left in steps (T, B, stride), or, of rows without one, the initial state.
template <class T>
struct FinalState {
  Rows rows;
  int64_t width;
  const T* steps;
  int64_t stride;
  const T* initial;  // (B, width) or null: zeros
  T* out;
  FASTRNN_DEVICE void operator()(int64_t i) const {
    const int64_t b = i / width, u = i % width, length = rows.length(b);
    if (length) {
      out[i] = steps[((rows.reverse ? 0 : length - 1) * rows.batch + b) * stride + u];
    } else {
      out[i] = initial ? initial[i] : T{};
    }
  }
};

// (T, B, width): dropout of each direction's `units`; a thread for four of them.
template <class T>
struct Drop {
  DropoutRule rule;
  int64_t batch, units, groups;  // groups = directions * ceil(units / 4)
  uint32_t first_stream;
  int directions;
  const T* from;
  T* to;
  FASTRNN_DEVICE void operator()(int64_t i) const {
    const int64_t row = i / groups, group = i % groups, per = groups / directions;
    const int64_t direction = group / per, first = group % per * 4;
    uint32_t word[4][1] = {
        {uint32_t(first / 4)}, {uint32_t(row % batch)}, {uint32_t(row / batch)}, {first_stream + uint32_t(direction)}};
    philox4x32(word, rule.key[0], rule.key[1]);
    const int64_t at = (row * directions + direction) * units + first;
    for (int j = 0; j < 4 && first + j < units; j++) {
      to[at + j] = from_sum<T>(rule.apply(to_sum(from[at + j]), word[j][0]));
    }
  }
};

// out[i] = or += the sum of n numbers at from + i * stride; a block for each i.
template <class N>
struct RowSums {
  const typename N::Storage* from;
  int64_t n, stride, rows;
  typename N::Storage* out;
  bool add;
};
template <class N>
__global__ void __launch_bounds__(kPointwiseThreads) row_sums(RowSums<N> p) {
  using Sum = typename N::Sum;
  Sum* sums = reinterpret_cast<Sum*>(shared_memory());
  const int tid = int(threadIdx.x);
  const typename N::Storage* row = p.from + int64_t(blockIdx.x) * p.stride;
  Sum sum = 0;
  for (int64_t i = tid; i < p.n; i += kPointwiseThreads) sum += to_sum(row[i]);
  sums[tid] = sum;
  for (int half = int(kPointwiseThreads) / 2; half > 0; half /= 2) {
    __syncthreads();
    if (tid < half) sums[tid] += sums[tid + half];
  }
  if (tid) return;
  auto* out = p.out + blockIdx.x;
  *out = from_sum<typename N::Storage>(p.add ? to_sum(*out) + sums[0] : sums[0]);
}
template <class N>
void sum_rows(const RowSums<N>& sums, cudaStream_t stream) {
  launch(row_sums<N>, dim3(unsigned(sums.rows)), kPointwiseThreads, kPointwiseThreads * sizeof(typename N::Sum), stream,
         sums);
}

}  // namespace cuda
}  // namespace fastrnn
