// The operators of one instruction set.
#pragma once

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/scalar.h"

WINO_CPU_BEGIN

void score_tokens(const ScoreArgs& args);
int64_t linear_score_tokens_bytes(const HeadArgs& args);
void linear_score_tokens(const HeadArgs& args, void* scratch);
void trajectory_loss_begin(const LossArgs& args);
void trajectory_loss_tile(const LossArgs& args);
void trajectory_loss_end(const LossArgs& args, double* log_sum_exp, double* entropy, double* cross_entropy,
                         float* top_p, int64_t* top);
void trajectory_loss_gradient(const LossArgs& args);
void accept_remask(const AcceptRemaskArgs& args);
void accept(const AcceptArgs& args);
// scratch: 3 int64 per position.
void wino_step(const AcceptRemaskArgs& args, const ScoreArgs& score, int64_t* scratch);
int64_t shadow_attention_bytes(const AttentionArgs& args);
void shadow_attention(const AttentionArgs& args, void* scratch);
int64_t norm_qkv_rope_bytes(const QkvArgs& args);
void norm_qkv_rope(const QkvArgs& args, void* scratch);
int64_t out_norm_swiglu_bytes(const MlpArgs& args);
void out_norm_swiglu(const MlpArgs& args, void* scratch);
int64_t shadow_trunk_bytes(const TrunkArgs& args);
void shadow_trunk(const TrunkArgs& args, void* scratch);
int64_t packed_trunk_bytes(const TrunkArgs& args);
void pack_trunk(const TrunkArgs& args, void* packed);
void exponentials(int64_t n, int threads);
void read_once(const float* data, int64_t n, int threads);

// f of a number of that dtype: its type tells a template which.
template <typename Function>
WINO_HD auto with_dtype(int dtype, const Function& f) -> decltype(f(0.0f)) {
  switch (dtype) {
    case kBFloat16:
      return f(BFloat16{});
    case kFloat16:
      return f(Float16{});
    default:
      return f(0.0f);
  }
}

extern const Kernels kKernels;

WINO_CPU_END
