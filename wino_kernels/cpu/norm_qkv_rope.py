"""norm_qkv_rope on the CPU: one native call; or separate ones of the library, where the weights are large."""

from __future__ import annotations

import torch
from torch import Tensor

from wino_kernels import _C, eager
from wino_kernels.cpu.addresses import DTYPES, address
from wino_kernels.cpu.linear import is_fused, linear
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
    if not is_fused(x, q_weight, k_weight, v_weight):
        return eager.norm_qkv_rope(
            x,
            norm_weight,
            q_weight,
            k_weight,
            v_weight,
            cos,
            sin,
            eps,
            q_bias,
            k_bias,
            v_bias,
            query_rows,
            full_precision,
        )
    batch, length, width = x.shape
    head_dim = cos.shape[-1]
    queries = length if query_rows is None else query_rows.shape[1]
    if query_rows is not None:
        query_rows = query_rows.contiguous()
        check_indices("norm_qkv_rope", "query_rows", query_rows, length)

    def heads(rows: int, weight: Tensor) -> Tensor:
        return x.new_empty(batch, rows, weight.shape[0] // head_dim, head_dim)

    query, key, value = heads(queries, q_weight), heads(length, k_weight), heads(length, v_weight)
    _C.norm_qkv_rope(
        DTYPES[x.dtype],
        batch,
        length,
        width,
        head_dim,
        x.data_ptr(),
        x.stride(0),
        x.stride(1),
        address(query_rows),
        queries,
        query_rows is None,
        norm_weight.data_ptr(),
        eps,
        linear(q_weight, q_bias),
        linear(k_weight, k_bias),
        linear(v_weight, v_bias),
        cos.data_ptr(),
        sin.data_ptr(),
        cos.stride(0) if cos.shape[0] > 1 else 0,
        cos.stride(2),
        full_precision,
        query.data_ptr(),
        key.data_ptr(),
        value.data_ptr(),
        torch.get_num_threads(),
    )
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
