// How long the threads of a GPU take to meet: microseconds per meeting, as JSON. What a recurrent kernel pays each
// step.
//
//   nvcc -O3 -std=c++17 -arch=native gpu_latency.cu -o gpu_latency && ./gpu_latency
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace cg = cooperative_groups;

constexpr int kThreads = 256, kRounds = 2000, kRepeats = 9;

#define CHECK(call)                                                       \
  do {                                                                    \
    const cudaError_t error = (call);                                     \
    if (error != cudaSuccess) {                                           \
      std::fprintf(stderr, "%s: %s\n", #call, cudaGetErrorString(error)); \
      std::exit(1);                                                       \
    }                                                                     \
  } while (0)

__device__ void publish(unsigned* flag, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
__device__ unsigned observe(const unsigned* flag) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}

// Every block raises its flag; the threads of each wait for all flags.
__global__ void __launch_bounds__(kThreads) flags(unsigned* flag, unsigned base) {
  for (unsigned round = 1; round <= kRounds; round++) {
    __syncthreads();
    if (threadIdx.x == 0) publish(flag + blockIdx.x * 8, base + round);
    for (unsigned i = threadIdx.x; i < gridDim.x; i += kThreads) {
      while (observe(flag + i * 8) < base + round) {
      }
    }
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads) grid_barrier() {
  const cg::grid_group grid = cg::this_grid();
  for (int round = 0; round < kRounds; round++) grid.sync();
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
__global__ void __launch_bounds__(kThreads) cluster_barrier() {
  const cg::cluster_group cluster = cg::this_cluster();
  for (int round = 0; round < kRounds; round++) cluster.sync();
}

// A number goes around the blocks of a cluster through distributed shared memory: one store, seen by the next.
__global__ void __launch_bounds__(kThreads) around() {
  __shared__ volatile unsigned box;
  const cg::cluster_group cluster = cg::this_cluster();
  if (threadIdx.x == 0) box = 0;
  cluster.sync();
  if (threadIdx.x == 0) {
    const unsigned n = cluster.num_blocks(), rank = cluster.block_rank();
    volatile unsigned* next = cluster.map_shared_rank(const_cast<unsigned*>(&box), (rank + 1) % n);
    for (unsigned round = 1; round <= kRounds; round++) {
      if (rank) {
        while (box < round) {
        }
        *next = round;
      } else {
        *next = round;
        while (box < round) {
        }
      }
    }
  }
  cluster.sync();
}
#else
__global__ void cluster_barrier() {}
__global__ void around() {}
#endif

template <class Launch>
double microseconds(Launch&& launch) {
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < kRepeats + 1; i++) {
    CHECK(cudaEventRecord(begin));
    launch(i);
    CHECK(cudaEventRecord(end));
    CHECK(cudaEventSynchronize(end));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (i) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] * 1000.0 / kRounds;
}

bool launch_clusters(void (*kernel)(), int size, int clusters) {
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(size * clusters));
  config.blockDim = dim3(kThreads);
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = unsigned(size);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel) == cudaSuccess;
}

int main() {
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  const int blocks = device.multiProcessorCount;
  unsigned* flag;
  CHECK(cudaMalloc(&flag, size_t(blocks) * 32));
  CHECK(cudaMemset(flag, 0, size_t(blocks) * 32));
  std::printf("{\"device\": \"%s\", \"blocks\": %d", device.name, blocks);
  const auto cooperative = [](const void* kernel, int n, void** arguments) {
    CHECK(cudaLaunchCooperativeKernel(kernel, dim3(unsigned(n)), dim3(kThreads), arguments, 0, nullptr));
  };
  std::printf(", \"grid_flags_us\": %.4f", microseconds([&](int i) {
                unsigned base = unsigned(i) * kRounds;
                void* arguments[] = {&flag, &base};
                cooperative(reinterpret_cast<const void*>(flags), blocks, arguments);
              }));
  std::printf(", \"grid_sync_us\": %.4f",
              microseconds([&](int) { cooperative(reinterpret_cast<const void*>(grid_barrier), blocks, nullptr); }));
  if (device.major >= 9) {
    for (const int size : {8, 16}) {
      bool done = true;
      const double barrier = microseconds([&](int) { done &= launch_clusters(cluster_barrier, size, 4); });
      const double whole = microseconds([&](int) { done &= launch_clusters(around, size, 4); });
      cudaGetLastError();
      if (done) {
        std::printf(", \"cluster_%d_barrier_us\": %.4f, \"cluster_%d_store_to_visible_us\": %.4f", size, barrier, size,
                    whole / size);
      }
    }
  }
  std::printf("}\n");
  return 0;
}
