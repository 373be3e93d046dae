// The operators on a GPU: what a kernel is given, and the functions that start it. Addresses, sizes, strides in
// elements; nothing is checked. Every function only enqueues: it neither allocates nor waits, so a CUDA graph can
// capture it.
#pragma once

#include <cuda_runtime.h>

#include "wino/accept.h"
#include "wino/config.h"

namespace wino {
namespace cuda {

enum Dtype : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// A number per row: rows[row], or `value` for every row when `rows` is null (a host scalar, so no copy to the device).
template <typename T>
struct PerRow {
  const T* rows;
  T value;

  WINO_MEMBER T at(int64_t row) const { return rows == nullptr ? value : rows[row]; }
};

// What one chunk of a row's vocabulary comes to.
struct Partial {
  double rest;      // as in ExpSum
  int64_t best_id;  // -1: no finite logit
  float max, best;
};

// Row (o, i) of `outer` x `inner` rows begins at o * outer_stride + i * inner_stride.
struct Logits {
  const void* data;  // [outer, inner, V]
  int64_t outer, inner, V, outer_stride, inner_stride;
  PerRow<float> temperature;
  const int64_t* seed;  // [outer * inner]; null: no noise
};

// Kept between calls. `counters` are zero before and after every launch.
struct Workspace {
  float* scratch;
  uint32_t* counters;
};

struct ScoreArgs {
  Logits logits;
  const int64_t* candidate_ids;  // [outer * inner]
  int64_t* token_ids;            // [outer * inner]
  double* confidence;            // [outer * inner]
  Partial* partial;              // [outer * inner, chunks]
  uint32_t* arrived;             // [outer * inner]: chunks of the row that are done
};

// The blocks of B sequences; every stride is that between sequences.
struct BlockArgs {
  int64_t B, K;
  int64_t *tokens, tokens_stride;
  uint8_t* masked;
  int64_t masked_stride;
  const int64_t* token_ids;               // [B, K]
  const double* confidence;               // [B, K]
  int32_t *accepted, *remasked, *status;  // [B]; remasked is not used by accept
};

struct AcceptRemaskArgs {
  BlockArgs block;
  uint8_t* revocable;
  int64_t revocable_stride;
  int32_t* last;  // [B]
  int64_t mask_id;
  PerRow<float> threshold, threshold_back;
  AcceptLimit limit;
  bool verify_last;
};

struct AcceptArgs {
  BlockArgs block;
  bool by_threshold;  // else by count
  PerRow<float> threshold;
  PerRow<int64_t> count;
  const int32_t* count32;  // the counts, when they are int32
};

struct StepArgs {
  ScoreArgs score;  // candidate_ids is not used: the block's state says what each row is for
  AcceptRemaskArgs rule;
  uint32_t* finished;  // [B]: rows of the sequence that are done
};

cudaError_t score_tokens(ScoreArgs args, int dtype, const Workspace& workspace, cudaStream_t stream);
cudaError_t accept_remask(const AcceptRemaskArgs& args, cudaStream_t stream);
cudaError_t accept(const AcceptArgs& args, cudaStream_t stream);
cudaError_t wino_step(const Logits& logits, int dtype, const AcceptRemaskArgs& rule, const Workspace& workspace,
                      cudaStream_t stream);

// Elements that the workspace of `rows` rows of V logits, in `sequences` sequences (0: score_tokens), must have.
int64_t scratch_elements(int64_t rows, int64_t V, int64_t sequences);
int64_t counter_elements(int64_t rows, int64_t sequences);

}  // namespace cuda
}  // namespace wino
