#include "cuda/passes.inl"

namespace fastrnn {
namespace cuda {
FASTRNN_COMPILE_PASSES(Float64)
}  // namespace cuda
}  // namespace fastrnn
