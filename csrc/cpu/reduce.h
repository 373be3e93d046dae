// Online softmax and argmax of a stretch of one row, in one pass over L1-sized blocks.
#pragma once

#include "cpu/kernels.h"
#include "cpu/vec.h"
#include "wino/softmax.h"

WINO_CPU_BEGIN

constexpr int64_t kBlock = 2048;  // elements; 4 or 8 KiB, so that this block and the next fit L1

// How a row draws its token: at temperature 0 the largest logit, else the largest logit + temperature * Gumbel noise.
struct Draw {
  float temperature;
  uint64_t key;
};

WINO_HD Draw draw_of(const Temperature& temperature, const int64_t* seed, int64_t row) {
  const float t = temperature.data == nullptr ? 0.0f : temperature.data[row * temperature.stride];
  return {t, t > 0.0f ? static_cast<uint64_t>(seed[row]) : 0};
}

WINO_HD bool can_draw(const Draw& draw) { return draw.temperature >= 0.0f && draw.temperature < INFINITY; }

struct RowState {
  ExpSum softmax;
  Best best;
};

WINO_HD RowState empty_row() { return {empty_exp_sum(), empty_best()}; }

template <typename T>
WINO_HD float block_max(const T* x, int64_t n) {
  Vec::F m[4];
  for (int k = 0; k < 4; ++k) m[k] = Vec::splat(-INFINITY);
  for (int64_t i = 0; i < n; i += 4 * Vec::N) {
    for (int k = 0; k < 4; ++k) m[k] = Vec::max(Vec::load(x + i + k * Vec::N), m[k]);  // NaN is passed over here
  }
  return Vec::largest(Vec::max(Vec::max(m[0], m[1]), Vec::max(m[2], m[3])));
}

struct BlockSum {
  double sum;  // of exp(x - reference); NaN when an x is NaN
  float max;   // over the numbers that are not NaN
};

// Meanwhile the block behind this one is fetched into L1. Equal terms round alike, so errors add up along a chain of
// additions: two levels keep both chains short.
template <typename T>
WINO_HD BlockSum block_exp_sum(const T* x, int64_t n, float reference) {
  constexpr int64_t step = 4 * Vec::N, stretch = 8 * step;
  const Vec::F ref = Vec::splat(reference);
  Vec::F total[4], m[4];
  for (int k = 0; k < 4; ++k) {
    total[k] = Vec::splat(0.0f);
    m[k] = Vec::splat(-INFINITY);
  }
  for (int64_t begin = 0; begin < n; begin += stretch) {
    const int64_t end = n - begin < stretch ? n : begin + stretch;
    Vec::F s[4];
    for (int k = 0; k < 4; ++k) s[k] = Vec::splat(0.0f);
    for (int64_t i = begin; i < end; i += step) {
      for (size_t byte = 0; byte < step * sizeof(T); byte += 64) {
        Vec::prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(x) + (i + kBlock) * sizeof(T) + byte));
      }
      Vec::F v[4];
      for (int k = 0; k < 4; k += 2) Vec::load_any_order(x + i + k * Vec::N, v + k);
      for (int k = 0; k < 4; ++k) {
        m[k] = Vec::max(v[k], m[k]);
        s[k] = Vec::add(s[k], exp_clamped(Vec::sub(v[k], ref)));
      }
    }
    for (int k = 0; k < 4; ++k) total[k] = Vec::add(total[k], s[k]);
  }
  return {reduce_add(Vec::add(Vec::add(total[0], total[1]), Vec::add(total[2], total[3]))),
          Vec::largest(Vec::max(Vec::max(m[0], m[1]), Vec::max(m[2], m[3])))};
}

template <typename T>
WINO_HD int64_t first_equal(const T* x, int64_t n, float value) {
  const Vec::F wanted = Vec::splat(value);
  for (int64_t i = 0; i < n; i += Vec::N) {
    const uint32_t hits = Vec::eq(Vec::load(x + i), wanted);
    if (hits != 0) return i + __builtin_ctz(hits);
  }
  return -1;
}

WINO_HD void offer(Best& best, float logit, int64_t id, uint32_t word, float temperature) {
  const Best challenger{logit + temperature * gumbel(word), id};
  if (beats(challenger, best)) best = challenger;
}

