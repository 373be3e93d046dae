// accept_: a block of threads per sequence.
#include "cuda/rule.h"

namespace wino {
namespace cuda {

__global__ void __launch_bounds__(kThreads, 2) accept_kernel(const AcceptArgs args) {
  const BlockArgs& s = args.block;
  const int64_t b = blockIdx.x;
  const BlockState state{s.tokens + b * s.tokens_stride, s.masked + b * s.masked_stride, nullptr, nullptr};
  const int64_t count = args.count32 != nullptr ? args.count32[b] : args.count.at(b);
  const StepResult result = accept_by_block(state, s.token_ids + b * s.K, s.confidence + b * s.K, s.K,
                                            args.by_threshold, args.threshold.at(b), count);
  if (threadIdx.x != 0) return;
  s.accepted[b] = result.accepted;
  s.status[b] = result.status;
}

cudaError_t accept(const AcceptArgs& args, cudaStream_t stream) {
  return args.block.B == 0 ? cudaSuccess : launch(accept_kernel, args.block.B, stream, args);
}

}  // namespace cuda
}  // namespace wino
