#include "wino/accept.h"

#include "cpu/blocks.h"
#include "cpu/operators.h"

WINO_CPU_BEGIN

namespace {

void accept_remask_one(const void* operator_args, int64_t b, uint64_t* keys) {
  const AcceptRemaskArgs& a = *static_cast<const AcceptRemaskArgs*>(operator_args);
  const BlockArgs& s = a.block;
  const BlockState state{s.tokens + b * s.tokens_stride, flags(s.masked + b * s.masked_stride),
                         flags(a.revocable + b * a.revocable_stride), a.last + b * a.last_stride};
  const StepResult result = accept_remask_block(
      state, s.token_ids + b * s.token_ids_stride, s.confidence + b * s.confidence_stride, s.K, a.mask_id,
      a.threshold[b * a.threshold_stride], a.threshold_back[b * a.threshold_back_stride], a.limit, a.verify_last, keys);
  s.accepted[b] = result.accepted;
  s.remasked[b] = result.remasked;
  s.status[b] = result.status;
}

}  // namespace

void accept_remask(const AcceptRemaskArgs& args) { for_each_block(args.block, &args, accept_remask_one); }

WINO_CPU_END
