#include "wino/accept.h"

#include "cpu/blocks.h"
#include "cpu/operators.h"

WINO_CPU_BEGIN

namespace {

int64_t count_of(const AcceptArgs& a, int64_t b) {
  const int64_t at = b * a.count_stride;
  return a.count_is_int64 ? static_cast<const int64_t*>(a.count)[at] : static_cast<const int32_t*>(a.count)[at];
}

void accept_one(const void* operator_args, int64_t b, uint64_t* keys) {
  const AcceptArgs& a = *static_cast<const AcceptArgs*>(operator_args);
  const BlockArgs& s = a.block;
  const BlockState state{s.tokens + b * s.tokens_stride, flags(s.masked + b * s.masked_stride), nullptr, nullptr};
  const float* threshold = a.threshold == nullptr ? nullptr : a.threshold + b * a.threshold_stride;
  const StepResult result =
      accept_block(state, s.token_ids + b * s.token_ids_stride, s.confidence + b * s.confidence_stride, s.K, threshold,
                   threshold == nullptr ? count_of(a, b) : 0, keys);
  s.accepted[b] = result.accepted;
  s.status[b] = result.status;
}

}  // namespace

void accept(const AcceptArgs& args) { for_each_block(args.block, &args, accept_one); }

WINO_CPU_END
