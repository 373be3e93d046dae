// Stands in for the CUDA toolkit's header: enough of it to compile csrc/cuda with the host compiler and to run the
// kernels on the CPU. A thread is a fiber, a block is run to its end before the next, and what CUDA leaves open (the
// order of blocks and threads, what shared memory holds at the start) is chosen anew for every launch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// One section, so that the shim finds all of it.
#define __shared__ static __attribute__((section("wino_shared")))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719
};
struct CUstream_st;
typedef CUstream_st* cudaStream_t;

cudaError_t cudaGetLastError();
const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaGetDeviceCount(int* devices);
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrComputeCapabilityMinor = 76 };
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);

// Of the thread that runs.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace shim {

constexpr unsigned kWarpSize = 32;

cudaError_t run(dim3 grid, dim3 threads, const std::function<void()>& kernel);

// Hands `value` to the other lanes of the warp; returns the values of all 32.
const uint64_t* exchange(unsigned mask, uint64_t value);
// All threads of the block meet; returns the number of those whose predicate holds.
int meet(const char* site, bool predicate);
// The barriers; one whose site has been dropped does nothing.
void syncthreads(const char* site);
int syncthreads_count(const char* site, bool predicate);
void syncwarp(const char* site, unsigned mask);
void threadfence(const char* site);
uint32_t atomic_increment(uint32_t* address, uint32_t wrap_at);

template <typename T>
uint64_t to_word(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves 8 bytes at most");
  uint64_t word = 0;
  memcpy(&word, &value, sizeof(T));
  return word;
}
template <typename T>
T from_word(uint64_t word) {
  T value;
  memcpy(&value, &word, sizeof(T));
  return value;
}
inline unsigned lane() { return threadIdx.x % kWarpSize; }

}  // namespace shim

template <typename Parameter>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameter), dim3 grid, dim3 threads, void** arguments, size_t,
                             cudaStream_t) {
  const Parameter copy = *static_cast<const Parameter*>(arguments[0]);
  return shim::run(grid, threads, [&] { kernel(copy); });
}

#define WINO_SHIM_TEXT_(x) #x
#define WINO_SHIM_TEXT(x) WINO_SHIM_TEXT_(x)
#define WINO_SHIM_SITE __FILE__ ":" WINO_SHIM_TEXT(__LINE__)
#define __syncthreads() ::shim::syncthreads(WINO_SHIM_SITE)
#define __syncthreads_count(predicate) ::shim::syncthreads_count(WINO_SHIM_SITE, predicate)
#define __syncthreads_or(predicate) (::shim::syncthreads_count(WINO_SHIM_SITE, predicate) != 0)
#define __syncwarp() ::shim::syncwarp(WINO_SHIM_SITE, ~0u)
#define __threadfence() ::shim::threadfence(WINO_SHIM_SITE)

template <typename T>
T __shfl_sync(unsigned mask, T value, int source) {
  return shim::from_word<T>(shim::exchange(mask, shim::to_word(value))[source % shim::kWarpSize]);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return shim::from_word<T>(shim::exchange(mask, shim::to_word(value))[shim::lane() ^ lanes]);
}
// A lane without a source keeps its own value.
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes) {
  const uint64_t* values = shim::exchange(mask, shim::to_word(value));
  const unsigned source = shim::lane() + lanes;
  return source < shim::kWarpSize ? shim::from_word<T>(values[source]) : value;
}
inline unsigned __ballot_sync(unsigned mask, bool predicate) {
  const uint64_t* values = shim::exchange(mask, predicate);
  unsigned votes = 0;
  for (unsigned i = 0; i < shim::kWarpSize; ++i) votes |= static_cast<unsigned>(values[i]) << i;
  return votes;
}
inline int __any_sync(unsigned mask, bool predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, bool predicate) { return __ballot_sync(mask, predicate) == mask; }
inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  const uint64_t* values = shim::exchange(mask, value);
  unsigned sum = 0;
  for (unsigned i = 0; i < shim::kWarpSize; ++i) sum += static_cast<unsigned>(values[i]);
  return sum;
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value) {
  const uint64_t* values = shim::exchange(mask, value);
  uint64_t least = values[0];
  for (unsigned i = 1; i < shim::kWarpSize; ++i) least = std::min(least, values[i]);
  return static_cast<unsigned>(least);
}

inline uint32_t atomicInc(uint32_t* address, uint32_t wrap_at) { return shim::atomic_increment(address, wrap_at); }

template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcs(const T* address) {
  return *address;
}

inline float __uint_as_float(uint32_t bits) { return shim::from_word<float>(bits); }
inline uint32_t __float_as_uint(float value) { return static_cast<uint32_t>(shim::to_word(value)); }
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t bits) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (bits & 31));
}

namespace wino {
namespace cuda {

// The device's instructions, each off by as much as the PTX manual allows (2^0 is exact) and always to the same side:
// what the errors of a whole row then add up to is the worst there is.
inline float exp2_approx(float x) {
  if (x < -126.0f) return 0.0f;
  return x == 0.0f ? 1.0f : std::exp2(x) * (1.0f + 0x1p-22f);
}
inline float log2_approx(float x) {
  const float y = std::log2(x);
  return x >= 0.5f && x <= 2.0f ? y + 0x1p-22f : y * (1.0f + 0x1p-22f);
}

}  // namespace cuda
}  // namespace wino
