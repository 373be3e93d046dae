// Stands in for the CUDA toolkit's header: the one conversion that csrc/cuda uses.
#pragma once

#include <cstdint>

#include "cuda_runtime.h"

struct __half {
  uint16_t bits;
};

inline __half __ushort_as_half(uint16_t bits) { return {bits}; }

inline float __half2float(__half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7FFFu;
  if (magnitude >= 0x7C00u) return __uint_as_float(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
  const float scaled = __uint_as_float(magnitude << 13) * 0x1p112f;
  return sign != 0 ? -scaled : scaled;
}
