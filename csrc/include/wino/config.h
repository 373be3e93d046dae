// Qualifiers of code that is compiled into both the CPU and the CUDA kernels.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// Internal linkage: the same header is compiled for several instruction sets, and the linker must never merge the
// copies.
#if defined(__CUDACC__)
#define WINO_HD static __host__ __device__ __forceinline__
#define WINO_MEMBER __host__ __device__ __forceinline__
#else
#define WINO_HD static inline __attribute__((always_inline, unused))
#define WINO_MEMBER inline __attribute__((always_inline))
#endif
