// The vector type of the instruction set this file is compiled for, and what is built on it: exp and Philox.
#pragma once

#include "wino/philox.h"

#define WINO_ISA_IS_avx512 1
#define WINO_ISA_IS_avx2 2
#define WINO_ISA_IS_neon 3
#define WINO_ISA_IS_portable 4
#define WINO_ISA_IS_avx512bf16 5
#define WINO_ISA_IS_amx 6
#define WINO_ISA_NUMBER_(isa) WINO_ISA_IS_##isa
#define WINO_ISA_NUMBER(isa) WINO_ISA_NUMBER_(isa)

#if WINO_ISA_NUMBER(WINO_ISA) == WINO_ISA_IS_avx512 || WINO_ISA_NUMBER(WINO_ISA) == WINO_ISA_IS_avx512bf16 || \
    WINO_ISA_NUMBER(WINO_ISA) == WINO_ISA_IS_amx
#include "cpu/vec_avx512.h"
#elif WINO_ISA_NUMBER(WINO_ISA) == WINO_ISA_IS_avx2
#include "cpu/vec_avx2.h"
#elif WINO_ISA_NUMBER(WINO_ISA) == WINO_ISA_IS_neon
#include "cpu/vec_neon.h"
#else
#include "cpu/vec_portable.h"
#endif

WINO_CPU_BEGIN

template <int W>
struct Count {
  static constexpr int n = W;
};

// f(count, i) for whole units among n, count.n of them from i on: two at a time, then one. Returns where the rest
// begins.
template <int64_t unit, typename Function>
WINO_HD int64_t in_twos(int64_t n, const Function& f) {
  int64_t i = 0;
  for (; i + 2 * unit <= n; i += 2 * unit) f(Count<2>{}, i);
  if (i + unit > n) return i;
  f(Count<1>{}, i);
  return i + unit;
}
template <typename Function>
WINO_HD int64_t for_vectors(int64_t n, const Function& f) {
  return in_twos<Vec::N>(n, f);
}

// Some vectors at once: where an instruction takes two that is cheaper, and what one waits for hides behind the others.
template <typename T, int W>
WINO_HD void load(const T* from, Vec::F (&x)[W]) {
  for (int k = 0; k < W; ++k) x[k] = Vec::load(from + k * Vec::N);
}
template <int W>
WINO_HD void store(const Vec::F (&x)[W], float* to) {
  for (int k = 0; k < W; ++k) Vec::store(to + k * Vec::N, x[k]);
}
template <int W>
WINO_HD void round_bfloat16(Vec::F (&x)[W]) {
  int k = 0;
#if defined(WINO_HAS_PAIRS)
  for (; k + 2 <= W; k += 2) Vec::round_bfloat16_pair(x + k);
#endif
  for (; k < W; ++k) x[k] = Vec::round_bfloat16(x[k]);
}
template <int W>
WINO_HD void store(const Vec::F (&x)[W], BFloat16* to) {
  int k = 0;
#if defined(WINO_HAS_PAIRS)
  for (; k + 2 <= W; k += 2) Vec::store_bfloat16_pair(to + k * Vec::N, x + k);
#endif
  for (; k < W; ++k) Vec::store_bfloat16(to + k * Vec::N, x[k]);
}
template <int W>
WINO_HD void store(const Vec::F (&x)[W], Float16* to) {
  for (int k = 0; k < W; ++k) Vec::store_float16(to + k * Vec::N, x[k]);
}
#if defined(WINO_LOADS_PAIRS)
WINO_HD void load(const BFloat16* from, Vec::F (&x)[2]) { Vec::load_pair(from, x); }
#endif

// Below this, exp is taken to be e^-87: a normal number, and nothing beside the row's largest term.
constexpr float kLowestExponent = -87.0f;

