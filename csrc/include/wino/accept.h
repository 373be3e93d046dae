// The accept / re-mask rules (docs/spec.md sections 3, 3a, 4) for one sequence's block of K positions.
#pragma once

#include "wino/config.h"

namespace wino {

enum Status : int32_t { kRunning = 0, kDone = 1, kNaN = 2 };

// At most max(min_accept, floor(numerator * m / denominator)) tokens, and never more than max_accept, are accepted.
struct AcceptLimit {
  int64_t numerator, denominator, min_accept, max_accept;
};

WINO_HD int64_t accept_limit(const AcceptLimit& limit, int64_t m) {
  int64_t a = limit.numerator * m / limit.denominator;
  a = a < limit.min_accept ? limit.min_accept : a;
  return a > limit.max_accept ? limit.max_accept : a;
}

// |C| of step 3, with `above` of the masked positions above the threshold and at most `most` to be accepted; where it
// differs from `above`, C are that many largest.
WINO_HD int64_t number_accepted(int64_t above, int64_t most) {
  if (above > most) return most > 0 ? most : 1;
  return above > 0 ? above : 1;
}

// |R| of step 5, with `below` of the revocable positions below the threshold; where it differs from `below`, R are that
// many smallest.
WINO_HD int64_t number_remasked(int64_t below, int64_t last) {
  if (below < last) return below;
  return last > 1 ? last - 1 : 0;
}

// Order-preserving map of the numbers (not NaN) into the integers above 0, so that 0 can mean "not a candidate".
WINO_HD uint64_t rank_key(double value) {
  const double unsigned_zero = value + 0.0;  // -0 and +0 are equal confidences
  uint64_t bits;
  memcpy(&bits, &unsigned_zero, sizeof(bits));
  return bits ^ ((0 - (bits >> 63)) | 1ull << 63);
}

constexpr uint64_t kNone = ~0ull;  // no key is above this
constexpr uint64_t kFlip = ~0ull;  // reverses the order of keys: smallest first

WINO_HD double as_finite(float value) {
  return fabsf(value) < INFINITY ? static_cast<double>(value) : value > 0.0f ? 0x1p128 : -0x1p128;
}

// The key of the largest number that is not above `threshold` once it is rounded to float32 (to nearest, ties to even).
WINO_HD uint64_t last_not_above(float threshold) {
  if (threshold == INFINITY) return rank_key(INFINITY);
  const float unsigned_zero = threshold + 0.0f;
  uint32_t bits;
  memcpy(&bits, &unsigned_zero, sizeof(bits));
  const uint32_t next_bits = bits >> 31 ? bits - 1 : bits + 1;
  float next;
  memcpy(&next, &next_bits, sizeof(next));
  return rank_key((as_finite(unsigned_zero) + as_finite(next)) / 2.0) - (bits & 1);
}

// Confidences are compared with thresholds as float32, and comparisons with NaN are false. The cuts above which lie the
// keys of those above `threshold`, the flipped keys of those below it, and the keys of those that reach it; a number's
// key is the negative's, flipped.
WINO_HD uint64_t cut_above(float threshold) { return threshold != threshold ? kNone : last_not_above(threshold); }
WINO_HD uint64_t cut_below(float threshold) { return cut_above(-threshold); }
WINO_HD uint64_t cut_reaching(float threshold) {
  return threshold != threshold ? kNone : (last_not_above(-threshold) ^ kFlip) - 1;
}

WINO_HD int64_t count_above(const uint64_t* keys, int64_t n, uint64_t cut) {
  uint64_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += keys[i] > cut;
  return count;
}

struct Candidates {
  int64_t count;
  uint64_t smallest, largest;  // of the keys
  bool nan;
};

// keys[i] = rank of the confidence where the flag is set, 0 elsewhere.
WINO_HD Candidates rank_flagged(uint64_t* keys, const uint8_t* flags, const double* confidence, int64_t n,
                                uint64_t flip) {
  uint64_t count = 0, smallest = kNone, largest = 0, nan = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t flag = 0ull - flags[i];  // all ones where set
    const double c = confidence[i];
    const uint64_t key = (rank_key(c) ^ flip) & flag, or_highest = key | ~flag;
    keys[i] = key;
    count -= flag;
    smallest = or_highest < smallest ? or_highest : smallest;
    largest = key > largest ? key : largest;
    nan |= c != c ? flag : 0ull;
  }
  return {static_cast<int64_t>(count), smallest, largest, nan != 0};
}

