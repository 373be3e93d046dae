// 16 float lanes: AVX-512 F, BW, DQ, VL; with AVX-512 BF16 pairs of bfloat16, with AMX tiles of them.
#pragma once

#include <immintrin.h>

#include "cpu/isa.h"
#include "cpu/scalar.h"

#define WINO_LOADS_PAIRS 1
#if defined(__AMX_BF16__)
#define WINO_HAS_TILES 1
#endif

WINO_CPU_BEGIN

struct Vec {
  using F = __m512;
  using U = __m512i;
  static constexpr int N = 16, kRegisters = 32;

  WINO_MEMBER static F splat(float x) { return _mm512_set1_ps(x); }
  WINO_MEMBER static F load(const float* p) { return _mm512_loadu_ps(p); }
  WINO_MEMBER static F load(const BFloat16* p) {
    return widen<0>(_mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
  }
  WINO_MEMBER static F load(const Float16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  WINO_MEMBER static void load_pair(const BFloat16* p, F out[2]) {
    const __m512i raw = _mm512_loadu_si512(p);
    out[0] = widen<0>(raw);
    out[1] = widen<N>(raw);
  }
  // Numbers first ... first + N of bfloat16: one permutation into the lanes' high halves.
  template <int first>
  WINO_MEMBER static F widen(__m512i raw) {
    const auto from = [](int i) { return (first + i) << 16; };
    const __m512i index =
        _mm512_setr_epi32(from(0), from(1), from(2), from(3), from(4), from(5), from(6), from(7), from(8), from(9),
                          from(10), from(11), from(12), from(13), from(14), from(15));
    return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xAAAAAAAAu, index, raw));
  }
  // 2 N numbers in no particular order.
  template <typename T>
  WINO_MEMBER static void load_any_order(const T* p, F out[2]) {
    out[0] = load(p);
    out[1] = load(p + N);
  }
  WINO_MEMBER static void load_any_order(const BFloat16* p, F out[2]) { split_pairs(_mm512_loadu_si512(p), out); }
  WINO_MEMBER static void store(float* p, F a) { _mm512_storeu_ps(p, a); }
  WINO_MEMBER static void store(uint32_t* p, U a) { _mm512_storeu_si512(p, a); }
  // 1 / a for normal a, to within 2e-7.
  WINO_MEMBER static F reciprocal(F a) {
    const F near = _mm512_rcp14_ps(a);
    return _mm512_fmadd_ps(near, _mm512_fnmadd_ps(a, near, splat(1.0f)), near);
  }
  WINO_MEMBER static float largest(F a) {
    a = max(a, _mm512_shuffle_f32x4(a, a, 0x4E));
    a = max(a, _mm512_shuffle_f32x4(a, a, 0xB1));
    a = max(a, _mm512_shuffle_ps(a, a, 0x4E));
    return _mm512_cvtss_f32(max(a, _mm512_shuffle_ps(a, a, 0xB1)));
  }
  WINO_MEMBER static float sum(F a) { return _mm512_reduce_add_ps(a); }
  // Rounded to nearest, ties to even; NaN stays NaN.
#if defined(__AVX512BF16__)
#define WINO_HAS_PAIRS 1
  WINO_MEMBER static F round_bfloat16(F a) { return widen<0>(_mm512_castsi256_si512((__m256i)_mm512_cvtneps_pbh(a))); }
  WINO_MEMBER static void round_bfloat16_pair(F a[2]) {
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(a[1], a[0]);
    a[0] = widen<0>(both);
    a[1] = widen<N>(both);
  }
  WINO_MEMBER static void store_bfloat16_pair(BFloat16* p, const F a[2]) {
    _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(a[1], a[0]));
  }
  WINO_MEMBER static void store_bfloat16(BFloat16* p, F a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(a));
  }
  // c + a[0] b[0] + a[1] b[1] for pairs b of bfloat16 and one pair for all lanes.
  WINO_MEMBER static F add_pairs(const BFloat16* a, F b, F c) {
    uint32_t pair;
    memcpy(&pair, a, sizeof(pair));
    return _mm512_dpbf16_ps(c, (__m512bh)_mm512_set1_epi32(static_cast<int>(pair)), (__m512bh)_mm512_castps_si512(b));
  }
