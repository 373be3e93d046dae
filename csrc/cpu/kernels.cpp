#include "cpu/kernels.h"

#include "cpu/operators.h"

WINO_CPU_BEGIN

extern const Kernels kKernels = {score_tokens,
                                 linear_score_tokens_begin,
                                 linear_score_tokens_tile,
                                 linear_score_tokens_end,
                                 trajectory_loss_begin,
                                 trajectory_loss_tile,
                                 trajectory_loss_end,
                                 trajectory_loss_gradient,
                                 accept_remask,
                                 accept,
                                 wino_step,
                                 exponentials,
                                 read_once};

WINO_CPU_END
