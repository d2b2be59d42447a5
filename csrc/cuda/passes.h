// The walk over a stack, forward and backward: for every layer and direction its products over all steps and, on the
// path that suits it, its recurrence.
#pragma once

#include "cuda/layout.h"

namespace fastrnn {
namespace cuda {

// Compiled for every N in kernels_<n>.cu.
template <class N>
Paths paths_of(const Problem& problem, const Batch& batch);
template <class N>
void run_forward(const Call& call, const std::vector<Weights>& weights, const ForwardArrays& arrays);
template <class N>
void run_backward(const Call& call, const std::vector<Weights>& weights, const BackwardArrays& arrays,
                  const std::vector<WeightGrads>& grads);

}  // namespace cuda
}  // namespace fastrnn
