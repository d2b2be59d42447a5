#include "cuda/general.inl"

namespace fastrnn {
namespace cuda {
FASTRNN_COMPILE_GENERAL(Float32)
}  // namespace cuda
}  // namespace fastrnn
