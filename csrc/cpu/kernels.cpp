#include "cpu/kernels.h"

#include "cpu/operators.h"

WINO_CPU_BEGIN

extern const Kernels kKernels = {score_tokens,
                                 trajectory_loss_begin,
                                 trajectory_loss_tile,
                                 trajectory_loss_end,
                                 trajectory_loss_gradient,
                                 accept_remask,
                                 accept,
                                 wino_step,
                                 linear_score_tokens_bytes,
                                 linear_score_tokens,
                                 shadow_attention_bytes,
                                 shadow_attention,
                                 norm_qkv_rope_bytes,
                                 norm_qkv_rope,
                                 out_norm_swiglu_bytes,
                                 out_norm_swiglu,
                                 shadow_trunk_bytes,
                                 shadow_trunk,
                                 packed_trunk_bytes,
                                 pack_trunk,
                                 exponentials,
                                 read_once};

WINO_CPU_END