// Returns the cut above which exactly k keys lie, 0 < k <= number of candidates. Of keys equal at the cut the first
// ones stay; the others are set to 0.
WINO_HD uint64_t select_largest(uint64_t* keys, int64_t n, const Candidates& candidates, int64_t k) {
  uint64_t low = candidates.smallest, high = candidates.largest;  // the k-th largest key is in [low, high]
  while (low < high) {
    const uint64_t middle = low + (high - low + 1) / 2;
    const int64_t count = count_above(keys, n, middle - 1);
    if (count == k) return middle - 1;
    if (count > k) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  int64_t ties = k - count_above(keys, n, low);
  for (int64_t i = 0; i < n; ++i) {
    if (keys[i] == low && ties-- <= 0) keys[i] = 0;
  }
  return low - 1;
}

struct BlockState {
  int64_t* tokens;     // [K]
  uint8_t* masked;     // [K]
  uint8_t* revocable;  // [K]
  int32_t* last;
};

struct StepResult {
  int32_t accepted, remasked, status;
};

// The positions whose key is above `cut`, `count` of them.
struct Selection {
  uint64_t cut;
  int64_t count;
};

// R of step 5: those below the threshold, or the `last - 1` smallest when that would be `last` or more.
WINO_HD Selection select_remask(uint64_t* keys, int64_t n, const Candidates& candidates, float threshold_back,
                                int64_t last) {
  const uint64_t cut = cut_below(threshold_back);
  const int64_t below = count_above(keys, n, cut), count = number_remasked(below, last);
  if (count == below) return {cut, count};
  if (count == 0) return {kNone, 0};
  return {select_largest(keys, n, candidates, count), count};
}

// x_j = [MASK], M gains j and U loses it, for the selected j.
WINO_HD void write_remasked(const BlockState& s, const uint64_t* keys, int64_t n, uint64_t cut, int64_t mask_id) {
  for (int64_t i = 0; i < n; ++i) s.tokens[i] = keys[i] > cut ? mask_id : s.tokens[i];
  for (int64_t i = 0; i < n; ++i) {
    const uint8_t selected = keys[i] > cut;
    s.masked[i] |= selected;
    s.revocable[i] &= selected ^ 1u;
  }
}

// x_i = t_i and M loses i, for the selected i; U gains it where the rule has a U.
WINO_HD void write_accepted(const BlockState& s, const int64_t* token_ids, const uint64_t* keys, int64_t n,
                            uint64_t cut) {
  for (int64_t i = 0; i < n; ++i) s.tokens[i] = keys[i] > cut ? token_ids[i] : s.tokens[i];
  for (int64_t i = 0; i < n; ++i) s.masked[i] &= static_cast<uint8_t>(keys[i] <= cut);
  if (s.revocable == nullptr) return;
  for (int64_t i = 0; i < n; ++i) s.revocable[i] |= static_cast<uint8_t>(keys[i] > cut);
}

// Section 3a: M is empty, every token of U is verified and nothing is accepted.
WINO_HD StepResult verify_block(const BlockState& s, const double* confidence, int64_t K, int64_t mask_id,
                                float threshold_back, uint64_t* keys) {
  const Candidates revocable = rank_flagged(keys, s.revocable, confidence, K, kFlip);
  if (revocable.nan) return {0, 0, kNaN};
  const Selection remask = select_remask(keys, K, revocable, threshold_back, *s.last);
  if (remask.count == 0) {
    *s.last = 0;
    return {0, 0, kDone};
  }
  write_remasked(s, keys, K, remask.cut, mask_id);
  *s.last -= static_cast<int32_t>(remask.count);
  return {0, static_cast<int32_t>(remask.count), kRunning};
}

// Section 3, steps 1, 3, 5, 6. `keys` is scratch for 2 K ranks. Nothing is written before every NaN check has passed.
WINO_HD StepResult accept_remask_block(const BlockState& s, const int64_t* token_ids, const double* confidence,
                                       int64_t K, int64_t mask_id, float threshold, float threshold_back,
                                       const AcceptLimit& limit, bool verify_last, uint64_t* keys) {
  const Candidates masked = rank_flagged(keys, s.masked, confidence, K, 0);
  if (masked.count == 0) {
    if (!verify_last || *s.last <= 1) return {0, 0, kDone};
    return verify_block(s, confidence, K, mask_id, threshold_back, keys);
  }
  if (masked.nan) return {0, 0, kNaN};

  Selection accept{cut_above(threshold), 0};
  const int64_t above = count_above(keys, K, accept.cut);
  accept.count = number_accepted(above, accept_limit(limit, masked.count));
  if (accept.count != above) accept.cut = select_largest(keys, K, masked, accept.count);

  Selection remask{kNone, 0};
  if (accept.count > 1) {
    uint64_t* back_keys = keys + K;
    const Candidates revocable = rank_flagged(back_keys, s.revocable, confidence, K, kFlip);
    if (revocable.nan) return {0, 0, kNaN};
    remask = select_remask(back_keys, K, revocable, threshold_back, *s.last);
    if (remask.count > 0) write_remasked(s, back_keys, K, remask.cut, mask_id);
  }
  write_accepted(s, token_ids, keys, K, accept.cut);
  *s.last = static_cast<int32_t>(accept.count);
  const bool pass_ahead = verify_last && accept.count > 1;
  const bool empty = masked.count - accept.count + remask.count == 0;
  return {static_cast<int32_t>(accept.count), static_cast<int32_t>(remask.count),
          empty && !pass_ahead ? kDone : kRunning};
}

// Section 4: all masked positions with confidence >= threshold (at least one), or the `count` largest. There is no U.
WINO_HD StepResult accept_block(const BlockState& s, const int64_t* token_ids, const double* confidence, int64_t K,
                                const float* threshold, int64_t count, uint64_t* keys) {
  const Candidates masked = rank_flagged(keys, s.masked, confidence, K, 0);
  if (masked.count == 0) return {0, 0, kDone};
  if (masked.nan) return {0, 0, kNaN};

  Selection accept{kNone, 0};
  if (threshold != nullptr) {
    accept.cut = cut_reaching(*threshold);
    accept.count = count_above(keys, K, accept.cut);
    count = 1;
  }
  if (accept.count == 0 && count > 0) {
    accept.count = count < masked.count ? count : masked.count;
    accept.cut = select_largest(keys, K, masked, accept.count);
  }
  write_accepted(s, token_ids, keys, K, accept.cut);
  return {static_cast<int32_t>(accept.count), 0, accept.count == masked.count ? kDone : kRunning};
}

}  // namespace wino
