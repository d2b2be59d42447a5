#include "cuda/general.inl"

namespace fastrnn {
namespace cuda {
FASTRNN_COMPILE_GENERAL(Float16)
}  // namespace cuda
}  // namespace fastrnn
