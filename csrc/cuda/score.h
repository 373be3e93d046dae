// Scoring a row of logits (docs/spec.md sections 3 and 6): a block reduces one chunk of the vocabulary, and of the
// blocks of a row the one that is done last joins their results, in the order of the chunks.
#pragma once

#include "cuda/intrinsics.h"
#include "cuda/operators.h"
#include "cuda/row.h"
#include "wino/philox.h"
#include "wino/softmax.h"

namespace wino {
namespace cuda {

constexpr float kLog2E = 1.442695041f, kLn2 = 0.6931471806f;
constexpr uint32_t kNoId = ~0u;

// Sum of exp(logit - max) over the logits that are not the largest; how many are, and the lowest place of one in the
// chunk.
struct Sum {
  float rest;
  uint32_t largest, first;
};

struct ScoreShared {
  float max[kWarps], estimate[kWarps], best[kWarps];
  Sum sum[kWarps];
  uint32_t id[kWarps];
};

// Not in the kernels themselves, so that all of them share one layout.
static __device__ __forceinline__ ScoreShared& score_shared() {
  __shared__ ScoreShared shared;
  return shared;
}

template <typename T>
struct Row {
  const T* logits;
  int64_t index, V, candidate;
  float temperature;
  uint64_t key;
};

template <typename T>
__device__ __forceinline__ Row<T> row_of(const Logits& a, int64_t index, int64_t candidate) {
  const int64_t offset = index / a.inner * a.outer_stride + index % a.inner * a.inner_stride;
  const float t = a.seed == nullptr ? 0.0f : a.temperature.at(index);
  const uint64_t key = t > 0.0f ? static_cast<uint64_t>(a.seed[index]) : 0;
  return {static_cast<const T*>(a.data) + offset, index, a.V, candidate, t, key};
}

template <typename T>
__device__ __forceinline__ bool needs_logits(const Row<T>& row) {
  if (row.candidate == kDraft) return row.temperature >= 0.0f && row.temperature < INFINITY;
  return row.candidate >= 0 && row.candidate < row.V;
}

struct Scored {
  int64_t token;
  double confidence;
};

template <typename T>
__device__ __forceinline__ Scored score_without_logits(const Row<T>& row) {
  return {row.candidate == kDraft ? 0 : row.candidate, row.candidate == kSkip ? 0.0 : NAN};
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, lanes));
  return x;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  return x;
}

// Of a number per warp, to every thread.
__device__ __forceinline__ float max_over_warps(const float (&of_warp)[kWarps]) {
  float max = of_warp[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) max = fmaxf(max, of_warp[w]);
  return max;
}

// The same of a thread's logits, whose sum is a balanced tree: errors grow with its depth, not its size.
template <typename T>
__device__ __forceinline__ Sum exp_sum(const uint4 (&vectors)[kVectors<T>], float max) {
  uint32_t largest = 0, first = kNoId;
  float of_vector[kVectors<T>];
#pragma unroll
  for (int j = kVectors<T> - 1; j >= 0; --j) {
    float x[kWidth<T>];
    unpack<T>(vectors[j], x);
#pragma unroll
    for (int k = kWidth<T> - 1; k >= 0; --k) {
      const bool is_largest = x[k] == max;
      largest += is_largest;
      first = is_largest ? j * kWidth<T> + k : first;  // of the thread: a constant
      x[k] = is_largest ? 0.0f : exp2_approx((x[k] - max) * kLog2E);
    }
#pragma unroll
    for (int half = kWidth<T> / 2; half > 0; half /= 2) {
#pragma unroll
      for (int k = 0; k < half; ++k) x[k] += x[k + half];
    }
    of_vector[j] = x[0];
  }
#pragma unroll
  for (int half = kVectors<T> / 2; half > 0; half /= 2) {
#pragma unroll
    for (int j = 0; j < half; ++j) of_vector[j] += of_vector[j + half];
  }
  const uint32_t place = offset_of<T>(first / kWidth<T>) + first % kWidth<T>;
  return {of_vector[0], largest, largest == 0 ? kNoId : place};
}

template <typename T>
__device__ __forceinline__ float max_of(const uint4 (&vectors)[kVectors<T>]) {
  float max = -INFINITY;
#pragma unroll
  for (int j = 0; j < kVectors<T>; ++j) {
    float x[kWidth<T>];
    unpack<T>(vectors[j], x);
#pragma unroll
    for (int k = 0; k < kWidth<T>; ++k) max = fmaxf(max, x[k]);  // NaN is passed over here; it shows in the sum
  }
  return max;
}

