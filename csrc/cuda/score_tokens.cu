// score_tokens: a block of threads per chunk of a row's vocabulary; the last of a row's blocks finishes the row.
#include "cuda/score.h"

namespace wino {
namespace cuda {

template <typename T, bool kNoise>
__global__ void __launch_bounds__(kThreads, 4) score_tokens_kernel(const ScoreArgs args) {
  const int64_t chunks = chunks_of(args.logits.V), index = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
  const Row<T> row = row_of<T>(args.logits, index, args.candidate_ids[index]);
  Scored scored = score_without_logits(row);
  const bool complete = needs_logits(row)
                            ? score_chunk<T, kNoise>(row, chunk, chunks, args.partial, args.arrived, &scored)
                            : chunk == 0 && threadIdx.x == 0;
  if (!complete) return;
  args.token_ids[index] = scored.token;
  args.confidence[index] = scored.confidence;
}

template <typename T, bool kNoise>
struct ScoreTokens {
  static auto get() { return score_tokens_kernel<T, kNoise>; }
};

cudaError_t score_tokens(ScoreArgs args, int dtype, const Workspace& workspace, cudaStream_t stream) {
  const int64_t rows = args.logits.outer * args.logits.inner;
  if (rows == 0) return cudaSuccess;
  args.partial = reinterpret_cast<Partial*>(workspace.scratch);
  args.arrived = workspace.counters;
  return launch_for<ScoreTokens>(args.logits, dtype, rows * chunks_of(args.logits.V), stream, args);
}

}  // namespace cuda
}  // namespace wino
