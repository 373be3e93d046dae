"""out_norm_swiglu, the definition: separate operations, each rounded to the dtype of ``x``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from wino_kernels.eager.norm_qkv_rope import rms_norm


def out_norm_swiglu(
    x: Tensor,
    attended: Tensor,
    out_weight: Tensor,
    norm_weight: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    eps: float,
    out_bias: Tensor | None = None,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
) -> Tensor:
    x = x + F.linear(attended.transpose(1, 2).flatten(2), out_weight, out_bias)
    normed = rms_norm(x, norm_weight, eps)
    inner = F.silu(F.linear(normed, gate_weight, gate_bias)) * F.linear(normed, up_weight, up_bias)
    return (x + F.linear(inner, down_weight, down_bias)).contiguous()