// gumbel(word) to within 1e-5: log1p by its series where 1 - x would lose x.
__device__ __forceinline__ float gumbel_estimate(uint32_t word) {
  const float x = gumbel_uniform(word);
  const float series = x * fmaf(x, fmaf(x, fmaf(x, 0.25f, 1.0f / 3.0f), 0.5f), 1.0f);
  return -kLn2 * log2_approx(x < 0.0625f ? series : -kLn2 * log2_approx(1.0f - x));
}

// What wins a chunk: the largest logit + temperature * noise, then the lowest id.
struct Winner {
  float value;
  uint32_t id;  // within the chunk
};

__device__ __forceinline__ Winner better(Winner a, Winner b) {
  return b.value > a.value || (b.value == a.value && b.id < a.id) ? b : a;
}

__device__ __forceinline__ Winner warp_winner(Winner own) {
#pragma unroll
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    const float value = __shfl_xor_sync(kAllLanes, own.value, lanes);
    own = better(own, {value, __shfl_xor_sync(kAllLanes, own.id, lanes)});
  }
  return own;
}

// The largest logit + temperature * (estimated noise) of a thread's logits; `max` is the chunk's largest logit. Four
// logits share a Philox block, which is not computed when none of them can reach what the largest logit has for sure.
template <typename T>
__device__ __forceinline__ float largest_estimate(const Row<T>& row, int64_t begin, const uint4 (&vectors)[kVectors<T>],
                                                  float max) {
  const float reach = row.temperature * kGumbelMax, sure = max + row.temperature * kGumbelMin;
  float estimate = -INFINITY;
#pragma unroll
  for (int j = 0; j < kVectors<T>; ++j) {
    float x[kWidth<T>];
    unpack<T>(vectors[j], x);
#pragma unroll
    for (int q = 0; q < kWidth<T>; q += 4) {
      const float top = fmaxf(fmaxf(x[q], x[q + 1]), fmaxf(x[q + 2], x[q + 3]));
      if (top + reach < sure) continue;
      const PhiloxWords words = philox_block(row.key, begin + offset_of<T>(j) + q);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        estimate = fmaxf(estimate, x[q + k] + row.temperature * gumbel_estimate(words.word[k]));
      }
    }
  }
  return estimate;
}

// The exact winner among a thread's logits whose estimate reaches `bar`: one or two in a whole chunk, so they are
// simply read again. Comparisons are such that a NaN bar (the noise overflows) lets everything through.
template <typename T>
__device__ Winner exact_winner(const Row<T>& row, int64_t begin, float bar) {
  Winner best{-INFINITY, kNoId};
#pragma unroll 1
  for (int n = 0; n < kVectors<T> * kWidth<T>; ++n) {
    const int at = offset_of<T>(n / kWidth<T>) + n % kWidth<T>;
    if (begin + at >= row.V) continue;
    const float x = to_float(row.logits[begin + at]);
    const uint32_t word = philox_word(row.key, begin + at);
    if (x == -INFINITY || x + row.temperature * gumbel_estimate(word) < bar) continue;
    best = better(best, {x + row.temperature * gumbel(word), static_cast<uint32_t>(at)});
  }
  return best;
}

template <typename T>
__device__ __forceinline__ Winner sample(const Row<T>& row, int64_t begin, const uint4 (&vectors)[kVectors<T>],
                                         float max, ScoreShared& shared) {
  const float estimate = largest_estimate(row, begin, vectors, max), of_warp = warp_max(estimate);
  if (threadIdx.x % kWarpSize == 0) shared.estimate[threadIdx.x / kWarpSize] = of_warp;
  __syncthreads();
  const float largest = max_over_warps(shared.estimate), t = row.temperature;
  // Twice the error of an estimate, and of the roundings of logit + t * noise.
  const float bar = largest - (4e-5f * t + 1e-6f * (fabsf(largest) + 26.0f * t));
  return estimate < bar ? Winner{-INFINITY, kNoId} : exact_winner(row, begin, bar);
}

// The whole block reduces the chunk that begins at `begin`; thread 0 gets the result.
template <typename T, bool kNoise>
__device__ __forceinline__ Partial reduce_chunk(const Row<T>& row, int64_t begin) {
  ScoreShared& shared = score_shared();
  const unsigned warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  uint4 vectors[kVectors<T>];
  load_chunk(row.logits, begin, row.V, vectors);

  const float of_warp = warp_max(max_of<T>(vectors));
  if (lane == 0) shared.max[warp] = of_warp;
  __syncthreads();
  const float max = max_over_warps(shared.max);

  Sum sum = exp_sum<T>(vectors, max);
  sum = {warp_sum(sum.rest), __reduce_add_sync(kAllLanes, sum.largest), sum.first};
  Winner winner{-INFINITY, kNoId};
  if (row.candidate == kDraft && fabsf(max) < INFINITY) {
    if (kNoise && row.temperature > 0.0f) {
      winner = warp_winner(sample(row, begin, vectors, max, shared));
    } else {
      winner = {max, __reduce_min_sync(kAllLanes, sum.first)};
    }
  }
  if (lane == 0) {
    shared.sum[warp] = sum;
    shared.best[warp] = winner.value;
    shared.id[warp] = winner.id;
  }
  __syncthreads();
  if (threadIdx.x != 0) return {};

  double rest = sum.rest;
  uint32_t largest = sum.largest;
#pragma unroll
  for (int w = 1; w < kWarps; ++w) {
    rest += shared.sum[w].rest;
    largest += shared.sum[w].largest;
    winner = better(winner, {shared.best[w], shared.id[w]});
  }
  rest += largest - 1;
  return {rest, winner.id == kNoId ? -1 : begin + winner.id, max, winner.value};
}

