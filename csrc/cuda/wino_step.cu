// wino_step_ in one launch: the blocks score the rows that the step needs, as score_tokens does, and the block that
// finishes a sequence's last row applies the accept / re-mask rule to it.
#include "cuda/rule.h"
#include "cuda/score.h"

namespace wino {
namespace cuda {

// What row i of sequence b is for: a masked position drafts, a revocable one is verified, and nothing of a sequence
// that is done is looked at. Every thread gets the answer. What is read here changes only after every block that needs
// its row has arrived; the others find their position neither masked nor revocable before and after.
__device__ __forceinline__ int64_t candidate_of(const AcceptRemaskArgs& a, int64_t b, int64_t i) {
  const BlockArgs& s = a.block;
  const uint8_t* masked = s.masked + b * s.masked_stride;
  if (masked[i]) return kDraft;
  if (!a.revocable[b * a.revocable_stride + i]) return kSkip;
  bool running = a.verify_last && a.last[b] > 1;
  for (int64_t j = threadIdx.x; j < s.K; j += kThreads) running |= masked[j] != 0;
  return __syncthreads_or(running) ? s.tokens[b * s.tokens_stride + i] : kSkip;
}

template <typename T, bool kNoise>
__global__ void __launch_bounds__(kThreads, 3) wino_step_kernel(const StepArgs args) {
  const int64_t K = args.rule.block.K, chunks = chunks_of(args.score.logits.V);
  const int64_t index = blockIdx.x / chunks, chunk = blockIdx.x % chunks, b = index / K;
  const Row<T> row = row_of<T>(args.score.logits, index, candidate_of(args.rule, b, index % K));
  Scored scored = score_without_logits(row);
  bool complete = chunk == 0 && threadIdx.x == 0;
  if (needs_logits(row)) {
    complete = score_chunk<T, kNoise>(row, chunk, chunks, args.score.partial, args.score.arrived, &scored);
  } else if (chunk != 0) {
    return;
  }

  bool apply = false;
  if (complete) {
    args.score.token_ids[index] = scored.token;
    args.score.confidence[index] = scored.confidence;
    __threadfence();
    const uint32_t others = static_cast<uint32_t>(K - 1);
    apply = atomicInc(args.finished + b, others) == others;
    __threadfence();
  }
  if (__syncthreads_or(apply)) accept_remask_sequence(args.rule, b);
}

template <typename T, bool kNoise>
struct WinoStep {
  static auto get() { return wino_step_kernel<T, kNoise>; }
};

cudaError_t wino_step(const Logits& logits, int dtype, const AcceptRemaskArgs& rule, const Workspace& workspace,
                      cudaStream_t stream) {
  const int64_t rows = logits.outer * logits.inner, chunks = chunks_of(logits.V);
  if (rows == 0) return accept_remask(rule, stream);
  StepArgs args{};
  args.score.logits = logits;
  args.score.partial = reinterpret_cast<Partial*>(workspace.scratch);
  args.score.token_ids = reinterpret_cast<int64_t*>(args.score.partial + rows * chunks);
  args.score.confidence = reinterpret_cast<double*>(args.score.token_ids + rows);
  args.score.arrived = workspace.counters;
  args.finished = workspace.counters + rows;
  args.rule = rule;
  args.rule.block.token_ids = args.score.token_ids;
  args.rule.block.confidence = args.score.confidence;
  return launch_for<WinoStep>(logits, dtype, rows * chunks, stream, args);
}

int64_t scratch_elements(int64_t rows, int64_t V, int64_t sequences) {
  const int64_t of_row = chunks_of(V) * sizeof(Partial) + (sequences > 0 ? sizeof(int64_t) + sizeof(double) : 0);
  return rows * of_row / sizeof(float);
}

int64_t counter_elements(int64_t rows, int64_t sequences) { return rows + sequences; }

}  // namespace cuda
}  // namespace wino
