// How a kernel is started.
#pragma once

#include <cuda_runtime.h>

#include "wino/config.h"

namespace wino {
namespace cuda {

constexpr int kThreads = 256;  // of every block
constexpr int kWarpSize = 32;
constexpr int kWarps = kThreads / kWarpSize;
constexpr uint32_t kAllLanes = ~0u;

// Starts `blocks` blocks of kThreads threads and returns what the runtime said to this launch.
template <typename Args>
cudaError_t launch(void (*kernel)(Args), int64_t blocks, cudaStream_t stream, const Args& args) {
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  void* parameters[] = {const_cast<Args*>(&args)};
  const cudaError_t status =
      cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), parameters, 0, stream);
  const cudaError_t pending = cudaGetLastError();  // clears it: the next operator must not be blamed for it
  return status != cudaSuccess ? status : pending;
}

}  // namespace cuda
}  // namespace wino