__device__ __forceinline__ Partial join(const Partial& a, const Partial& b) {
  const ExpSum sum = merge({a.max, a.rest}, {b.max, b.rest});
  const bool take_b = b.best_id >= 0 && (a.best_id < 0 || beats({b.best, b.best_id}, {a.best, a.best_id}));
  return {sum.rest, take_b ? b.best_id : a.best_id, sum.max, take_b ? b.best : a.best};
}

// A warp joins a row's partial results in an order that depends on their number alone; lane 0 gets the result.
__device__ __forceinline__ Partial join_chunks(const Partial* partial, int64_t chunks) {
  Partial own{0.0, -1, -INFINITY, -INFINITY};
  for (int64_t c = threadIdx.x % kWarpSize; c < chunks; c += kWarpSize) own = join(own, partial[c]);
#pragma unroll 1
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    Partial other;
    other.rest = __shfl_down_sync(kAllLanes, own.rest, lanes);
    other.best_id = __shfl_down_sync(kAllLanes, own.best_id, lanes);
    other.max = __shfl_down_sync(kAllLanes, own.max, lanes);
    other.best = __shfl_down_sync(kAllLanes, own.best, lanes);
    own = join(own, other);
  }
  return own;
}

template <typename T>
__device__ __forceinline__ Scored finish(const Row<T>& row, const Partial& whole) {
  // A row without a valid logit has no best token; token 0 stands in for it beside the NaN confidence.
  const int64_t drafted = whole.best_id < 0 ? 0 : whole.best_id;
  const int64_t token = row.candidate == kDraft ? drafted : row.candidate;
  const double confidence = probability(to_float(row.logits[token]), {whole.max, whole.rest});
  return {row.candidate == kDraft && confidence != confidence ? 0 : token, confidence};
}

// The block's chunk of the row. True in thread 0 of the block with which the row is complete; the row's result is then
// in *scored. atomicInc wraps, so a counter is 0 again after the last block.
template <typename T, bool kNoise>
__device__ __forceinline__ bool score_chunk(const Row<T>& row, int64_t chunk, int64_t chunks, Partial* partial,
                                            uint32_t* arrived, Scored* scored) {
  Partial whole = reduce_chunk<T, kNoise>(row, chunk * kChunk);
  if (threadIdx.x >= kWarpSize) return false;
  if (chunks > 1) {
    Partial* of_row = partial + row.index * chunks;
    const uint32_t others = static_cast<uint32_t>(chunks - 1);
    bool last = false;
    if (threadIdx.x == 0) {
      of_row[chunk] = whole;
      __threadfence();
      last = atomicInc(arrived + row.index, others) == others;
      __threadfence();
    }
    __syncwarp();
    if (!__shfl_sync(kAllLanes, last, 0)) return false;
    whole = join_chunks(of_row, chunks);
  }
  if (threadIdx.x != 0) return false;
  *scored = finish(row, whole);
  return true;
}

// Starts `blocks` blocks of the instantiation for the logits' dtype, with or without noise: Kernel<T, noise>::run.
template <template <typename, bool> class Kernel, typename Args>
cudaError_t launch_for(const Logits& logits, int dtype, int64_t blocks, cudaStream_t stream, const Args& args) {
  const bool noise = logits.seed != nullptr && (logits.temperature.rows != nullptr || logits.temperature.value != 0.0f);
  switch (dtype) {
    case kFloat32:
      return launch(noise ? Kernel<Float32, true>::get() : Kernel<Float32, false>::get(), blocks, stream, args);
    case kBFloat16:
      return launch(noise ? Kernel<BFloat16, true>::get() : Kernel<BFloat16, false>::get(), blocks, stream, args);
    case kFloat16:
      return launch(noise ? Kernel<Float16, true>::get() : Kernel<Float16, false>::get(), blocks, stream, args);
  }
  return cudaErrorInvalidValue;
}

}  // namespace cuda
}  // namespace wino
