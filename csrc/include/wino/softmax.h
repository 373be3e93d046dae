// Online softmax and argmax: partial results of a row and how they are merged.
#pragma once

#include "wino/config.h"

namespace wino {

constexpr int64_t kDraft = -1;  // candidate id: pick the token
constexpr int64_t kSkip = -2;   // candidate id: leave the row alone

// Sum of exp(logit - max), where max is a number near the largest logit; the empty sum is {-inf, 0}. A NaN among the
// logits makes the sum NaN, +inf makes max +inf, and -inf alone leaves it at -inf.
struct ExpSum {
  float max;
  double sum;
};

WINO_HD ExpSum empty_exp_sum() { return {-INFINITY, 0.0}; }

WINO_HD ExpSum merge(ExpSum a, ExpSum b) {
  const float max = b.max > a.max ? b.max : a.max;
  // Equal maxima need no rescaling, and -inf - -inf would be NaN.
  const double sa = a.max == max ? a.sum : a.sum * exp(static_cast<double>(a.max) - max);
  const double sb = b.max == max ? b.sum : b.sum * exp(static_cast<double>(b.max) - max);
  return {max, sa + sb};
}

// The winning token so far: largest value, then lowest id.
struct Best {
  float value;
  int64_t id;
};

WINO_HD Best empty_best() { return {-INFINITY, -1}; }

WINO_HD bool beats(Best challenger, Best holder) {
  return challenger.value > holder.value || (challenger.value == holder.value && challenger.id < holder.id);
}

// softmax(logits)[token] from the token's logit; NaN when a logit was NaN or +inf, or none was finite.
WINO_HD float probability(float logit, ExpSum row) {
  if (!(fabsf(row.max) < INFINITY)) return NAN;
  return static_cast<float>(exp(static_cast<double>(logit) - row.max) / row.sum);
}

}  // namespace wino
