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

// Of each of the four vectors that a step over the block is made of: sum of exp(x - reference), NaN when an x is NaN,
// and the maximum over the numbers that are not NaN.
struct BlockSums {
  Vec::F sum[4], max[4];
};

WINO_HD double total(const Vec::F (&sum)[4]) {
  return reduce_add(Vec::add(Vec::add(sum[0], sum[1]), Vec::add(sum[2], sum[3])));
}

WINO_HD float largest(const Vec::F (&max)[4]) {
  return Vec::largest(Vec::max(Vec::max(max[0], max[1]), Vec::max(max[2], max[3])));
}

// Meanwhile the block behind this one is fetched into L1. Equal terms round alike, so errors add up along a chain of
// additions: two levels keep both chains short.
template <typename T>
WINO_HD BlockSums block_exp_sum(const T* x, int64_t n, float reference) {
  constexpr int64_t step = 4 * Vec::N, stretch = 8 * step;
  const Vec::F ref = Vec::splat(reference);
  BlockSums block;
  for (int k = 0; k < 4; ++k) {
    block.sum[k] = Vec::splat(0.0f);
    block.max[k] = Vec::splat(-INFINITY);
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
        block.max[k] = Vec::max(v[k], block.max[k]);
        s[k] = Vec::add(s[k], exp_clamped(Vec::sub(v[k], ref)));
      }
    }
    for (int k = 0; k < 4; ++k) block.sum[k] = Vec::add(block.sum[k], s[k]);
  }
  return block;
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

// The block's sum without its largest logit, which no other one equals: that of the lanes it is not in, and, added up
// anew, that of the others in its lane, which lie whole steps from it.
template <typename T>
static __attribute__((noinline)) double sum_of_others(const T* x, int64_t n, float reference, float max,
                                                      BlockSums block) {
  constexpr int64_t step = 4 * Vec::N;
  float sum[step], lane_max[step], others[kBlock / step + Vec::N];
  for (int k = 0; k < 4; ++k) {
    Vec::store(sum + k * Vec::N, block.sum[k]);
    Vec::store(lane_max + k * Vec::N, block.max[k]);
  }
  for (int64_t i = 0; i < step; ++i) sum[i] = lane_max[i] == max ? 0.0f : sum[i];
  for (int k = 0; k < 4; ++k) block.sum[k] = Vec::load(sum + k * Vec::N);

  const int64_t at = first_equal(x, n, max);
  int64_t count = 0;
  for (int64_t i = at % step; i < n; i += step) others[count++] = i == at ? -INFINITY : to_float(x[i]);
  for (int k = 0; k < Vec::N; ++k) others[count + k] = -INFINITY;
  Vec::F lane = Vec::splat(0.0f);
  for (int64_t i = 0; i < count; i += Vec::N) {
    lane = Vec::add(lane, exp_clamped(Vec::sub(Vec::load(others + i), Vec::splat(reference))));
  }
  return total(block.sum) + reduce_add(lane);
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

// n is a multiple of 4 N; id is the vocabulary index of x[0]. The largest logit of the blocks so far is the reference
// of this one too, so that maximum and sum take one pass.
template <typename T>
WINO_HD void reduce_block(const T* x, int64_t n, int64_t id, const Draw* draw, RowState& row) {
  float reference = row.softmax.max == -INFINITY ? block_max(x, n) : row.softmax.max;
  // With only -inf so far, 0 stands in: exp(-inf) is nothing, and a NaN still shows.
  BlockSums block = block_exp_sum(x, n, reference == -INFINITY ? 0.0f : reference);
  const float max = largest(block.max);
  if (max > reference + kHeadroom) {
    reference = max;
    block = block_exp_sum(x, n, reference);
  }
  const double sum = total(block.sum);
  if (max <= row.softmax.max) {
    row.softmax.rest += sum;
  } else {
    const double largest_term = max == reference ? 1.0 : exp(static_cast<double>(max) - reference);
    double rest = sum - largest_term;
    // What is left of a sum that is mostly its largest term is that term's rounding.
    if (rest < 0.5 * largest_term) rest = sum_of_others(x, n, reference, max, block);
    if (reference == row.softmax.max) {
      row.softmax = {max, (row.softmax.rest + 1.0 + rest) / largest_term};
    } else if (row.softmax.max == -INFINITY) {
      row.softmax = {max, row.softmax.rest * 0.0 + rest};  // NaN stays
    } else {
      row.softmax = merge(row.softmax, {max, rest});
    }
  }

  if (draw == nullptr) return;
  if (draw->temperature > 0.0f) {
    if (max + draw->temperature * kGumbelMax >= row.best.value) {
      block_sample(x, n, id, *draw, max, row.best);
    }
  } else if (max > row.best.value) {
    row.best = {max, id + first_equal(x, n, max)};
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
