// A row of logits, as a block reads it: 16 bytes a load, whatever the row's address.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "cuda/launch.h"

namespace wino {
namespace cuda {

// Storage formats of a logit.
struct Float32 {
  uint32_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

__device__ __forceinline__ float to_float(Float32 x) { return __uint_as_float(x.bits); }
__device__ __forceinline__ float to_float(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
__device__ __forceinline__ float to_float(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }

template <typename T>
__device__ __forceinline__ T negative_infinity();
template <>
__device__ __forceinline__ Float32 negative_infinity() {
  return {0xFF800000u};
}
template <>
__device__ __forceinline__ BFloat16 negative_infinity() {
  return {0xFF80u};
}
template <>
__device__ __forceinline__ Float16 negative_infinity() {
  return {0xFC00u};
}

// Vocabulary entries per block: a constant, so that a row is always added up in the same order. 16 chunks make up
// LLaDA's vocabulary: 32 rows then fill the largest GPU several times over.
constexpr int64_t kChunk = 8192;

WINO_HD int64_t chunks_of(int64_t V) { return (V + kChunk - 1) / kChunk; }

template <typename T>
constexpr int kWidth = 16 / sizeof(T);  // logits in a 16-byte load
template <typename T>
constexpr int kVectors = kChunk / kThreads / kWidth<T>;  // loads per thread

template <typename T>
__device__ __forceinline__ void unpack(const uint4& vector, float (&x)[kWidth<T>]) {
  const uint32_t word[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
  for (int k = 0; k < kWidth<T>; ++k) {
    if constexpr (sizeof(T) == 4) {
      x[k] = to_float(T{word[k]});
    } else {
      x[k] = to_float(T{static_cast<uint16_t>(word[k / 2] >> 16 * (k % 2))});
    }
  }
}

template <typename T>
__device__ __forceinline__ uint4 pack(const T (&x)[kWidth<T>]) {
  uint32_t word[4] = {0, 0, 0, 0};
#pragma unroll
  for (int k = 0; k < kWidth<T>; ++k) {
    word[k * sizeof(T) / 4] |= static_cast<uint32_t>(x[k].bits) << 8 * (k * sizeof(T) % 4);
  }
  return make_uint4(word[0], word[1], word[2], word[3]);
}

// The 16 bytes that begin `bytes` (even) into the 32 of `low` and `high`.
__device__ __forceinline__ uint4 take_across(const uint4& low, const uint4& high, uint32_t bytes) {
  uint32_t word[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int k = 0; k < 6; ++k) word[k] = bytes & 8 ? word[k + 2] : word[k];
#pragma unroll
  for (int k = 0; k < 5; ++k) word[k] = bytes & 4 ? word[k + 1] : word[k];
#pragma unroll
  for (int k = 0; k < 4; ++k) word[k] = bytes & 2 ? __funnelshift_r(word[k], word[k + 1], 16) : word[k];
  return make_uint4(word[0], word[1], word[2], word[3]);
}

// kWidth logits from x[i] on, -inf where they are past the end V. Which logits a thread gets does not depend on the
// address, else the order of summation would: a row that begins between two 16-byte words is read as those words, and
// only its two ends one by one.
template <typename T>
__device__ __forceinline__ uint4 load_any(const T* x, int64_t i, int64_t V, uint32_t misaligned) {
  if (misaligned == 0 && i + kWidth<T> <= V) return __ldcs(reinterpret_cast<const uint4*>(x + i));
  if (misaligned != 0 && i > 0 && i + 2 * kWidth<T> <= V) {
    const auto* word = reinterpret_cast<const uint4*>(reinterpret_cast<uintptr_t>(x + i) - misaligned);
    return take_across(__ldg(word), __ldg(word + 1), misaligned);
  }
  T one[kWidth<T>];
#pragma unroll
  for (int k = 0; k < kWidth<T>; ++k) one[k] = i + k < V ? x[i + k] : negative_infinity<T>();
  return pack(one);
}

// Where in its chunk a thread's j-th vector begins: the loads of a warp lie side by side.
template <typename T>
__device__ __forceinline__ int offset_of(int j) {
  return (j * kThreads + static_cast<int>(threadIdx.x)) * kWidth<T>;
}

// The calling thread's share of the chunk that begins at `begin`.
template <typename T>
__device__ __forceinline__ void load_chunk(const T* x, int64_t begin, int64_t V, uint4 (&vectors)[kVectors<T>]) {
  const uint32_t misaligned = reinterpret_cast<uintptr_t>(x) % 16;
  if (misaligned == 0 && begin + kChunk <= V) {
#pragma unroll
    for (int j = 0; j < kVectors<T>; ++j) {
      vectors[j] = __ldcs(reinterpret_cast<const uint4*>(x + begin + offset_of<T>(j)));
    }
  } else {
#pragma unroll
    for (int j = 0; j < kVectors<T>; ++j) vectors[j] = load_any(x, begin + offset_of<T>(j), V, misaligned);
  }
}

}  // namespace cuda
}  // namespace wino
