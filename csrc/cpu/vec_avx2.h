// 8 float lanes: AVX2, FMA, F16C.
#pragma once

#include <immintrin.h>

#include "cpu/isa.h"
#include "cpu/scalar.h"

WINO_CPU_BEGIN

struct Vec {
  using F = __m256;
  using U = __m256i;
  static constexpr int N = 8, kRegisters = 16;

  WINO_MEMBER static F splat(float x) { return _mm256_set1_ps(x); }
  WINO_MEMBER static F load(const float* p) { return _mm256_loadu_ps(p); }
  WINO_MEMBER static F load(const BFloat16* p) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
  }
  WINO_MEMBER static F load(const Float16* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  // 2 N numbers in no particular order.
  template <typename T>
  WINO_MEMBER static void load_any_order(const T* p, F out[2]) {
    out[0] = load(p);
    out[1] = load(p + N);
  }
  WINO_MEMBER static void load_any_order(const BFloat16* p, F out[2]) {
    split_pairs(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), out);
  }
  WINO_MEMBER static void store(float* p, F a) { _mm256_storeu_ps(p, a); }
  WINO_MEMBER static void store(uint32_t* p, U a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
  // 1 / a for normal a, to within 2e-7.
  WINO_MEMBER static F reciprocal(F a) { return _mm256_div_ps(splat(1.0f), a); }
  WINO_MEMBER static float largest(F a) {
    const __m128 fours = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 twos = _mm_max_ps(fours, _mm_movehl_ps(fours, fours));
    return _mm_cvtss_f32(_mm_max_ss(twos, _mm_movehdup_ps(twos)));
  }
  WINO_MEMBER static float sum(F a) {
    const __m128 fours = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 twos = _mm_add_ps(fours, _mm_movehl_ps(fours, fours));
    return _mm_cvtss_f32(_mm_add_ss(twos, _mm_movehdup_ps(twos)));
  }
  // Rounded to nearest, ties to even; NaN stays NaN.
  WINO_MEMBER static F round_bfloat16(F a) {
    const __m256i bits = _mm256_castps_si256(a),
                  odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256i rounded = _mm256_and_si256(up, _mm256_set1_epi32(static_cast<int>(0xFFFF0000u)));
    return _mm256_blendv_ps(_mm256_castsi256_ps(rounded), splat(__builtin_nanf("")), _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  }
  WINO_MEMBER static void store_bfloat16(BFloat16* p, F a) {
    const __m256i high = _mm256_srli_epi32(_mm256_castps_si256(round_bfloat16(a)), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  WINO_MEMBER static __m128i to_float16(F a) {
    return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  WINO_MEMBER static F round_float16(F a) { return _mm256_cvtph_ps(to_float16(a)); }
  WINO_MEMBER static void store_float16(Float16* p, F a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_float16(a));
  }
  // Lane group g of four from p + g stride.
  WINO_MEMBER static U load_fours(const uint32_t* p, int64_t stride) {
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low),
                                   _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + stride)), 1);
  }
  // Pairs of bfloat16, the first of each in the low half.
  WINO_MEMBER static void split_pairs(U pairs, F out[2]) {
    out[0] = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
    out[1] = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xFFFF0000u))));
  }
  WINO_MEMBER static void pause() { _mm_pause(); }
  WINO_MEMBER static F div(F a, F b) { return _mm256_div_ps(a, b); }
  WINO_MEMBER static F add(F a, F b) { return _mm256_add_ps(a, b); }
  WINO_MEMBER static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  WINO_MEMBER static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  WINO_MEMBER static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  // max / min return b when either is NaN.
  WINO_MEMBER static F max(F a, F b) { return _mm256_max_ps(a, b); }
  WINO_MEMBER static F min(F a, F b) { return _mm256_min_ps(a, b); }
  WINO_MEMBER static F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  WINO_MEMBER static F ldexp(F a, F n) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(a, _mm256_castsi256_ps(exponent));
  }
  WINO_MEMBER static uint32_t ge(F a, F b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)); }
  WINO_MEMBER static uint32_t eq(F a, F b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
  WINO_MEMBER static F high_24_bits(U a) { return _mm256_cvtepi32_ps(_mm256_srli_epi32(a, 8)); }
  WINO_MEMBER static void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

  // Philox keeps a 32-bit number in the low half of each 64-bit lane; the high half is don't-care.
  using W = __m256i;
  WINO_MEMBER static W splat_w(uint32_t x) { return _mm256_set1_epi64x(x); }
  WINO_MEMBER static W load_w(const uint64_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  WINO_MEMBER static W mul_w(W a, W b) { return _mm256_mul_epu32(a, b); }
  WINO_MEMBER static W high_w(W a) { return _mm256_srli_epi64(a, 32); }
  WINO_MEMBER static W xor3(W a, W b, W c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
  // Lane i of the result: low half of even[i / 2] for even i, of odd[i / 2] for odd i.
  WINO_MEMBER static U interleave(W even, W odd) { return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA); }
  // 4x4 transposition inside every group of four lanes.
  WINO_MEMBER static void transpose4(U r[4]) {
    const U a = _mm256_unpacklo_epi32(r[0], r[1]), b = _mm256_unpackhi_epi32(r[0], r[1]);
    const U c = _mm256_unpacklo_epi32(r[2], r[3]), d = _mm256_unpackhi_epi32(r[2], r[3]);
    r[0] = _mm256_unpacklo_epi64(a, c);
    r[1] = _mm256_unpackhi_epi64(a, c);
    r[2] = _mm256_unpacklo_epi64(b, d);
    r[3] = _mm256_unpackhi_epi64(b, d);
  }
};

WINO_CPU_END
