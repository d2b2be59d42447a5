// Kernels for portable; CMake gives this file its flags.
#define FASTRNN_ISA portable
#define FASTRNN_KERNELS kKernelsPortable
#include "cpu/kernels.inl"
