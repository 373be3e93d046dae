// 4 float lanes in the compiler's own vector type: runs wherever GCC or Clang do.
#pragma once

#include "cpu/isa.h"
#include "cpu/scalar.h"

WINO_CPU_BEGIN

struct Vec {
  typedef float F __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  typedef uint32_t U __attribute__((vector_size(16)));
  static constexpr int N = 4, kRegisters = 16;

  WINO_MEMBER static F splat(float x) { return F{x, x, x, x}; }
  WINO_MEMBER static F load(const float* p) {
    F a;
    memcpy(&a, p, sizeof(a));
    return a;
  }
  WINO_MEMBER static F load(const BFloat16* p) {
    return F{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
  }
  WINO_MEMBER static F load(const Float16* p) {
    return F{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
  }
  // 2 N numbers in no particular order.
  template <typename T>
  WINO_MEMBER static void load_any_order(const T* p, F out[2]) {
    out[0] = load(p);
    out[1] = load(p + N);
  }
  WINO_MEMBER static void store(float* p, F a) { memcpy(p, &a, sizeof(a)); }
  WINO_MEMBER static void store(uint32_t* p, U a) { memcpy(p, &a, sizeof(a)); }
  // 1 / a for normal a, to within 2e-7.
  WINO_MEMBER static F reciprocal(F a) { return splat(1.0f) / a; }
  WINO_MEMBER static float largest(F a) {
    const float first = a[0] > a[1] ? a[0] : a[1], second = a[2] > a[3] ? a[2] : a[3];
    return first > second ? first : second;
  }
  WINO_MEMBER static float sum(F a) { return (a[0] + a[2]) + (a[1] + a[3]); }
  // Rounded to nearest, ties to even; NaN stays NaN.
  WINO_MEMBER static F round_bfloat16(F a) {
    for (int i = 0; i < N; ++i) a[i] = rounded<BFloat16>(a[i]);
    return a;
  }
  WINO_MEMBER static void store_bfloat16(BFloat16* p, F a) {
    for (int i = 0; i < N; ++i) from_float(a[i], p + i);
  }
  WINO_MEMBER static F round_float16(F a) {
    for (int i = 0; i < N; ++i) a[i] = rounded<Float16>(a[i]);
    return a;
  }
  WINO_MEMBER static void store_float16(Float16* p, F a) {
    for (int i = 0; i < N; ++i) from_float(a[i], p + i);
  }
  // Lane group g of four from p + g stride: there is one.
  WINO_MEMBER static U load_fours(const uint32_t* p, int64_t) {
    U a;
    memcpy(&a, p, sizeof(a));
    return a;
  }
  // Pairs of bfloat16, as they stand in memory.
  WINO_MEMBER static void split_pairs(U pairs, F out[2]) {
    const U low = pairs << 16, high = pairs & 0xFFFF0000u;
    constexpr bool low_is_first = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__;
    memcpy(out, low_is_first ? &low : &high, sizeof(low));
    memcpy(out + 1, low_is_first ? &high : &low, sizeof(low));
  }
  WINO_MEMBER static void pause() {}
  WINO_MEMBER static F div(F a, F b) { return a / b; }
  WINO_MEMBER static F add(F a, F b) { return a + b; }
  WINO_MEMBER static F sub(F a, F b) { return a - b; }
  WINO_MEMBER static F mul(F a, F b) { return a * b; }
  WINO_MEMBER static F fma(F a, F b, F c) { return a * b + c; }
  // max / min return b when either is NaN.
  WINO_MEMBER static F max(F a, F b) { return a > b ? a : b; }
  WINO_MEMBER static F min(F a, F b) { return a < b ? a : b; }
  // Exact to the nearest integer for |a| < 2^22: the sum has no bits left for a fraction.
  WINO_MEMBER static F round(F a) { return (a + splat(0x1.8p23f)) - splat(0x1.8p23f); }
  WINO_MEMBER static F ldexp(F a, F n) {
    const F biased = n + splat(0x1.8p23f + 127.0f);
    I exponent;
    memcpy(&exponent, &biased, sizeof(exponent));
    exponent <<= 23;
    F scale;
    memcpy(&scale, &exponent, sizeof(scale));
    return a * scale;
  }
  WINO_MEMBER static uint32_t lanes(I mask) { return (mask[0] & 1) | (mask[1] & 2) | (mask[2] & 4) | (mask[3] & 8); }
  WINO_MEMBER static uint32_t ge(F a, F b) { return lanes(a >= b); }
  WINO_MEMBER static uint32_t eq(F a, F b) { return lanes(a == b); }
  WINO_MEMBER static F high_24_bits(U a) {
    const U high = a >> 8;
    return F{static_cast<float>(high[0]), static_cast<float>(high[1]), static_cast<float>(high[2]),
             static_cast<float>(high[3])};
  }
  WINO_MEMBER static void prefetch(const void* p) { __builtin_prefetch(p); }

  // Philox keeps a 32-bit number in the low half of each 64-bit lane; the high half is don't-care.
  typedef uint64_t W __attribute__((vector_size(16)));
  WINO_MEMBER static W splat_w(uint32_t x) { return W{x, x}; }
  WINO_MEMBER static W load_w(const uint64_t* p) { return W{p[0], p[1]}; }
  WINO_MEMBER static W mul_w(W a, W b) { return (a & 0xFFFFFFFFull) * (b & 0xFFFFFFFFull); }
  WINO_MEMBER static W high_w(W a) { return a >> 32; }
  WINO_MEMBER static W xor3(W a, W b, W c) { return a ^ b ^ c; }
  // Lane i of the result: low half of even[i / 2] for even i, of odd[i / 2] for odd i.
  WINO_MEMBER static U interleave(W even, W odd) {
    return U{static_cast<uint32_t>(even[0]), static_cast<uint32_t>(odd[0]), static_cast<uint32_t>(even[1]),
             static_cast<uint32_t>(odd[1])};
  }
  // 4x4 transposition.
  WINO_MEMBER static void transpose4(U r[4]) {
    const U a = r[0], b = r[1], c = r[2], d = r[3];
    for (int i = 0; i < 4; ++i) r[i] = U{a[i], b[i], c[i], d[i]};
  }
};

WINO_CPU_END
