"""norm_qkv_rope on a GPU: the products are the library's; one kernel norms before them, one rotates behind them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from wino_kernels.eager.norm_qkv_rope import rows_of
from wino_kernels.triton.launch import Options, launch
from wino_kernels.triton.matrix import narrowed
from wino_kernels.triton.norm import rms_norm

_TILE = 2048  # numbers of the half heads that a program turns
_OPTIONS = Options(num_warps=4, num_stages=1, fp_fusion=False)


@torch.no_grad()
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
    normed = rms_norm(x, norm_weight, eps)
    asking = normed if query_rows is None else rows_of(normed, query_rows)
    query = F.linear(asking, q_weight, q_bias)
    key, value = F.linear(normed, k_weight, k_bias), F.linear(normed, v_weight, v_bias)
    _rotate(query, key, cos, sin, query_rows, full_precision)
    return tuple(each.unflatten(-1, (-1, cos.shape[-1])).transpose(1, 2) for each in (query, key, value))


def _rotate(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, query_rows: Tensor | None, full_precision: bool
) -> None:
    """In place: query (B, Q, Hq d) and key (B, L, Hkv d), dense."""
    half = cos.shape[-1] // 2
    block = triton.next_power_of_2(half)
    rows = max(1, _TILE // block)
    programs = [triton.cdiv(heads.numel(), 2 * half * rows) for heads in (query, key)]
    if not sum(programs):
        return
    launch(
        rotate_heads,
        (sum(programs),),
        {
            "query": query,
            "key": key,
            "cos": cos,
            "sin": sin,
            "table_batch_stride": cos.stride(0) if cos.shape[0] > 1 else 0,
            "table_stride": cos.stride(2),
            "query_rows": None if query_rows is None else query_rows.contiguous(),
            "query_programs": programs[0],
            "query_tokens": query.shape[0] * query.shape[1],
            "query_length": query.shape[1],
            "key_tokens": key.shape[0] * key.shape[1],
            "key_length": key.shape[1],
        },
        {
            "QUERY_HEADS": query.shape[2] // (2 * half),
            "KEY_HEADS": key.shape[2] // (2 * half),
            "HALF": half,
            "BLOCK": block,
            "ROWS": rows,
            "FULL": full_precision,
        },
        _OPTIONS,
    )


_SIZES = ["query_programs", "query_tokens", "query_length", "key_tokens", "key_length"]


@triton.jit(do_not_specialize=_SIZES)
def rotate_heads(
    query,
    key,
    cos,
    sin,
    table_batch_stride,
    table_stride,
    query_rows,
    query_programs,
    query_tokens,
    query_length,
    key_tokens,
    key_length,
    QUERY_HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    FULL: tl.constexpr,
):
    """One program for ROWS heads, those of the queries first."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    if tl.program_id(0) < query_programs:
        token = row // QUERY_HEADS
        place = token % query_length
        if query_rows is not None:
            place = tl.load(query_rows + token, mask=token < query_tokens, other=0)
        table = token // query_length * table_batch_stride + place * table_stride
        _turn(query, row, token < query_tokens, cos, sin, table, HALF, BLOCK, FULL)
    else:
        row -= query_programs.to(tl.int64) * ROWS
        token = row // KEY_HEADS
        table = token // key_length * table_batch_stride + token % key_length * table_stride
        _turn(key, row, token < key_tokens, cos, sin, table, HALF, BLOCK, FULL)


@triton.jit
def _turn(heads, row, present, cos, sin, table, HALF: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr):
    """Heads ``row`` [ROWS], by the angles at ``table``, in place."""
    dtype: tl.constexpr = heads.dtype.element_ty
    precise: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    step: tl.constexpr = precise if FULL else dtype  # what each operation is rounded to
    column = tl.arange(0, BLOCK)[None, :]
    inside = present[:, None] & (column < HALF)
    cos += table[:, None] + column
    sin += table[:, None] + column
    at = heads + row[:, None] * (2 * HALF) + column
    first = tl.load(at, mask=inside, other=0.0).to(precise)
    second = tl.load(at + HALF, mask=inside, other=0.0).to(precise)
    left = _product(first, cos, inside, step) - _product(second, sin, inside, step)
    right = _product(second, cos + HALF, inside, step) + _product(first, sin + HALF, inside, step)
    tl.store(at, narrowed(left, dtype), mask=inside)
    tl.store(at + HALF, narrowed(right, dtype), mask=inside)


@triton.jit
def _product(x, factor, inside, step: tl.constexpr):
    """x times what stands at ``factor``; both, and the product, rounded to ``step``."""
    wide: tl.constexpr = x.dtype
    y = tl.load(factor, mask=inside, other=0.0)
    if step != tl.float32 and step != tl.float64:
        y = narrowed(y, step)
    product = x * y.to(wide)
    if step == wide:
        return product
    else:
        return narrowed(product, step).to(wide)
