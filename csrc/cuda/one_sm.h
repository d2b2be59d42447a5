// The one-SM path: layers of few units. All steps in one launch, the directions side by side.
#pragma once

#include "cuda/loop.h"

namespace fastrnn {
namespace cuda {

constexpr size_t kMostShared = 227 * 1024;  // of a block, on any GPU

template <class N>
class OneSmPath {
 public:
  OneSmPath(const Problem& problem, const Extents& extents, cudaStream_t stream)
      : p(problem), e(extents), stream(stream) {}

  // Whether a block of the current device holds the weights.
  static bool fits_forward(const Problem& problem) {
    return with_kernel<ForwardKernels>(problem, [](auto, unsigned, size_t) {});
  }
  static bool fits_backward(const Problem& problem) {
    return with_kernel<BackwardKernels>(problem, [](auto, unsigned, size_t) {});
  }

  // Units pass in pairs.
  static bool aligned(const typename N::Storage* rows, int64_t stride) {
    return chunk_of(rows, stride, stride) >= int(2 * sizeof(typename N::Storage));
  }

  void forward(const ForwardScan<N> (&scans)[2]) const { run<ForwardKernels, ForwardLoop<N>>(scans); }
  void backward(const BackwardScan<N> (&scans)[2]) const { run<BackwardKernels, BackwardLoop<N>>(scans); }

 private:
  using Math = ScalarMath<N>;

  template <template <class> class CellOf, int kSize>
  struct ForwardKernels {
    static constexpr auto kernel = forward_loop<N, CellOf, kSize>;
    static constexpr size_t kSharedBytes = ForwardLoopShape<N, CellOf<Math>, kSize>::kSharedBytes;
  };
  template <template <class> class CellOf, int kSize>
  struct BackwardKernels {
    static constexpr auto kernel = backward_loop<N, CellOf, kSize>;
    static constexpr size_t kSharedBytes = BackwardLoopShape<N, CellOf<Math>, kSize>::kSharedBytes;
  };

  // Calls run(kernel, threads, bytes of shared memory) for the smallest of the kernels that take the problem, and tells
  // whether there is one.
  template <template <template <class> class, int> class Kernels, class Run>
  static bool with_kernel(const Problem& p, Run&& run) {
    if (p.proj_size || p.hidden_size % 2) return false;
    const Limits limits = current_limits();
    if (N::kOnTensorCores && limits.generation < 80) return false;
    bool found = false;
    with_cell(p.cell, [&](auto tag) {
      using Tag = decltype(tag);
      const auto offer = [&](auto size) {
        constexpr int kSize = decltype(size)::value;
        constexpr size_t shared = Kernels<Tag::template Cell, kSize>::kSharedBytes;
        if constexpr (shared <= kMostShared) {
          if (found || p.hidden_size > kSize || shared > limits.shared) return;
          found = true;
          run(Kernels<Tag::template Cell, kSize>::kernel, 2 * kSize, shared);
        }
      };
      offer(std::integral_constant<int, 64>{});
      offer(std::integral_constant<int, 128>{});
    });
    return found;
  }

  template <template <template <class> class, int> class Kernels, class Loop, class Scan>
  void run(const Scan (&scans)[2]) const {
    const int64_t slices = (e.B + kSliceRows - 1) / kSliceRows;
    with_kernel<Kernels>(p, [&](auto kernel, unsigned threads, size_t shared) {
      launch(kernel, dim3(unsigned(slices * p.directions)), threads, shared, stream,
             Loop{e.H, e.width, slices, {scans[0], scans[1]}});
    });
  }

  const Problem& p;
  const Extents& e;
  const cudaStream_t stream;
};

}  // namespace cuda
}  // namespace fastrnn
