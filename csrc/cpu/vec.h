// The vector type of the instruction set this file is compiled for, and what is built on it: exp and Philox.
#pragma once

#include "wino/philox.h"

#define WINO_ISA_IS_avx512 1
#define WINO_ISA_IS_avx2 2
#define WINO_ISA_IS_neon 3
#define WINO_ISA_IS_portable 4
#define WINO_ISA_IS_avx512bf16 5
#define WINO_ISA_NUMBER_(isa) WINO_ISA_IS_##isa
#define WINO_ISA_NUMBER(isa) WINO_ISA_NUMBER_(isa)

#if WINO_ISA_NUMBER(WINO_ISA) == WINO_ISA_IS_avx512 || WINO_ISA_NUMBER(WINO_ISA) == WINO_ISA_IS_avx512bf16
#include "cpu/vec_avx512.h"
#elif WINO_ISA_NUMBER(WINO_ISA) == WINO_ISA_IS_avx2
#include "cpu/vec_avx2.h"
#elif WINO_ISA_NUMBER(WINO_ISA) == WINO_ISA_IS_neon
#include "cpu/vec_neon.h"
#else
#include "cpu/vec_portable.h"
#endif

WINO_CPU_BEGIN

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
WINO_HD Vec::F power_of_two(Vec::F x) {
  x = Vec::max(Vec::splat(-126.0f), x);
  const Vec::F n = Vec::round(x), r = Vec::sub(x, n);
  // Minimax in relative error over |r| <= 1 / 2: 9.2e-8.
  Vec::F p = Vec::splat(0.00132647261f);
  p = Vec::fma(p, r, Vec::splat(0.00967151299f));
  p = Vec::fma(p, r, Vec::splat(0.0555073358f));
  p = Vec::fma(p, r, Vec::splat(0.240222424f));
  p = Vec::fma(p, r, Vec::splat(0.693147004f));
  p = Vec::fma(p, r, Vec::splat(1.0f));
  return Vec::ldexp(p, n);
}

constexpr float kLog2OfE = 1.44269504f;

// Halving: the order is fixed, and the chains are short.
WINO_HD float reduce_max(Vec::F a) {
  float lane[Vec::N];
  Vec::store(lane, a);
  for (int half = Vec::N / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
  }
  return lane[0];
}

WINO_HD double reduce_add(Vec::F a) {
  float lane[Vec::N];
  Vec::store(lane, a);
  double sum[Vec::N];
  for (int i = 0; i < Vec::N; ++i) sum[i] = lane[i];
  for (int half = Vec::N / 2; half > 0; half /= 2) {
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
  for (int i = 0; i < Vec::N; ++i)
    (i % 2 ? odd : even)[i / 2] = static_cast<uint64_t>(v / 4 + Vec::N / 4 * (i % 4) + i / 4);
  Vec::W a[4], b[4];
  philox_vector(Vec::load_w(even), key, a);
  philox_vector(Vec::load_w(odd), key, b);
  for (int j = 0; j < 4; ++j) word[j] = Vec::interleave(a[j], b[j]);
  Vec::transpose4(word);
}

WINO_CPU_END
