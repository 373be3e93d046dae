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
  double* confidence;   // [outer * inner]
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
  const double* confidence;
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

// A linear layer: weight (N, K), rows `stride` apart, and bias (N,) or nullptr, all of one dtype.
struct LinearArgs {
  const void* weight;
  const void* bias;
  int64_t N, K, stride;
};

// Scores of logits that are hidden rows [rows, head.K] times the LM head.
struct HeadArgs {
  int dtype, round_to;
  int64_t rows, row_stride;
  const void* hidden;
  LinearArgs head;
  const int64_t* candidate_ids;  // [rows]
  Temperature temperature;
  const int64_t* seed;  // [rows], read only where the temperature is above 0
  int64_t* token_ids;   // [rows]
  double* confidence;   // [rows]
  int threads;
};

// Norm, query, key and value projection and rotary embedding of x [B, L, D].
struct QkvArgs {
  int dtype;  // kFloat32 or kBFloat16
  int64_t B, L, D, head_dim;
  const void* x;
  int64_t x_batch_stride, x_row_stride;
  const int64_t* query_rows;  // [B, Q] indices into L of the rows that ask, unless all do
  int64_t Q;
  bool all_ask;
  const void* norm_weight;  // [D]
  float eps;
  LinearArgs linear[3];        // of query, key, value
  const float *cosine, *sine;  // [B, L, head_dim]
  int64_t table_batch_stride, table_row_stride;
  bool full_precision;
  void* out[3];  // [B, Q, heads, head_dim], [B, L, key heads, head_dim] twice, dense
  int threads;
  bool in_place = false;  // whether the weights are multiplied where they lie; an operator on its own decides
};

// Output projection, residual, norm, gated MLP and residual of x [B, L, D], whose attention is attended.
struct MlpArgs {
  int dtype;  // kFloat32 or kBFloat16
  int64_t B, L, D, head_dim;
  const void* x;
  int64_t x_batch_stride, x_row_stride;
  const int64_t *x_rows, *attended_rows;  // [B, L] where row l is among those of x, of attended; nullptr: at l
  const void* attended;                   // [B, heads, L, head_dim]
  int64_t attended_batch_stride, attended_head_stride, attended_row_stride;
  const void* norm_weight;  // [D]
  float eps;
  LinearArgs linear[4];  // output projection, gate, up, down
  void* out;             // [B, L, D], dense
  int threads;
  bool in_place = false;  // whether the weights are multiplied where they lie; an operator on its own decides
};

// shadow_attention; strides between sequences, heads, rows.
struct AttentionArgs {
  int dtype;
  int64_t B, heads, key_heads, Lq, Lk, head_dim, num_shadow;
  const void *query, *key, *value;  // [B, heads, Lq, head_dim], [B, key_heads, Lk, head_dim] twice
  int64_t query_strides[3], key_strides[3], value_strides[3];
  // [B, Lq] which of the Lk rows each query is, real ones first; nullptr: the last num_shadow are the shadow block.
  const int64_t* query_rows;
  const int64_t* block_start;  // [B]
  const bool* visible;         // [B, Lk], dense; nullptr: all keys may be attended
  float scale;
  void* out;  // [B, heads, Lq, head_dim]
  int64_t out_strides[3];
  int threads;
};

// One layer of a trunk: norms (D,), then query, key, value, output projection, gate, up, down.
struct LayerArgs {
  const void *norm, *inner_norm;
  LinearArgs linear[7];
};

// All layers over real tokens followed by the shadow block; of the last only some rows leave.
struct TrunkArgs {
  int dtype;  // kFloat32 or kBFloat16
  int64_t B, L, D, head_dim, num_layers;
  const LayerArgs* layers;
  const void* x;  // [B, L, D]
  int64_t x_batch_stride, x_row_stride;
  const float *cosine, *sine;  // [B, L, head_dim]
  int64_t table_batch_stride, table_row_stride;
  const int64_t* rows;  // [B, R] indices into L
  int64_t R, num_shadow;
  const int64_t* block_start;  // [B]
  const bool* visible;         // [B, L], dense; nullptr: all
  const void* norm;            // (D,): of the rows that leave; nullptr: none
  float eps;
  bool full_precision;
  void* out;           // [B, R, D], dense
  const void* packed;  // the weights as pack_trunk leaves them; nullptr: they are packed layer by layer
  int threads;
};

struct Kernels {
  void (*score_tokens)(const ScoreArgs&);
  void (*trajectory_loss_begin)(const LossArgs&);
  void (*trajectory_loss_tile)(const LossArgs&);
  void (*trajectory_loss_end)(const LossArgs&, double* log_sum_exp, double* entropy, double* cross_entropy,
                              float* top_p, int64_t* top);
  void (*trajectory_loss_gradient)(const LossArgs&);
  void (*accept_remask)(const AcceptRemaskArgs&);
  void (*accept)(const AcceptArgs&);
  void (*wino_step)(const AcceptRemaskArgs&, const ScoreArgs&, int64_t* scratch);  // 3 int64 per position
  // These work in `bytes` bytes of scratch, which the function beside them counts.
  int64_t (*linear_score_tokens_bytes)(const HeadArgs&);
  void (*linear_score_tokens)(const HeadArgs&, void* scratch);
  int64_t (*shadow_attention_bytes)(const AttentionArgs&);
  void (*shadow_attention)(const AttentionArgs&, void* scratch);
  int64_t (*norm_qkv_rope_bytes)(const QkvArgs&);
  void (*norm_qkv_rope)(const QkvArgs&, void* scratch);
  int64_t (*out_norm_swiglu_bytes)(const MlpArgs&);
  void (*out_norm_swiglu)(const MlpArgs&, void* scratch);
  int64_t (*shadow_trunk_bytes)(const TrunkArgs&);
  void (*shadow_trunk)(const TrunkArgs&, void* scratch);
  // Of a trunk's layers alone: D, num_layers, layers, dtype and threads count.
  int64_t (*packed_trunk_bytes)(const TrunkArgs&);
  void (*pack_trunk)(const TrunkArgs&, void* packed);
  // For the benchmarks: n exponentials of numbers in L1; one pass over n floats.
  void (*exponentials)(int64_t n, int threads);
  void (*read_once)(const float* data, int64_t n, int threads);
};

}  // namespace cpu
}  // namespace wino
