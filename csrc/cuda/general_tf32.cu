#include "cuda/general.inl"

namespace fastrnn {
namespace cuda {
FASTRNN_COMPILE_GENERAL(Tf32)
}  // namespace cuda
}  // namespace fastrnn