// A token wins only if its noise reaches best - logit. Since g <= -log x, that needs x <= exp((logit - best) / T), one
// exponential instead of two logarithms; only tokens that pass are evaluated exactly. `slack` covers all roundings.
template <typename T>
WINO_HD void block_sample(const T* x, int64_t n, int64_t id, const Draw& draw, float max, Best& best) {
  const float reach = draw.temperature * kGumbelMax;
  if (best.id < 0) {
    const int64_t at = first_equal(x, n, max);
    if (at >= 0) offer(best, max, id + at, philox_word(draw.key, id + at), draw.temperature);
  }
  const float inverse = fminf(1.0f / draw.temperature, 1e30f);
  for (int64_t i = 0; i < n; i += 4 * Vec::N) {
    const Vec::F holder = Vec::splat(best.value);
    uint32_t reachable = 0;
    for (int k = 0; k < 4; ++k) {
      reachable |= Vec::ge(Vec::add(Vec::load(x + i + k * Vec::N), Vec::splat(reach)), holder);
    }
    if (reachable == 0) continue;
    Vec::U word[4];
    philox_words(draw.key, id + i, word);
    const float slack = 1e-5f + 1e-6f * (fabsf(best.value) + reach) * inverse;
    for (int k = 0; k < 4; ++k) {
      const Vec::F gap = Vec::mul(Vec::sub(Vec::load(x + i + k * Vec::N), holder), Vec::splat(inverse));
      const Vec::F bound = exp_clamped(Vec::min(Vec::add(gap, Vec::splat(slack)), Vec::splat(1.0f)));
      const Vec::F below = Vec::mul(Vec::high_24_bits(word[k]), Vec::splat(0x1p-24f));  // <= x
      uint32_t hits = Vec::ge(bound, below);
      if (hits == 0) continue;
      uint32_t lane[Vec::N];
      Vec::store(lane, word[k]);
      for (; hits != 0; hits &= hits - 1) {
        const int j = __builtin_ctz(hits);
        const float logit = to_float(x[i + k * Vec::N + j]);
        if (logit + reach >= best.value) offer(best, logit, id + i + k * Vec::N + j, lane[j], draw.temperature);
      }
    }
  }
}

// How far a logit may rise above the reference before the sum is taken again with a higher one.
constexpr float kHeadroom = 16.0f;

// n is a multiple of 4 N; id is the vocabulary index of x[0]. The reference of the blocks so far serves this one too,
// so that maximum and sum take one pass; it is a number near the row's maximum, and needs not be the maximum.
template <typename T>
WINO_HD void reduce_block(const T* x, int64_t n, int64_t id, const Draw* draw, RowState& row) {
  float reference = row.softmax.max == -INFINITY ? block_max(x, n) : row.softmax.max;
  // With only -inf so far, 0 stands in: exp(-inf) is nothing, and a NaN still shows.
  BlockSum block = block_exp_sum(x, n, reference == -INFINITY ? 0.0f : reference);
  if (block.max > reference + kHeadroom) {
    reference = block.max;
    block = block_exp_sum(x, n, reference);
  }
  const ExpSum own{reference, block.sum};
  row.softmax = row.softmax.max == -INFINITY && row.softmax.sum == 0.0 ? own : merge(row.softmax, own);

  if (draw == nullptr) return;
  if (draw->temperature > 0.0f) {
    if (block.max + draw->temperature * kGumbelMax >= row.best.value) {
      block_sample(x, n, id, *draw, block.max, row.best);
    }
  } else if (block.max > row.best.value) {
    row.best = {block.max, id + first_equal(x, n, block.max)};
  }
}

// Folds x[0, n), whose first element has vocabulary index `id`, into the row. draw == nullptr: the softmax only.
template <typename T>
WINO_HD void reduce_stretch(const T* x, int64_t n, int64_t id, const Draw* draw, RowState& row) {
  constexpr int64_t step = 4 * Vec::N;
  const int64_t whole = n / step * step;
  for (int64_t i = 0; i < whole; i += kBlock) {
    reduce_block(x + i, whole - i < kBlock ? whole - i : kBlock, id + i, draw, row);
  }
  if (whole == n) return;
  T tail[step];
  for (int64_t i = 0; i < step; ++i) {
    if (whole + i < n) {
      tail[i] = x[whole + i];
    } else {
      set_negative_infinity(&tail[i]);
    }
  }
  reduce_block(tail, step, id + whole, draw, row);
}

WINO_CPU_END
