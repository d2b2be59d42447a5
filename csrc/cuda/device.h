// All that the kernels use of CUDA: launches, shared memory, asynchronous copies, tensor cores. Everything else under
// cuda/ is plain C++, which lets the tests put an emulation in the place of this file.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>

#define FASTRNN_DEVICE __device__ __forceinline__

namespace fastrnn {
namespace cuda {

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // else the next launch would be blamed for it
  throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// Of a device.
struct Limits {
  int generation;  // 90: sm_90
  int processors;  // SMs
  size_t shared;   // bytes of shared memory for a block
};
inline int current_device() {
  int device;
  check(cudaGetDevice(&device));
  return device;
}
inline Limits current_limits() {
  const int device = current_device();
  const auto get = [&](cudaDeviceAttr attribute) {
    int value;
    check(cudaDeviceGetAttribute(&value, attribute, device));
    return value;
  };
  return {10 * get(cudaDevAttrComputeCapabilityMajor) + get(cudaDevAttrComputeCapabilityMinor),
          get(cudaDevAttrMultiProcessorCount), size_t(get(cudaDevAttrMaxSharedMemoryPerBlockOptin))};
}

constexpr size_t kSharedUnasked = 48 * 1024;  // what a kernel may have without asking for more

// A grid without blocks is nothing to do; `shared`: bytes of shared memory per block.
template <class Parameters>
void launch(void (*kernel)(Parameters), dim3 grid, unsigned threads, size_t shared, cudaStream_t stream,
            Parameters parameters) {
  if (grid.x == 0) return;
  if (shared > kSharedUnasked) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)));
  }
  kernel<<<grid, threads, shared, stream>>>(parameters);
  check(cudaGetLastError());  // and clears it
}

// Calls a library that launches by itself, and gives its status.
template <class Call>
int call_library(Call&& call) {
  return call();
}

inline bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status;
  check(cudaStreamIsCapturing(stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

// What `enqueue` launches on the stream that it is given, to be launched at once, any number of times.
class Graph {
 public:
  template <class Enqueue>
  explicit Graph(Enqueue&& enqueue) {
    cudaStream_t stream;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    cudaGraph_t graph = nullptr;
    cudaError_t error = cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed);
    std::exception_ptr thrown;
    if (error == cudaSuccess) {
      try {
        enqueue(stream);
      } catch (...) {
        thrown = std::current_exception();
      }
      error = cudaStreamEndCapture(stream, &graph);
    }
    if (!thrown && error == cudaSuccess) error = cudaGraphInstantiateWithFlags(&executable_, graph, 0);
    if (graph) cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
    if (thrown) {
      cudaGetLastError();
      std::rethrow_exception(thrown);
    }
    check(error);
  }
  ~Graph() { cudaGraphExecDestroy(executable_); }  // once it has run
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  void launch(cudaStream_t stream) const { check(cudaGraphLaunch(executable_, stream)); }

 private:
  cudaGraphExec_t executable_ = nullptr;
};

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

// 16 bytes likewise, or zeros if there are none to copy.
FASTRNN_DEVICE void copy_async_or_zero(void* to, const void* from, bool exists) {
#if __CUDA_ARCH__ >= 800
  const auto address = uint32_t(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(exists ? 16 : 0)
               : "memory");
#else
  for (int i = 0; i < 4; i++) static_cast<uint32_t*>(to)[i] = exists ? static_cast<const uint32_t*>(from)[i] : 0;
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
FASTRNN_DEVICE uint32_t floats_to_halves(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return uint32_t(__half_as_ushort(__high2half(pair))) << 16 | __half_as_ushort(__low2half(pair));
}
FASTRNN_DEVICE uint16_t float_to_bfloat16(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
FASTRNN_DEVICE uint32_t floats_to_bfloat16s(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return uint32_t(__bfloat16_as_ushort(__high2bfloat16(pair))) << 16 | __bfloat16_as_ushort(__low2bfloat16(pair));
}
FASTRNN_DEVICE uint32_t float_bits(float x) { return __float_as_uint(x); }
FASTRNN_DEVICE float bits_float(uint32_t bits) { return __uint_as_float(bits); }

// ---- functions of float, good to about 1e-6

FASTRNN_DEVICE float fast_exp(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
  return y;
}
FASTRNN_DEVICE float fast_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- d (16 x 8) += a (16 x k) b (k x 8) by one warp. With lane = 4 g + t: d holds (g, 2t), (g, 2t+1), (g+8, 2t),
// (g+8, 2t+1); a and b as the PTX manual has them.

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
constexpr bool kTensorCores = true;
#else
constexpr bool kTensorCores = false;  // sm_75's know neither bfloat16 nor TF32
#endif

// Loads matrices of 8 rows x 16 bytes from shared memory: lane 8 i + r names row r of matrix i, and gets of each matrix
// word lane % 4 of row lane / 4.
FASTRNN_DEVICE void load_matrices(uint32_t (&words)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(words[0]), "=r"(words[1])
               : "r"(uint32_t(__cvta_generic_to_shared(row))));
}
FASTRNN_DEVICE void load_matrices(uint32_t (&words)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row))));
}

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