// e^x for x <= 80, NaN for NaN; relative error below 2e-7 above the floor.
WINO_HD Vec::F exp_clamped(Vec::F x) {
  x = Vec::max(Vec::splat(kLowestExponent), x);
  const Vec::F n = Vec::round(Vec::mul(x, Vec::splat(1.44269504f)));
  // ln 2 in two parts; n times the first is exact.
  Vec::F r = Vec::fma(n, Vec::splat(-0.693359375f), x);
  r = Vec::fma(n, Vec::splat(2.12194440e-4f), r);
  // Minimax in relative error over |r| <= ln(2) / 2: 5.5e-8.
  Vec::F p = Vec::splat(0.0083235763f);
  p = Vec::fma(p, r, Vec::splat(0.0419072434f));
  p = Vec::fma(p, r, Vec::splat(0.166671991f));
  p = Vec::fma(p, r, Vec::splat(0.499990255f));
  p = Vec::fma(p, r, Vec::splat(0.999999762f));
  p = Vec::fma(p, r, Vec::splat(1.0f));
  return Vec::ldexp(p, n);
}

// 2^x for -126 <= x <= 126, 2^-126 below, NaN for NaN; relative error below 2e-7.
template <int W>
WINO_HD void power_of_two(Vec::F (&x)[W]) {
  // Minimax in relative error over |r| <= 1 / 2: 9.2e-8.
  constexpr float factor[] = {0.00967151299f, 0.0555073358f, 0.240222424f, 0.693147004f, 1.0f};
  Vec::F n[W], p[W];
  for (int k = 0; k < W; ++k) x[k] = Vec::max(Vec::splat(-126.0f), x[k]);
  for (int k = 0; k < W; ++k) n[k] = Vec::round(x[k]);
  for (int k = 0; k < W; ++k) x[k] = Vec::sub(x[k], n[k]);
  for (int k = 0; k < W; ++k) p[k] = Vec::splat(0.00132647261f);
  for (float each : factor) {
    for (int k = 0; k < W; ++k) p[k] = Vec::fma(p[k], x[k], Vec::splat(each));
  }
  for (int k = 0; k < W; ++k) x[k] = Vec::ldexp(p[k], n[k]);
}

constexpr float kLog2OfE = 1.44269504f;

// Halving: the order is fixed, and the chains are short.
WINO_HD double reduce_add(Vec::F a) {
  float lane[Vec::N];
  Vec::store(lane, a);
  double sum[Vec::N];
#pragma GCC unroll 16
  for (int i = 0; i < Vec::N; ++i) sum[i] = lane[i];
#pragma GCC unroll 4
  for (int half = Vec::N / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
  }
  return sum[0];
}

// One round keeps c0, c1, c2, c3 as Vec::W.
WINO_HD void philox_vector(Vec::W c0, uint64_t key, Vec::W out[4]) {
  Vec::W c1 = Vec::splat_w(0), c2 = c1, c3 = c1;
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  const Vec::W m0 = Vec::splat_w(kPhiloxM0), m1 = Vec::splat_w(kPhiloxM1);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const Vec::W p0 = Vec::mul_w(m0, c0), p1 = Vec::mul_w(m1, c2);
    c0 = Vec::xor3(Vec::high_w(p1), c1, Vec::splat_w(k0));
    c2 = Vec::xor3(Vec::high_w(p0), c3, Vec::splat_w(k1));
    c1 = p1;
    c3 = p0;
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

// Words of the 4 N consecutive vocabulary indices from v (a multiple of 4): word[k] holds those from v + k N.
WINO_HD void philox_words(uint64_t key, int64_t v, Vec::U word[4]) {
  // Lane 4 q + k works on counter (N / 4) k + q, so that transposing each group of four lanes puts the words in order.
  uint64_t even[Vec::N / 2], odd[Vec::N / 2];
  for (int i = 0; i < Vec::N; i += 2) {
    even[i / 2] = static_cast<uint64_t>(v / 4 + Vec::N / 4 * (i % 4) + i / 4);
    odd[i / 2] = even[i / 2] + Vec::N / 4;
  }
  Vec::W a[4], b[4];
  philox_vector(Vec::load_w(even), key, a);
  philox_vector(Vec::load_w(odd), key, b);
  for (int j = 0; j < 4; ++j) word[j] = Vec::interleave(a[j], b[j]);
  Vec::transpose4(word);
}

WINO_CPU_END
