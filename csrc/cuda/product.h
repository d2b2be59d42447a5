// Products over all time steps: out = A B^T, or out += A B^T.
#pragma once

#include "cuda/tile.h"

namespace fastrnn {
namespace cuda {

constexpr int kProductRows = 64, kProductColumns = 64;

template <class N, class A, class B>
struct Product {
  A a;  // rows
  B b;  // columns
  typename N::Storage* out;
  int64_t out_stride, k_size, column_blocks;
  bool add;
};

template <class N>
using ProductTile = Tile<N, kProductRows, kProductColumns, false>;

template <class N, class A, class B>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm<N>) product(Product<N, A, B> p) {
  using T = typename N::Storage;
  const int64_t row0 = blockIdx.x / p.column_blocks * kProductRows;
  const int64_t column0 = blockIdx.x % p.column_blocks * kProductColumns;
  ProductTile<N> tile;
  tile.run(p.a, row0, p.b, column0, p.k_size);
  tile.each([&](int row, int column, typename N::Sum sum) {
    if (row0 + row >= p.a.count || column0 + column >= p.b.count) return;
    T* out = p.out + (row0 + row) * p.out_stride + column0 + column;
    *out = from_sum<T>(p.add ? to_sum(*out) + sum : sum);
  });
}

template <class N, class A, class B>
void multiply(const A& a, const B& b, int64_t k_size, typename N::Storage* out, int64_t out_stride, bool add,
              cudaStream_t stream) {
  const int64_t rows = (a.count + kProductRows - 1) / kProductRows;
  const int64_t columns = (b.count + kProductColumns - 1) / kProductColumns;
  if (rows * columns == 0) return;
  launch(product<N, A, B>, dim3(unsigned(rows * columns)), kThreads, ProductTile<N>::kSharedBytes, stream,
         Product<N, A, B>{a, b, out, out_stride, k_size, columns, add});
}

}  // namespace cuda
}  // namespace fastrnn
