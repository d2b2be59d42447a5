#include "cuda/passes.inl"

namespace fastrnn {
namespace cuda {
FASTRNN_COMPILE_PASSES(Tf32)
}  // namespace cuda
}  // namespace fastrnn
