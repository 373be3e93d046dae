// Online softmax and argmax: partial results of a row and how they are merged.
#pragma once

#include "wino/config.h"

namespace wino {

constexpr int64_t kDraft = -1;  // candidate id: pick the token
constexpr int64_t kSkip = -2;   // candidate id: leave the row alone

// The largest logit, and what the others add up to: the sum of exp(logit - max) over all but one of the largest. The 1
// of that one is left out so that a probability near 1 is as exact as one near 0. A NaN among the logits makes the rest
// NaN, +inf makes max +inf, and -inf alone leaves it at -inf, beside a rest of no account.
struct ExpSum {
  float max;
  double rest;
};

WINO_HD ExpSum empty_exp_sum() { return {-INFINITY, 0.0}; }

WINO_HD ExpSum merge(ExpSum a, ExpSum b) {
  const bool rises = b.max > a.max;
  const ExpSum high = rises ? b : a, low = rises ? a : b;
  // Equal maxima need no rescaling, and -inf - -inf would be NaN.
  const double scale = low.max == high.max ? 1.0 : exp(static_cast<double>(low.max) - high.max);
  return {high.max, high.rest + (low.rest + 1.0) * scale};
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
WINO_HD double probability(float logit, ExpSum row) {
  if (!(fabsf(row.max) < INFINITY)) return NAN;
  return exp(static_cast<double>(logit) - row.max) / (1.0 + row.rest);
}

}  // namespace wino
