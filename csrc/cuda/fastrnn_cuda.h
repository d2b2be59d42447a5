// The C++ API of fastrnn on GPUs: the passes of fastrnn.h on arrays in device memory. Everything is enqueued on the
// stream and nothing waits; nothing is allocated: the caller brings the reserve and the workspace, as many bytes as
// `sizes` says, aligned to 256.
#pragma once

#include "fastrnn.h"

namespace fastrnn {
namespace cuda {

using Stream = void*;  // a cudaStream_t

struct Sizes {
  size_t reserve, forward_workspace, backward_workspace;  // bytes; without training the first and last are 0
};

// Of batch only the two sizes matter. Independent of what the arrays hold.
Sizes sizes(const Problem& problem, const Batch& batch, bool dropout, bool training);

// The reserve is the sum of parts of seq_len * batch * per_row + batch * per_sequence bytes, each rounded up to 256.
struct ReservePart {
  size_t per_row, per_sequence;
};
std::vector<ReservePart> reserve_parts(const Problem& problem);

// As forward and backward in fastrnn.h; lengths and resets stand in device memory too, and rows are never packed.
// Products of float32 go through TF32 if tf32.
struct Call {
  Problem problem;
  Batch batch;
  Dropout dropout;
  bool tf32 = false;
  void* reserve = nullptr;  // null: not training
  void* workspace = nullptr;
  Stream stream = nullptr;
};

// How the recurrence of a layer is computed.
enum class Path {
  general,  // a launch for every step: any sizes, any GPU
  one_sm,   // a launch for all of them, each block with all of W_hh
};
// On the current device.
struct Paths {
  Path forward, backward;
};
Paths paths(const Problem& problem, const Batch& batch, bool tf32);

void forward(const Call& call, const std::vector<Weights>& weights, const ForwardArrays& arrays);

// The call as it was given to forward, but for workspace and stream.
void backward(const Call& call, const std::vector<Weights>& weights, const BackwardArrays& arrays,
              const std::vector<WeightGrads>& grads);

// Calls that come again with the same addresses are launched as CUDA graphs: how many were so far. What is kept for
// that, a little of the driver's memory, can be given back.
int64_t graph_launches();
void release_graphs();

}  // namespace cuda
}  // namespace fastrnn
