"""out_norm_swiglu on a GPU: the products are the library's, one kernel between each two of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from wino_kernels.triton.launch import Options, launch
from wino_kernels.triton.matrix import narrowed
from wino_kernels.triton.norm import add_rms_norm

_BLOCK = 1024
_OPTIONS = Options(num_warps=4, num_stages=1, fp_fusion=False)


@torch.no_grad()
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
    added = F.linear(attended.transpose(1, 2).flatten(2), out_weight, out_bias)
    total, normed = add_rms_norm(x, added, norm_weight, eps)
    gate, up = F.linear(normed, gate_weight, gate_bias), F.linear(normed, up_weight, up_bias)
    if gate.numel():
        launch(
            gate_units,
            (triton.cdiv(gate.numel(), _BLOCK),),
            {"gate": gate, "up": up, "number": gate.numel()},
            {"BLOCK": _BLOCK},
            _OPTIONS,
        )
    return F.linear(gate, down_weight, down_bias).add_(total)


@triton.jit
def gate_units(gate, up, number, BLOCK: tl.constexpr):
    """silu(gate) * up, each rounded, in the place of ``gate``."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    dtype: tl.constexpr = gate.dtype.element_ty
    precise: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    g = tl.load(gate + at, mask=at < number, other=0.0).to(precise)
    silu = narrowed(g / (1.0 + tl.exp(-g)), dtype).to(precise)
    u = tl.load(up + at, mask=at < number, other=0.0).to(precise)
    tl.store(gate + at, narrowed(silu * u, dtype), mask=at < number)
