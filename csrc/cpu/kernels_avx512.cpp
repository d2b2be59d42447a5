// Kernels for avx512; CMake gives this file its flags.
#define FASTRNN_ISA avx512
#define FASTRNN_KERNELS kKernelsAvx512
#include "cpu/kernels.inl"
