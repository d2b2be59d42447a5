// All that the kernels use of CUDA: launches, shared memory, asynchronous copies, tensor cores. Everything else under
// cuda/ is plain C++, which lets the tests put an emulation in the place of this file.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#define FASTRNN_DEVICE __device__ __forceinline__

namespace fastrnn {
namespace cuda {

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// A grid without blocks is nothing to do; `shared`: bytes of shared memory per block.
template <class Parameters>
void launch(void (*kernel)(Parameters), dim3 grid, unsigned threads, size_t shared, cudaStream_t stream,
            Parameters parameters) {
  if (grid.x == 0) return;
  kernel<<<grid, threads, shared, stream>>>(parameters);
  check(cudaGetLastError());  // and clears it
}

FASTRNN_DEVICE char* shared_memory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}

// kBytes (4, 8 or 16, at which both addresses are aligned) to shared memory. They are there once a later wait says so
// and the block's threads have met.
template <int kBytes>
FASTRNN_DEVICE void copy_async(void* to, const void* from) {
#if __CUDA_ARCH__ >= 800
  const auto address = uint32_t(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(address), "l"(from), "n"(kBytes) : "memory");
#else
  for (int i = 0; i < kBytes / 4; i++) static_cast<uint32_t*>(to)[i] = static_cast<const uint32_t*>(from)[i];
#endif
}

// Closes a group of copies; groups arrive in order.
FASTRNN_DEVICE void copy_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until at most kGroups of this thread's groups are under way.
template <int kGroups>
FASTRNN_DEVICE void copy_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#endif
}

// ---- 16-bit numbers, as their bits

FASTRNN_DEVICE float half_to_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
FASTRNN_DEVICE uint16_t float_to_half(float x) { return __half_as_ushort(__float2half_rn(x)); }
FASTRNN_DEVICE uint32_t float_bits(float x) { return __float_as_uint(x); }
FASTRNN_DEVICE float bits_float(uint32_t bits) { return __uint_as_float(bits); }

// ---- d (16 x 8) += a (16 x k) b (k x 8) by one warp. With lane = 4 g + t: d holds (g, 2t), (g, 2t+1), (g+8, 2t),
// (g+8, 2t+1); a and b as the PTX manual has them.

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
constexpr bool kTensorCores = true;
#else
constexpr bool kTensorCores = false;  // sm_75's know neither bfloat16 nor TF32
#endif

FASTRNN_DEVICE void mma_bfloat16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

FASTRNN_DEVICE void mma_float16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

FASTRNN_DEVICE uint32_t to_tf32(float x) {
  uint32_t bits = 0;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
#endif
  return bits;
}

FASTRNN_DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

}  // namespace cuda
}  // namespace fastrnn
