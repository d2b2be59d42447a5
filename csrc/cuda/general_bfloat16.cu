#include "cuda/general.inl"

namespace fastrnn {
namespace cuda {
FASTRNN_COMPILE_GENERAL(Bfloat16)
}  // namespace cuda
}  // namespace fastrnn
