// Marks the pointwise maths: inlined always, on the device too.
#pragma once

#ifdef __CUDACC__
#define FASTRNN_INLINE __host__ __device__ __forceinline__
#else
#define FASTRNN_INLINE inline __attribute__((always_inline))
#endif
