// The accept / re-mask rules of wino/accept.h, with a block of threads for a sequence's K positions. Nothing is kept
// per position, so K may be any number: where the k largest are wanted, the place of the k-th in the order is found,
// and every thread compares with it.
#pragma once

#include "cuda/launch.h"
#include "cuda/operators.h"

namespace wino {
namespace cuda {

// Counts over the positions. "Past" the threshold is above it for masked positions, below it for revocable ones.
struct Tally {
  uint32_t masked, masked_past, masked_nan, revocable_past, revocable_nan;
};

// Where a position stands in the order in which positions are taken: the larger key, then the lower position, first.
struct Place {
  uint64_t key;
  int64_t position;
};

__device__ __forceinline__ bool before(const Place& a, const Place& b) {
  return a.key > b.key || (a.key == b.key && a.position < b.position);
}

// Before this lie the positions whose keys are above `cut`.
__device__ __forceinline__ Place place_of_cut(uint64_t cut) { return {cut, -1}; }

struct RuleShared {
  Tally of_warp[kWarps];
  uint64_t key[kThreads];
  Place end;
};

static __device__ __forceinline__ RuleShared& rule_shared() {
  __shared__ RuleShared shared;
  return shared;
}

// The flagged positions of a block as keys: 0 where the flag is not set.
struct Candidacy {
  const uint8_t* flags;
  const double* confidence;
  uint64_t flip;

