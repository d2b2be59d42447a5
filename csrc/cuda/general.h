// The general path: any sizes, any GPU. All of W_ih x in one product, then a launch for every step; backward the same,
// and the weight gradients as products over all steps.
#pragma once

#include "cuda/layout.h"

namespace fastrnn {
namespace cuda {

// Compiled for every N in general_<n>.cu.
template <class N>
void forward_general(const Call& call, const std::vector<Weights>& weights, const ForwardArrays& arrays);
template <class N>
void backward_general(const Call& call, const std::vector<Weights>& weights, const BackwardArrays& arrays,
                      const std::vector<WeightGrads>& grads);

}  // namespace cuda
}  // namespace fastrnn
