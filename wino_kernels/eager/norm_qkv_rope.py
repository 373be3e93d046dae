"""norm_qkv_rope, the definition: separate operations, each rounded to the dtype of ``x``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wino_kernels.indices import check_indices


def norm_qkv_rope(
    x: Tensor,
    norm_weight: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    v_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    q_bias: Tensor | None = None,
    k_bias: Tensor | None = None,
    v_bias: Tensor | None = None,
    query_rows: Tensor | None = None,
    full_precision: bool = True,
) -> tuple[Tensor, ...]:
    def heads(projected: Tensor) -> Tensor:  # [B, L, H * d] -> [B, H, L, d]
        return projected.unflatten(-1, (-1, cos.shape[-1])).transpose(1, 2)

    normed = rms_norm(x, norm_weight, eps)
    key = rotate(heads(F.linear(normed, k_weight, k_bias)), cos, sin, full_precision)
    value = heads(F.linear(normed, v_weight, v_bias))
    if query_rows is not None:
        check_indices("norm_qkv_rope", "query_rows", query_rows, x.shape[1])
        normed = rows_of(normed, query_rows)
        cos, sin = (rows_of(table[:, 0].expand(len(x), -1, -1), query_rows)[:, None] for table in (cos, sin))
    query = rotate(heads(F.linear(normed, q_weight, q_bias)), cos, sin, full_precision)
    return tuple(each.transpose(1, 2).contiguous().transpose(1, 2) for each in (query, key, value))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Computed in float32 and cast back before the weight is applied, as LLaDA does."""
    wide = x.to(_wide(x))
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, full_precision: bool) -> Tensor:
    """Rotary embedding of ``x`` (B, H, L, d)."""
    wide = x.to(_wide(x)) if full_precision else x
    first, second = wide.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (wide * cos.to(wide.dtype) + turned * sin.to(wide.dtype)).to(x.dtype)


def rows_of(x: Tensor, rows: Tensor) -> Tensor:
    """Rows ``rows`` (B, R) of ``x`` (B, L, D), as (B, R, D)."""
    return x.gather(1, rows[:, :, None].expand(-1, -1, x.shape[-1]))


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