  __device__ __forceinline__ uint64_t key(int64_t i) const { return flags[i] ? rank_key(confidence[i]) ^ flip : 0; }
  __device__ __forceinline__ Place place(int64_t i) const { return {key(i), i}; }
};

// To every thread.
__device__ __forceinline__ Tally tally(const Candidacy& masked, uint64_t masked_cut, const Candidacy& revocable,
                                       uint64_t revocable_cut, int64_t K) {
  RuleShared& shared = rule_shared();
  Tally own{};
  for (int64_t i = threadIdx.x; i < K; i += kThreads) {
    const bool nan = masked.confidence[i] != masked.confidence[i];
    own.masked += masked.flags[i] != 0;
    own.masked_past += masked.key(i) > masked_cut;
    own.masked_nan += masked.flags[i] != 0 && nan;
    if (revocable.flags == nullptr) continue;
    own.revocable_past += revocable.key(i) > revocable_cut;
    own.revocable_nan += revocable.flags[i] != 0 && nan;
  }
  own.masked = __reduce_add_sync(kAllLanes, own.masked);
  own.masked_past = __reduce_add_sync(kAllLanes, own.masked_past);
  own.masked_nan = __reduce_add_sync(kAllLanes, own.masked_nan);
  own.revocable_past = __reduce_add_sync(kAllLanes, own.revocable_past);
  own.revocable_nan = __reduce_add_sync(kAllLanes, own.revocable_nan);
  if (threadIdx.x % kWarpSize == 0) shared.of_warp[threadIdx.x / kWarpSize] = own;
  __syncthreads();
  Tally all{};
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    all.masked += shared.of_warp[w].masked;
    all.masked_past += shared.of_warp[w].masked_past;
    all.masked_nan += shared.of_warp[w].masked_nan;
    all.revocable_past += shared.of_warp[w].revocable_past;
    all.revocable_nan += shared.of_warp[w].revocable_nan;
  }
  return all;
}

// The place before which exactly `count` candidates lie, 0 < count <= number of candidates, by counting for each how
// many go before it.
__device__ __forceinline__ Place place_after(int64_t count, const Candidacy& candidates, int64_t K) {
  RuleShared& shared = rule_shared();
  for (int64_t first = 0; first < K; first += kThreads) {
    const int64_t i = first + threadIdx.x;
    const bool candidate = i < K && candidates.flags[i];
    const Place own = candidate ? candidates.place(i) : place_of_cut(kNone);
    int64_t ahead = 0;
    for (int64_t from = 0; from < K; from += kThreads) {
      const int64_t left = K - from;
      const int number = left < kThreads ? static_cast<int>(left) : kThreads;
      if (static_cast<int>(threadIdx.x) < number) shared.key[threadIdx.x] = candidates.key(from + threadIdx.x);
      __syncthreads();
      for (int n = 0; n < number; ++n) ahead += before({shared.key[n], from + n}, own);
      __syncthreads();
    }
    if (candidate && ahead == count - 1) shared.end = {own.key, own.position + 1};
  }
  __syncthreads();
  return shared.end;
}

// Section 3, steps 1, 3, 5, 6, and section 3a. Every thread gets the result; nothing is written before every NaN check
// has passed, and a thread writes only positions that it alone reads.
__device__ __forceinline__ StepResult accept_remask_by_block(const BlockState& s, const int64_t* token_ids,
                                                             const double* confidence, int64_t K, int64_t mask_id,
                                                             float threshold, float threshold_back,
                                                             const AcceptLimit& limit, bool verify_last) {
  const int64_t last = *s.last;
  const Candidacy masked{s.masked, confidence, 0}, revocable{s.revocable, confidence, kFlip};
  const uint64_t cut = cut_above(threshold), cut_back = cut_below(threshold_back);
  const Tally all = tally(masked, cut, revocable, cut_back, K);

  const bool final_pass = all.masked == 0;
  if (final_pass && (!verify_last || last <= 1)) return {0, 0, kDone};
  if (all.masked_nan != 0) return {0, 0, kNaN};

  int64_t accepted = 0, remasked = 0;
  Place accept_end = place_of_cut(kNone), remask_end = place_of_cut(kNone);
  if (!final_pass) {
    accepted = number_accepted(all.masked_past, accept_limit(limit, all.masked));
    accept_end = accepted == all.masked_past ? place_of_cut(cut) : place_after(accepted, masked, K);
  }
  if (accepted > 1 || final_pass) {
    if (all.revocable_nan != 0) return {0, 0, kNaN};
    remasked = number_remasked(all.revocable_past, last);
    if (remasked == all.revocable_past) {
      remask_end = place_of_cut(cut_back);
    } else if (remasked > 0) {
      remask_end = place_after(remasked, revocable, K);
    }
  }

  for (int64_t i = threadIdx.x; i < K; i += kThreads) {
    const bool take = before(masked.place(i), accept_end), take_back = before(revocable.place(i), remask_end);
    if (!take && !take_back) continue;
    s.tokens[i] = take_back ? mask_id : token_ids[i];
    s.masked[i] = take_back;
    s.revocable[i] = !take_back;
  }
  const int64_t new_last = !final_pass ? accepted : remasked > 0 ? last - remasked : 0;
  if (threadIdx.x == 0) *s.last = static_cast<int32_t>(new_last);
  const bool empty = all.masked - accepted + remasked == 0, pass_ahead = verify_last && new_last > 1;
  return {static_cast<int32_t>(accepted), static_cast<int32_t>(remasked), empty && !pass_ahead ? kDone : kRunning};
}

// Section 4: all masked positions with confidence >= threshold (at least one), or the `count` largest. There is no U.
__device__ __forceinline__ StepResult accept_by_block(const BlockState& s, const int64_t* token_ids,
                                                      const double* confidence, int64_t K, bool by_threshold,
                                                      float threshold, int64_t count) {
  const Candidacy masked{s.masked, confidence, 0};
  const uint64_t cut = by_threshold ? cut_reaching(threshold) : kNone;
  const Tally all = tally(masked, cut, {}, 0, K);
  if (all.masked == 0) return {0, 0, kDone};
  if (all.masked_nan != 0) return {0, 0, kNaN};

  int64_t accepted = all.masked_past;
  Place accept_end = place_of_cut(cut);
  const int64_t at_least = by_threshold ? 1 : count;
  if (accepted == 0 && at_least > 0) {
    accepted = at_least < all.masked ? at_least : all.masked;
    accept_end = place_after(accepted, masked, K);
  }
  for (int64_t i = threadIdx.x; i < K; i += kThreads) {
    if (!before(masked.place(i), accept_end)) continue;
    s.tokens[i] = token_ids[i];
    s.masked[i] = 0;
  }
  return {static_cast<int32_t>(accepted), 0, accepted == all.masked ? kDone : kRunning};
}

// The block's threads apply the rule to sequence b.
__device__ __forceinline__ void accept_remask_sequence(const AcceptRemaskArgs& a, int64_t b) {
  const BlockArgs& s = a.block;
  const BlockState state{s.tokens + b * s.tokens_stride, s.masked + b * s.masked_stride,
                         a.revocable + b * a.revocable_stride, a.last + b};
  const StepResult result = accept_remask_by_block(state, s.token_ids + b * s.K, s.confidence + b * s.K, s.K, a.mask_id,
                                                   a.threshold.at(b), a.threshold_back.at(b), a.limit, a.verify_last);
  if (threadIdx.x != 0) return;
  s.accepted[b] = result.accepted;
  s.remasked[b] = result.remasked;
  s.status[b] = result.status;
}

}  // namespace cuda
}  // namespace wino
