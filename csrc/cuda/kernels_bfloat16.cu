#include "cuda/passes.inl"

namespace fastrnn {
namespace cuda {
FASTRNN_COMPILE_PASSES(Bfloat16)
}  // namespace cuda
}  // namespace fastrnn
