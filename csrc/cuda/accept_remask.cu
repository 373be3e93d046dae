// accept_remask_: a block of threads per sequence.
#include "cuda/rule.h"

namespace wino {
namespace cuda {

__global__ void __launch_bounds__(kThreads, 2) accept_remask_kernel(const AcceptRemaskArgs args) {
  accept_remask_sequence(args, blockIdx.x);
}

cudaError_t accept_remask(const AcceptRemaskArgs& args, cudaStream_t stream) {
  return args.block.B == 0 ? cudaSuccess : launch(accept_remask_kernel, args.block.B, stream, args);
}

}  // namespace cuda
}  // namespace wino
