"""shadow_trunk on a GPU: the kernels of its layers, started one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wino_kernels.eager.shadow_trunk import layers
from wino_kernels.triton.norm import rms_norm
from wino_kernels.triton.norm_qkv_rope import norm_qkv_rope
from wino_kernels.triton.out_norm_swiglu import out_norm_swiglu
from wino_kernels.triton.shadow_attention import shadow_attention


@torch.no_grad()
def shadow_trunk(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    cos: Tensor,
    sin: Tensor,
    rows: Tensor,
    num_shadow: int,
    block_start: Tensor,
    eps: float,
    key_padding_mask: Tensor | None = None,
    norm_weight: Tensor | None = None,
    full_precision: bool = True,
) -> Tensor:
    operators = norm_qkv_rope, shadow_attention, out_norm_swiglu
    given = x, weights, biases, cos, sin, rows, num_shadow, block_start, eps, key_padding_mask, full_precision
    x = layers(*given, *operators)
    return x if norm_weight is None else rms_norm(x, norm_weight, eps)
