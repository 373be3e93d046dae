// What the bindings call: one table of operators per instruction set. Addresses, sizes, strides in elements; no checks.
#pragma once

#include "wino/accept.h"
#include "wino/config.h"

namespace wino {
namespace cpu {

enum Dtype : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// The rows' temperatures: stride 1, or 0 when they share one; data == nullptr: 0 everywhere.
struct Temperature {
  const float* data;
  int64_t stride;
};

// Row (o, i) of `outer` x `inner` rows begins at o * outer_stride + i * inner_stride.
struct ScoreArgs {
  const void* logits;  // [outer, inner, V]
  int dtype;
  int64_t outer, inner, V, outer_stride, inner_stride;
  const int64_t* candidate_ids;  // [outer * inner]
  Temperature temperature;
  const int64_t* seed;  // [outer * inner], read only where the temperature is above 0
  int64_t* token_ids;   // [outer * inner]
  float* confidence;    // [outer * inner]
  int threads;
};

// The blocks of B sequences; every stride is that between sequences.
struct BlockArgs {
  int64_t B, K;
  int64_t *tokens, tokens_stride;
  bool* masked;
  int64_t masked_stride;
  const int64_t* token_ids;
  int64_t token_ids_stride;
  const float* confidence;
  int64_t confidence_stride;
  int32_t *accepted, *remasked, *status;  // [B]; remasked is not used by accept
  int threads;
};

struct AcceptRemaskArgs {
  BlockArgs block;
  bool* revocable;
  int64_t revocable_stride;
  int32_t* last;
  int64_t last_stride, mask_id;
  const float* threshold;
  int64_t threshold_stride;
  const float* threshold_back;
  int64_t threshold_back_stride;
  AcceptLimit limit;
  bool verify_last;
};

struct AcceptArgs {
  BlockArgs block;
  const float* threshold;  // nullptr: count decides
  int64_t threshold_stride;
  const void* count;
  int64_t count_stride;
  bool count_is_int64;
};

// Partial result of a row whose logits arrive tile by tile.
struct TileRow {
  double sum;
  int64_t best_id;
  float max, best, given, best_logit;
};

struct TileArgs {
  const void* logits;  // [rows, width]: vocabulary indices first_id ... first_id + width
  int dtype;
  int64_t rows, width, row_stride, first_id;
  const int64_t* candidate_ids;
  Temperature temperature;
  const int64_t* seed;
  TileRow* state;  // [rows]
  int threads;
};

// Running sums of a row of trajectory_loss: sum of e = exp(x - reference) and of (x - reference) e.
struct LossRow {
  double sum, moment;
  int64_t best_id;
  float reference, best, label_logit;
};

// What the gradient of one row's logits follows from.
struct LossGradient {
  float log_sum_exp, entropy, of_cross_entropy, of_entropy;
};

struct LossArgs {
  const void* logits;  // [rows, width]: vocabulary indices first_id ... first_id + width; written by the gradient
  int dtype;
  int64_t rows, width, row_stride, first_id;
  const int64_t* labels;         // [rows]
  LossRow* state;                // [rows], not used by the gradient
  const LossGradient* gradient;  // [rows], used by the gradient alone
  int threads;
};

struct Kernels {
  void (*score_tokens)(const ScoreArgs&);
  void (*linear_score_tokens_begin)(const TileArgs&);
  void (*linear_score_tokens_tile)(const TileArgs&);
  void (*linear_score_tokens_end)(const TileArgs&, int64_t V, int64_t* token_ids, float* confidence);
  void (*trajectory_loss_begin)(const LossArgs&);
  void (*trajectory_loss_tile)(const LossArgs&);
  void (*trajectory_loss_end)(const LossArgs&, double* log_sum_exp, double* entropy, double* cross_entropy,
                              float* top_p, int64_t* top);
  void (*trajectory_loss_gradient)(const LossArgs&);
  void (*accept_remask)(const AcceptRemaskArgs&);
  void (*accept)(const AcceptArgs&);
  void (*wino_step)(const AcceptRemaskArgs&, const ScoreArgs&, int64_t* scratch);  // 3 int64 per position
  // For the benchmarks: n exponentials of numbers in L1; one pass over n floats.
  void (*exponentials)(int64_t n, int threads);
  void (*read_once)(const float* data, int64_t n, int threads);
};

}  // namespace cpu
}  // namespace wino
