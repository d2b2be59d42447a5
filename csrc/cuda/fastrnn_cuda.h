// The C++ API of fastrnn on GPUs: the passes of fastrnn.h on arrays in device memory. Everything is enqueued on the
// stream and nothing waits. The caller brings all memory, the reserve and the workspace, as many bytes as `sizes` says,
// aligned to 256; only a graph, and the first product that cuBLASLt takes on a device, take some of the driver's.
#pragma once

#include <string>

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
// that, up to 32 graphs of up to 8192 steps each, can be given back.
int64_t graph_launches();
void release_graphs();

// From how many multiplications on a product over all steps is left to cuBLASLt. A guess, not measured: below it a
// launch takes about as long as the work.
constexpr int64_t kLeastBlasWork = 1 << 24;

// Loads NVIDIA's cuBLASLt of this name for such products, or, if `resident`, takes it only if the process has it
// already, and gives its version; throws std::runtime_error if that fails or the version is none of those known.
// Workspaces as large as `sizes` said before are too small from then on.
size_t load_cublaslt(const std::string& name, bool resident, int64_t least_work = kLeastBlasWork);
void unload_cublaslt();       // its code stays: graphs may call it
int64_t cublaslt_products();  // how many it took so far, in graphs only once

}  // namespace cuda
}  // namespace fastrnn
