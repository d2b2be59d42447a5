// Products over all time steps: out = A B^T, or out += A B^T, by cuBLASLt or the own kernel; and the transposed copies
// that make every product one of rows with rows.
#pragma once

#include "cuda/cublaslt.h"
#include "cuda/pointwise.h"
#include "cuda/rows.h"
#include "cuda/tile.h"

namespace fastrnn {
namespace cuda {

constexpr int kProductRows = 64, kProductColumns = 64;

template <class N>
struct Product {
  using T = typename N::Storage;
  RowOperand<T> a, b;  // rows, columns
  T* out;
  int64_t out_stride, k_size, column_blocks;
  bool add;
  // Row r of a is row first_row + r of these: out is 0 where that does not live, whatever b holds. Without lengths all
  // live.
  Rows rows;
  int64_t first_row;
};

template <class N>
using ProductTile = Tile<N, kProductRows, kProductColumns>;

template <class N>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm<N>) product(Product<N> p) {
  using T = typename N::Storage;
  using Sum = typename N::Sum;
  const int64_t row0 = blockIdx.x / p.column_blocks * kProductRows;
  const int64_t column0 = blockIdx.x % p.column_blocks * kProductColumns;
  ProductTile<N> tile;
  tile.run(p.a, row0, p.b, column0, p.k_size);
  tile.each([&](int row, int column, Sum sum) {
    if (row0 + row >= p.a.count || column0 + column >= p.b.count) return;
    T* out = p.out + (row0 + row) * p.out_stride + column0 + column;
    if (p.add) sum += to_sum(*out);
    *out = from_sum<T>(p.rows.lives(p.first_row + row0 + row) ? sum : Sum(0));
  });
}

template <class N, class T = typename N::Storage>
void multiply(const RowOperand<T>& a, const RowOperand<T>& b, int64_t k_size, T* out, int64_t out_stride, bool add,
              cudaStream_t stream, const Rows& rows = {}, int64_t first_row = 0) {
  const int64_t row_blocks = (a.count + kProductRows - 1) / kProductRows;
  const int64_t column_blocks = (b.count + kProductColumns - 1) / kProductColumns;
  launch(product<N>, dim3(unsigned(row_blocks * column_blocks)), kThreads, ProductTile<N>::kSharedBytes, stream,
         Product<N>{a, b, out, out_stride, k_size, column_blocks, add, rows, first_row});
}

template <class N>
constexpr BlasNumber blas_number() {
  if constexpr (std::is_same_v<N, Float64>) return BlasNumber::float64;
  if constexpr (std::is_same_v<N, Float32>) return BlasNumber::float32;
  if constexpr (std::is_same_v<N, Tf32>) return BlasNumber::tf32;
  if constexpr (std::is_same_v<N, Float16>) return BlasNumber::float16;
  if constexpr (std::is_same_v<N, Bfloat16>) return BlasNumber::bfloat16;
}

// (T, B, columns) = 0 in the rows that do not live.
template <class T>
struct ClearDead {
  Rows rows;
  int64_t columns;
  T* out;
  int64_t stride;
  FASTRNN_DEVICE void operator()(int64_t i) const {
    if (!rows.lives(i / columns)) out[i / columns * stride + i % columns] = T{};
  }
};

// As multiply, over all steps: by cuBLASLt if it takes the product.
template <class N, class T = typename N::Storage>
void multiply_steps(const RowOperand<T>& a, const RowOperand<T>& b, int64_t k_size, T* out, int64_t out_stride,
                    bool add, void* blas_workspace, cudaStream_t stream, const Rows& rows = {}) {
  const BlasProduct product = {blas_number<N>(), a.count,  b.count,    k_size, a.data,        b.data, out,
                               a.stride,         b.stride, out_stride, add,    blas_workspace};
  if (!blas_multiply(product, stream)) return multiply<N>(a, b, k_size, out, out_stride, add, stream, rows);
  if (rows.lengths) run_pointwise(a.count * b.count, stream, ClearDead<T>{rows, b.count, out, out_stride});
}

// to (columns, stride) = the rows of source (rows, columns), transposed, and zeros from `rows` on to the stride.
template <class T, class Source>
struct Transpose {
  Source source;
  T* to;
  int64_t rows, columns, stride, column_blocks;
};

constexpr int kTransposeSide = 32, kTransposeThreads = 256;

template <class T, class Source>
__global__ void __launch_bounds__(kTransposeThreads) transpose(Transpose<T, Source> p) {
  constexpr int side = kTransposeSide, pitch = side + 1;
  T* square = reinterpret_cast<T*>(shared_memory());
  const int64_t row0 = blockIdx.x / p.column_blocks * side, column0 = blockIdx.x % p.column_blocks * side;
  const int lane = int(threadIdx.x) % side, first = int(threadIdx.x) / side;
  for (int i = first; i < side; i += kTransposeThreads / side) {
    const T* row = row0 + i < p.rows ? p.source.row(row0 + i) : nullptr;
    square[i * pitch + lane] = row && column0 + lane < p.columns ? row[column0 + lane] : T{};
  }
  __syncthreads();
  for (int i = first; i < side; i += kTransposeThreads / side) {
    if (column0 + i < p.columns && row0 + lane < p.stride) {
      p.to[(column0 + i) * p.stride + row0 + lane] = square[lane * pitch + i];
    }
  }
}

template <class T, class Source>
void write_transposed(const Source& source, int64_t rows, int64_t columns, T* to, int64_t stride, cudaStream_t stream) {
  const int64_t row_blocks = (stride + kTransposeSide - 1) / kTransposeSide;
  const int64_t column_blocks = (columns + kTransposeSide - 1) / kTransposeSide;
  launch(transpose<T, Source>, dim3(unsigned(row_blocks * column_blocks)), kTransposeThreads,
         kTransposeSide * (kTransposeSide + 1) * sizeof(T), stream,
         Transpose<T, Source>{source, to, rows, columns, stride, column_blocks});
}

}  // namespace cuda
}  // namespace fastrnn
