// What is done number by number between the products: copies, states, dropout, sums of columns.
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

// (T, B, width): the state that each step started from.
template <class T>
struct PreviousStates {
  PreviousState<T> state;  // of any step
  T* out;
  FASTRNN_DEVICE void operator()(int64_t i) const {
    PreviousState<T> s = state;
    const int64_t row = i / s.width;
    s.t = row / s.rows.batch;
    const T* from = s.row(row % s.rows.batch);
    out[i] = from ? from[i % s.width] : T{};
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

// (to_rows, columns) from rows of `columns`: out[column][i] = in[row_of(i)][column]; blocks of `block` rows, the first
// of which may be another one of the source.
template <class T>
struct Transpose {
  const T* from;
  T* to;
  int64_t columns, rows, block, first_block;  // first_block: where the first block of `to` stands in `from`
  FASTRNN_DEVICE void operator()(int64_t i) const {
    const int64_t column = i / rows, row = i % rows;
    // Blocks rotate: first_block, then the others in their order.
    const int64_t place = row / block, source = place == 0 ? first_block : place - (place <= first_block);
    to[i] = from[(source * block + row % block) * columns + column];
  }
};

// Sums of the columns of (rows, stride), which become, or are added to, out; a block for kColumnsPerBlock of them.
constexpr int kColumnsPerBlock = 32;
template <class N>
struct ColumnSums {
  const typename N::Storage* from;
  int64_t rows, stride, columns;
  typename N::Storage* out;
  bool add;
};
template <class N>
__global__ void __launch_bounds__(kPointwiseThreads) column_sums(ColumnSums<N> p) {
  using Sum = typename N::Sum;
  constexpr int parts = int(kPointwiseThreads) / kColumnsPerBlock;
  const int lane = int(threadIdx.x) % kColumnsPerBlock, part = int(threadIdx.x) / kColumnsPerBlock;
  const int64_t column = int64_t(blockIdx.x) * kColumnsPerBlock + lane;
  Sum sum = 0;
  if (column < p.columns) {
    for (int64_t r = part; r < p.rows; r += parts) sum += to_sum(p.from[r * p.stride + column]);
  }
  Sum* sums = reinterpret_cast<Sum*>(shared_memory());
  sums[part * kColumnsPerBlock + lane] = sum;
  __syncthreads();
  if (part || column >= p.columns) return;
  Sum total = p.add ? to_sum(p.out[column]) : Sum(0);
  for (int i = 0; i < parts; i++) total += sums[i * kColumnsPerBlock + lane];
  p.out[column] = from_sum<typename N::Storage>(total);
}
template <class N>
void add_column_sums(const ColumnSums<N>& sums, cudaStream_t stream) {
  launch(column_sums<N>, dim3(unsigned((sums.columns + kColumnsPerBlock - 1) / kColumnsPerBlock)), kPointwiseThreads,
         kPointwiseThreads * sizeof(typename N::Sum), stream, sums);
}

}  // namespace cuda
}  // namespace fastrnn
