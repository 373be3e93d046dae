"""shadow_attention on the CPU (docs/spec.md sections 2, 6); float64, which is for comparisons, by the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from wino_kernels import _C, eager
from wino_kernels.cpu.addresses import DTYPES, address


def shadow_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_shadow: int,
    block_start: Tensor,
    key_padding_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    if query.dtype == torch.float64:
        return eager.shadow_attention(query, key, value, num_shadow, block_start, key_padding_mask, scale)
    batch, heads, queries, width = query.shape
    out = query.new_empty(batch, heads, queries, width)
    if not query.numel():
        return out
    _C.shadow_attention(
        DTYPES[query.dtype],
        batch,
        heads,
        key.shape[1],
        queries,
        key.shape[2],
        width,
        num_shadow,
        query.data_ptr(),
        query.stride()[:3],
        key.data_ptr(),
        key.stride()[:3],
        value.data_ptr(),
        value.stride()[:3],
        block_start.data_ptr(),
        address(key_padding_mask),
        width**-0.5 if scale is None else scale,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out
