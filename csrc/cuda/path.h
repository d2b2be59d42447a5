// Which path a recurrence takes.
#pragma once

#include "cuda/fastrnn_cuda.h"

namespace fastrnn {
namespace cuda {

// The largest hidden size that the one-SM path may take, on any device.
constexpr int64_t kOneSmMost = 128;

// The path wanted, where it `fits`: by the environment variable FASTRNN_CUDA_PATH, else as suits the sizes.
Path choose_path(const Problem& problem, const Batch& batch, bool fits);

}  // namespace cuda
}  // namespace fastrnn
