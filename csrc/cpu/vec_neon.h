// 4 float lanes: AArch64 Advanced SIMD.
#pragma once

#include <arm_neon.h>

#include "cpu/isa.h"
#include "cpu/scalar.h"

WINO_CPU_BEGIN

struct Vec {
  using F = float32x4_t;
  using U = uint32x4_t;
  static constexpr int N = 4, kRegisters = 32;

  WINO_MEMBER static F splat(float x) { return vdupq_n_f32(x); }
  WINO_MEMBER static F load(const float* p) { return vld1q_f32(p); }
  WINO_MEMBER static F load(const BFloat16* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)), 16));
  }
  WINO_MEMBER static F load(const Float16* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))));
  }
  // 2 N numbers in no particular order.
  template <typename T>
  WINO_MEMBER static void load_any_order(const T* p, F out[2]) {
    out[0] = load(p);
    out[1] = load(p + N);
  }
  WINO_MEMBER static void store(float* p, F a) { vst1q_f32(p, a); }
  WINO_MEMBER static void store(uint32_t* p, U a) { vst1q_u32(p, a); }
  // 1 / a for normal a, to within 2e-7.
  WINO_MEMBER static F reciprocal(F a) { return vdivq_f32(splat(1.0f), a); }
  WINO_MEMBER static float largest(F a) { return vmaxvq_f32(a); }
  WINO_MEMBER static float sum(F a) { return vaddvq_f32(a); }
  // Rounded to nearest, ties to even; NaN stays NaN.
  WINO_MEMBER static F round_bfloat16(F a) {
    const U bits = vreinterpretq_u32_f32(a), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const U up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF)));
    const F rounded = vreinterpretq_f32_u32(vandq_u32(up, vdupq_n_u32(0xFFFF0000u)));
    return vbslq_f32(vceqq_f32(a, a), rounded, splat(__builtin_nanf("")));
  }
  WINO_MEMBER static void store_bfloat16(BFloat16* p, F a) {
    vst1_u16(reinterpret_cast<uint16_t*>(p), vshrn_n_u32(vreinterpretq_u32_f32(round_bfloat16(a)), 16));
  }
  WINO_MEMBER static F round_float16(F a) { return vcvt_f32_f16(vcvt_f16_f32(a)); }
  WINO_MEMBER static void store_float16(Float16* p, F a) {
    vst1_u16(reinterpret_cast<uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(a)));
  }
  // Lane group g of four from p + g stride: there is one.
  WINO_MEMBER static U load_fours(const uint32_t* p, int64_t) { return vld1q_u32(p); }
  // Pairs of bfloat16, the first of each in the low half.
  WINO_MEMBER static void split_pairs(U pairs, F out[2]) {
    out[0] = vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
    out[1] = vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xFFFF0000u)));
  }
  WINO_MEMBER static void pause() { __asm__ volatile("yield"); }
  WINO_MEMBER static F div(F a, F b) { return vdivq_f32(a, b); }
  WINO_MEMBER static F add(F a, F b) { return vaddq_f32(a, b); }
  WINO_MEMBER static F sub(F a, F b) { return vsubq_f32(a, b); }
  WINO_MEMBER static F mul(F a, F b) { return vmulq_f32(a, b); }
  WINO_MEMBER static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  // max / min return b when either is NaN.
  WINO_MEMBER static F max(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  WINO_MEMBER static F min(F a, F b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  WINO_MEMBER static F round(F a) { return vrndnq_f32(a); }
  WINO_MEMBER static F ldexp(F a, F n) {
    const int32x4_t exponent = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    return vmulq_f32(a, vreinterpretq_f32_s32(exponent));
  }
  WINO_MEMBER static uint32_t lanes(U mask) {
    const uint32_t bits[4] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(mask, vld1q_u32(bits)));
  }
  WINO_MEMBER static uint32_t ge(F a, F b) { return lanes(vcgeq_f32(a, b)); }
  WINO_MEMBER static uint32_t eq(F a, F b) { return lanes(vceqq_f32(a, b)); }
  WINO_MEMBER static F high_24_bits(U a) { return vcvtq_f32_u32(vshrq_n_u32(a, 8)); }
  WINO_MEMBER static void prefetch(const void* p) { __builtin_prefetch(p); }

  // Philox keeps a 32-bit number in the low half of each 64-bit lane; the high half is don't-care.
  using W = uint64x2_t;
  WINO_MEMBER static W splat_w(uint32_t x) { return vdupq_n_u64(x); }
  WINO_MEMBER static W load_w(const uint64_t* p) { return vld1q_u64(p); }
  WINO_MEMBER static W mul_w(W a, W b) { return vmull_u32(vmovn_u64(a), vmovn_u64(b)); }
  WINO_MEMBER static W high_w(W a) { return vshrq_n_u64(a, 32); }
  WINO_MEMBER static W xor3(W a, W b, W c) { return veorq_u64(veorq_u64(a, b), c); }
  // Lane i of the result: low half of even[i / 2] for even i, of odd[i / 2] for odd i.
  WINO_MEMBER static U interleave(W even, W odd) {
    return vtrn1q_u32(vreinterpretq_u32_u64(even), vreinterpretq_u32_u64(odd));
  }
  // 4x4 transposition.
  WINO_MEMBER static void transpose4(U r[4]) {
    const U a = vzip1q_u32(r[0], r[2]), b = vzip2q_u32(r[0], r[2]);
    const U c = vzip1q_u32(r[1], r[3]), d = vzip2q_u32(r[1], r[3]);
    r[0] = vzip1q_u32(a, c);
    r[1] = vzip2q_u32(a, c);
    r[2] = vzip1q_u32(b, d);
    r[3] = vzip2q_u32(b, d);
  }
};

WINO_CPU_END
