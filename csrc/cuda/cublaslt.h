// Large products by NVIDIA's cuBLASLt, where one was loaded at run time; nothing is linked against it. Whatever it
// lacks or refuses is left to product.h's own kernel, before anything was written.
#pragma once

#include "cuda/device.h"
#include "cuda/fastrnn_cuda.h"

namespace fastrnn {
namespace cuda {

// What numbers.h calls Float64, Float32 and so on.
enum class BlasNumber { float64, float32, tf32, float16, bfloat16 };

// out (rows, columns) = or += a (rows, k_size) b (columns, k_size)^T; rows are `stride` numbers apart.
struct BlasProduct {
  BlasNumber number;
  int64_t rows, columns, k_size;
  const void *a, *b;
  void* out;
  int64_t a_stride, b_stride, out_stride;
  bool add;
  void* workspace;  // as large as blas_workspace says
};

// Whether cuBLASLt took it. The same products at addresses of the same alignment take the same algorithm and give the
// same bits, on one machine.
bool blas_multiply(const BlasProduct& product, cudaStream_t stream);

// Bytes that products of at most so many multiplications want: none if they or the library stay out of it.
size_t blas_workspace(int64_t most_work);

// Another one whenever a library is loaded or let go.
uint64_t blas_state();

}  // namespace cuda
}  // namespace fastrnn
