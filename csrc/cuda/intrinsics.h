// Instructions that CUDA C++ has no name for. Both flush denormals, and are bounded by the PTX manual.
#pragma once

#include <cuda_runtime.h>

#if defined(__CUDACC__)

namespace wino {
namespace cuda {

// 2^x, relative error below 2^-22.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// log2(x), absolute error below 2^-22 for x in [0.5, 2], relative error below 2^-22 elsewhere.
__device__ __forceinline__ float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace cuda
}  // namespace wino

#endif  // else the stand-in for the device that the tests compile with has them
