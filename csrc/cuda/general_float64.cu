#include "cuda/general.inl"

namespace fastrnn {
namespace cuda {
FASTRNN_COMPILE_GENERAL(Float64)
}  // namespace cuda
}  // namespace fastrnn
