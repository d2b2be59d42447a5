// Kernels for avx2; CMake gives this file its flags.
#define FASTRNN_ISA avx2
#define FASTRNN_KERNELS kKernelsAvx2
#include "cpu/kernels.inl"
