#include "cuda/passes.inl"

namespace fastrnn {
namespace cuda {
FASTRNN_COMPILE_PASSES(Float32)
}  // namespace cuda
}  // namespace fastrnn