#else
  WINO_MEMBER static F round_bfloat16(F a) {
    const __m512i bits = _mm512_castps_si512(a),
                  odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    const __m512i rounded = _mm512_and_si512(up, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u)));
    return _mm512_mask_mov_ps(_mm512_castsi512_ps(rounded), _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q),
                              splat(__builtin_nanf("")));
  }
  WINO_MEMBER static void store_bfloat16(BFloat16* p, F a) {
    const __m512i bits = _mm512_castps_si512(round_bfloat16(a));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
  }
#endif
  WINO_MEMBER static __m256i to_float16(F a) {
    return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  WINO_MEMBER static F round_float16(F a) { return _mm512_cvtph_ps(to_float16(a)); }
  WINO_MEMBER static void store_float16(Float16* p, F a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_float16(a));
  }
  // Lane group g of four from p + g stride.
  WINO_MEMBER static U load_fours(const uint32_t* p, int64_t stride) {
    const auto four = [&](int g) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + g * stride)); };
    U a = _mm512_castsi128_si512(four(0));
    a = _mm512_inserti32x4(a, four(1), 1);
    a = _mm512_inserti32x4(a, four(2), 2);
    return _mm512_inserti32x4(a, four(3), 3);
  }
  // Pairs of bfloat16, the first of each in the low half.
  WINO_MEMBER static void split_pairs(U pairs, F out[2]) {
    out[0] = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    out[1] = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u))));
  }
  WINO_MEMBER static void pause() { _mm_pause(); }
  WINO_MEMBER static F div(F a, F b) { return _mm512_div_ps(a, b); }
  WINO_MEMBER static F add(F a, F b) { return _mm512_add_ps(a, b); }
  WINO_MEMBER static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  WINO_MEMBER static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  WINO_MEMBER static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  // max / min return b when either is NaN.
  WINO_MEMBER static F max(F a, F b) { return _mm512_max_ps(a, b); }
  WINO_MEMBER static F min(F a, F b) { return _mm512_min_ps(a, b); }
  WINO_MEMBER static F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  WINO_MEMBER static F ldexp(F a, F n) { return _mm512_scalef_ps(a, n); }
  WINO_MEMBER static uint32_t ge(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  WINO_MEMBER static uint32_t eq(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  WINO_MEMBER static F high_24_bits(U a) { return _mm512_cvtepi32_ps(_mm512_srli_epi32(a, 8)); }
  WINO_MEMBER static void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

  // Philox keeps a 32-bit number in the low half of each 64-bit lane; the high half is don't-care.
  using W = __m512i;
  WINO_MEMBER static W splat_w(uint32_t x) { return _mm512_set1_epi64(x); }
  WINO_MEMBER static W load_w(const uint64_t* p) { return _mm512_loadu_si512(p); }
  WINO_MEMBER static W mul_w(W a, W b) { return _mm512_mul_epu32(a, b); }
  WINO_MEMBER static W high_w(W a) { return _mm512_srli_epi64(a, 32); }
  WINO_MEMBER static W xor3(W a, W b, W c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
  // Lane i of the result: low half of even[i / 2] for even i, of odd[i / 2] for odd i.
  WINO_MEMBER static U interleave(W even, W odd) {
    return _mm512_mask_mov_epi32(even, 0xAAAA, _mm512_slli_epi64(odd, 32));
  }
  // 4x4 transposition inside every group of four lanes.
  WINO_MEMBER static void transpose4(U r[4]) {
    const U a = _mm512_unpacklo_epi32(r[0], r[1]), b = _mm512_unpackhi_epi32(r[0], r[1]);
    const U c = _mm512_unpacklo_epi32(r[2], r[3]), d = _mm512_unpackhi_epi32(r[2], r[3]);
    r[0] = _mm512_unpacklo_epi64(a, c);
    r[1] = _mm512_unpackhi_epi64(a, c);
    r[2] = _mm512_unpacklo_epi64(b, d);
    r[3] = _mm512_unpackhi_epi64(b, d);
  }
};

WINO_CPU_END
