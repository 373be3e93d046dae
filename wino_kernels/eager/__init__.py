"""The executable definition of every operator: plain torch, any device, no speed intended.

Each function takes the arguments of its ``torch.library`` schema in order, already checked by ``wino_kernels.ops``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wino_kernels.eager.accept import accept_
from wino_kernels.eager.accept_remask import accept_remask_
from wino_kernels.eager.linear_score_tokens import linear_score_tokens
from wino_kernels.eager.norm_qkv_rope import norm_qkv_rope
from wino_kernels.eager.out_norm_swiglu import out_norm_swiglu
from wino_kernels.eager.score_tokens import score_tokens
from wino_kernels.eager.shadow_attention import shadow_attention
from wino_kernels.eager.shadow_trunk import shadow_trunk
from wino_kernels.eager.trajectory_loss import trajectory_loss, trajectory_loss_backward
from wino_kernels.eager.wino_step import wino_step_

DEVICES = None

KERNELS: dict[str, Callable[..., Any]] = {
    "score_tokens": score_tokens,
    "linear_score_tokens": linear_score_tokens,
    "accept_remask_": accept_remask_,
    "accept_": accept_,
    "wino_step_": wino_step_,
    "shadow_attention": shadow_attention,
    "norm_qkv_rope": norm_qkv_rope,
    "out_norm_swiglu": out_norm_swiglu,
    "shadow_trunk": shadow_trunk,
    "trajectory_loss": trajectory_loss,
    "trajectory_loss_backward": trajectory_loss_backward,
}
