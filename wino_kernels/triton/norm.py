"""The norm of a row, with or without something to add to it first: one launch for the layer operators' small steps."""

from __future__ import annotations

import ctypes

import torch
import triton
import triton.language as tl
from torch import Tensor

from wino_kernels.triton.launch import Options, launch
from wino_kernels.triton.matrix import narrowed

_MOST_COLUMNS = 4096
_TILE = 1024  # of narrow rows, several in a program
# No fusion: eager code rounds each product.
_OPTIONS = Options(num_warps=4, num_stages=1, fp_fusion=False)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """(B, L, D), as the definition's."""
    return _norm(x, None, weight, eps)[1]


def add_rms_norm(x: Tensor, added: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x + added`` (dense), and its norm."""
    return _norm(x, added, weight, eps)


def _norm(x: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    batch, length, width = x.shape
    normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = x if added is None else torch.empty_like(normed)
    if normed.numel():
        block = min(triton.next_power_of_2(width), _MOST_COLUMNS)
        at_once = max(1, _TILE // block)
        rounded = ctypes.c_float(eps).value  # as Triton passes numbers
        launch(
            norm_rows,
            (triton.cdiv(batch * length, at_once),),
            {
                "x": x,
                "batch_stride": x.stride(0),
                "row_stride": x.stride(1),
                "rows": batch * length,
                "length": length,
                "added": added,
                "weight": weight,
                "total": None if added is None else total,
                "normed": normed,
                "eps": rounded,
                "eps_rest": eps - rounded,
            },
            {"WIDTH": width, "BLOCK": block, "ROWS": at_once},
            _OPTIONS,
        )
    return total, normed


@triton.jit(do_not_specialize=["rows", "length"])
def norm_rows(
    x,
    batch_stride,
    row_stride,
    rows,
    length,
    added,
    weight,
    total,
    normed,
    eps,
    eps_rest,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """One program for ROWS rows. Sums in float32, and casts back before the weight is applied, as LLaDA does."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    present = row < rows
    x += row // length * batch_stride + row % length * row_stride  # [ROWS, 1]
    normed += row * WIDTH
    if added is not None:
        added += row * WIDTH
        total += row * WIDTH
    dtype: tl.constexpr = x.dtype.element_ty
    precise: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    squares = tl.zeros((ROWS, BLOCK), precise)
    for start in tl.static_range(0, WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        inside = present & (column < WIDTH)
        wide = _sum(x, added, column, inside, dtype, precise)
        if added is not None:
            tl.store(total + column, narrowed(wide, dtype), mask=inside)
        squares += wide * wide
    least = tl.full((), eps, precise) + tl.full((), eps_rest, precise)
    scale = 1.0 / tl.sqrt(tl.sum(squares, 1) / WIDTH + least)[:, None]
    for start in tl.static_range(0, WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        inside = present & (column < WIDTH)
        part = narrowed(_sum(x, added, column, inside, dtype, precise) * scale, dtype).to(precise)
        factor = tl.load(weight + column, mask=column < WIDTH, other=0.0).to(precise)
        tl.store(normed + column, narrowed(part * factor, dtype), mask=inside)


@triton.jit
def _sum(x, added, column, inside, dtype: tl.constexpr, precise: tl.constexpr):
    """A part of the rows, with what is added to it; rounded to ``dtype``, but not stored in it."""
    value = tl.load(x + column, mask=inside, other=0.0).to(precise)
    if added is not None:
        value += tl.load(added + column, mask=inside, other=0.0).to(precise)
        value = narrowed(value, dtype).to(precise)
    return value
