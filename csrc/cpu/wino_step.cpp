// One decode step: each position of the block needs one row of logits, and then the accept / re-mask rule is applied.
#include "cpu/operators.h"
#include "wino/softmax.h"

WINO_CPU_BEGIN

namespace {

// A masked position drafts and a revocable one is verified. Nothing of a block that is done is looked at.
void choose_candidates(const AcceptRemaskArgs& a, int64_t* candidate_ids) {
  const BlockArgs& s = a.block;
  for (int64_t b = 0; b < s.B; ++b) {
    const bool *masked = s.masked + b * s.masked_stride, *revocable = a.revocable + b * a.revocable_stride;
    const int64_t* tokens = s.tokens + b * s.tokens_stride;
    int64_t* candidate = candidate_ids + b * s.K;
    bool running = a.verify_last && a.last[b * a.last_stride] > 1;
    for (int64_t i = 0; i < s.K; ++i) running |= masked[i];
    for (int64_t i = 0; i < s.K; ++i) {
      candidate[i] = !running ? kSkip : masked[i] ? kDraft : revocable[i] ? tokens[i] : kSkip;
    }
  }
}

}  // namespace

void wino_step(const AcceptRemaskArgs& args, const ScoreArgs& score, int64_t* scratch) {
  const int64_t rows = args.block.B * args.block.K;
  int64_t* candidate_ids = scratch;
  ScoreArgs scored = score;
  scored.candidate_ids = candidate_ids;
  scored.token_ids = candidate_ids + rows;
  scored.confidence = reinterpret_cast<double*>(candidate_ids + 2 * rows);
  choose_candidates(args, candidate_ids);
  score_tokens(scored);

  AcceptRemaskArgs step = args;
  step.block.token_ids = scored.token_ids;
  step.block.confidence = scored.confidence;
  step.block.token_ids_stride = step.block.confidence_stride = args.block.K;
  accept_remask(step);
}

WINO_CPU_END
