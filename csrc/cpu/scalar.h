// The 16-bit floating-point formats as storage types, and their conversion one at a time.
#pragma once

#include "cpu/isa.h"
#include "wino/config.h"

WINO_CPU_BEGIN

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

WINO_HD float from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

WINO_HD float to_float(float x) { return x; }

WINO_HD float to_float(BFloat16 x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }

// Exponent and fraction are moved into a float32 and rescaled by 2^112, which also makes subnormals right.
WINO_HD float to_float(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7FFFu;
  if (magnitude >= 0x7C00u) return from_bits(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
  const float scaled = from_bits(magnitude << 13) * 0x1p112f;
  return sign != 0 ? -scaled : scaled;
}

// Rounded to nearest, ties to even; NaN stays NaN.
WINO_HD void from_float(float value, float* x) { *x = value; }

WINO_HD void from_float(float value, BFloat16* x) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16;
  x->bits = static_cast<uint16_t>(value == value ? rounded : 0x7FC0u);
}

// Scaled by 2^-112, the value has a float16's exponent in a float32, subnormals included; what is left is rounding.
WINO_HD void from_float(float value, Float16* x) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  uint32_t half;
  if (magnitude > 0x7F800000u) {
    half = 0x7E00u;
  } else if (magnitude >= 0x477FF000u) {  // 65520 and above round to infinity
    half = 0x7C00u;
  } else if (magnitude < 0x38800000u) {  // subnormal: an addition of 2^-1 leaves the bits of units of 2^-24
    const float shifted = from_bits(magnitude) + 0.5f;
    memcpy(&half, &shifted, sizeof(half));
    half -= 0x3F000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xFFFu + (magnitude >> 13 & 1)) >> 13;
  }
  x->bits = static_cast<uint16_t>(sign | half);
}

// x as T keeps it.
template <typename T>
WINO_HD float rounded(float x) {
  T stored;
  from_float(x, &stored);
  return to_float(stored);
}

WINO_HD void set_negative_infinity(float* x) { *x = -INFINITY; }
WINO_HD void set_negative_infinity(BFloat16* x) { x->bits = 0xFF80u; }
WINO_HD void set_negative_infinity(Float16* x) { x->bits = 0xFC00u; }

WINO_CPU_END
