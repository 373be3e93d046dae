"""out_norm_swiglu on the CPU: one native call; or separate ones of the library, where the weights are large."""

from __future__ import annotations

import torch
from torch import Tensor

from wino_kernels import _C, eager
from wino_kernels.cpu.addresses import DTYPES
from wino_kernels.cpu.linear import is_fused, linear


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
    if not is_fused(x, out_weight, gate_weight, up_weight, down_weight):
        weights = out_weight, norm_weight, gate_weight, up_weight, down_weight
        return eager.out_norm_swiglu(x, attended, *weights, eps, out_bias, gate_bias, up_bias, down_bias)
    out = x.new_empty(x.shape)
    batch, length, width = x.shape
    _C.out_norm_swiglu(
        DTYPES[x.dtype],
        batch,
        length,
        width,
        attended.shape[3],
        x.data_ptr(),
        x.stride(0),
        x.stride(1),
        attended.data_ptr(),
        *attended.stride()[:3],
        norm_weight.data_ptr(),
        eps,
        linear(out_weight, out_bias),
        linear(gate_weight, gate_bias),
        linear(up_weight, up_bias),
        linear(down_weight, down_bias),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out
