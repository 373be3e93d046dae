"""linear_score_tokens as Triton kernels (docs/spec.md section 6): a tile of the LM head's product, folded in registers.

A program multiplies ``BLOCK_V`` rows of the weight with ``BLOCK_N`` rows of hidden and folds the tile into one record
per row: logits never reach memory. A second launch joins the records. With at most ``BLOCK_N`` rows the weight is read
once; with more, programs that share a weight tile are neighbours, so that all but one of them find it in the L2.
With more than ``MOST_FUSED`` rows the product is bound by the tensor cores, which Torch's library uses better: it
multiplies, a slice of the vocabulary at a time, and the slice is reduced while it is in the L2.

How many rows are skipped only the device knows, so they are not gathered: a skipped row among others costs what they
cost. A tile without a row that asks for logits (whole sequences that are done) ends before it reads the weight; the
library knows nothing of that.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wino_kernels.triton.configs import config
from wino_kernels.triton.launch import Options, launch, rows_of, scalar_or_rows
from wino_kernels.triton.matrix import dot, rounded
from wino_kernels.triton.philox import gumbel, random_words
from wino_kernels.triton.score_tokens import (
    DRAFT,
    SKIP,
    asks_for_logits,
    row_start,
    score_product,
    temperature_of,
)
from wino_kernels.workspace import scratch

_INF = tl.constexpr(float("inf"))
_COLUMNS = tl.constexpr(16)  # folded at once

_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_ROWS = (16, 32, 64, 128)
#: On an H200 the tile took 0.97 times as long as the library's product with a compiled pass over all logits with 128
#: rows, and 1.27 times with 1024. In between nothing was measured; up to some 200 rows the weight is what takes time.
MOST_FUSED = 256
_RECORD_WORDS = 5
_CHUNKS_JOINED = 1024  # at a time: a row has about a thousand records, too many to add one after the other


def linear_score_tokens(
    hidden: Tensor,
    weight: Tensor,
    candidate_ids: Tensor,
    bias: Tensor | None = None,
    temperature: Tensor | None = None,
    seed: Tensor | None = None,
    round_to: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    rows = candidate_ids.numel()
    if rows > MOST_FUSED and round_to in (None, hidden.dtype):
        return score_product(hidden, weight, candidate_ids, bias, temperature, seed)
    token_ids = torch.empty_like(candidate_ids)
    confidence = torch.empty_like(candidate_ids, dtype=torch.float64)
    if not rows:
        return token_ids, confidence

    entry = "linear_score_tokens", shape_class(hidden.dtype, rows)
    tile = dict(config(*entry, hidden.device))
    options = Options(tile.pop("num_warps"), tile.pop("num_stages"), fp_fusion=False, entry=entry)
    vocabulary, width = weight.shape
    chunks = triton.cdiv(vocabulary, tile["BLOCK_V"])
    hidden, inner, outer_stride, inner_stride = rows_of(hidden)
    heat, per_row = scalar_or_rows(temperature)
    shared: dict[str, Tensor | int | float | None] = {
        "candidate_ids": candidate_ids,
        "temperature": heat,
        "records": scratch(hidden, rows * chunks * _RECORD_WORDS),
        "rows": rows,
    }
    product: dict[str, Tensor | int | float | None] = {
        "hidden": hidden,
        "weight": weight,
        "bias": bias,
        "seed": seed,
        "inner": inner,
        "outer_stride": outer_stride,
        "inner_stride": inner_stride,
        "weight_stride": weight.stride(0),
    }
    constants = {"V": vocabulary, "PER_ROW": per_row, "NOISE": seed is not None}
    launch(
        score_tile,
        (chunks * triton.cdiv(rows, tile["BLOCK_N"]),),
        shared | product,
        constants | tile | {"H": width, "ROUND_TO": _DTYPES[round_to or hidden.dtype]},
        options,
    )
    launch(
        join_row,
        (rows,),
        shared | {"token_ids": token_ids, "confidence": confidence},
        constants | {"BLOCK_V": tile["BLOCK_V"], "GROUP": min(triton.next_power_of_2(chunks), _CHUNKS_JOINED)},
        Options(num_warps=4, num_stages=1, fp_fusion=False),
    )
    return token_ids, confidence


def shape_class(dtype: torch.dtype, rows: int) -> str:
    """The shapes that share a configuration."""
    return f"{dtype.itemsize} bytes, " + next((f"N <= {most}" for most in _ROWS if rows <= most), f"N > {_ROWS[-1]}")


@triton.jit(do_not_specialize=["rows", "inner"])
def score_tile(
    candidate_ids,
    temperature,
    records,
    rows,
    hidden,
    weight,
    bias,
    seed,
    inner,
    outer_stride,
    inner_stride,
    weight_stride,
    V: tl.constexpr,
    H: tl.constexpr,
    PER_ROW: tl.constexpr,
    NOISE: tl.constexpr,
    ROUND_TO: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """One program per (tile of the vocabulary, tile of rows); the tiles of rows are neighbours."""
    row_tiles = tl.cdiv(rows, BLOCK_N)
    chunk = tl.program_id(0) // row_tiles
    first_row = tl.program_id(0) % row_tiles * BLOCK_N
    row = first_row + tl.arange(0, BLOCK_N)
    candidate = tl.load(candidate_ids + row, mask=row < rows, other=SKIP)  # [N]
    heat = temperature_of(row, temperature, row < rows, PER_ROW)
    if tl.max(asks_for_logits(candidate, heat, V).to(tl.int32), 0) == 0:
        return

    # Behind the end the last row is repeated, so that only a width that BLOCK_H does not divide needs masks.
    v = tl.minimum(chunk * BLOCK_V + tl.arange(0, BLOCK_V), V - 1)
    start = row_start(tl.minimum(row, rows - 1), inner, outer_stride, inner_stride)
    h = tl.arange(0, BLOCK_H)
    weight_tile = weight + v.to(tl.int64)[:, None] * weight_stride + h[None, :]  # [V, H]
    hidden_tile = hidden + start[:, None] + h[None, :]  # [N, H]
    logits = tl.zeros((BLOCK_V, BLOCK_N), tl.float32)
    for first in range(0, H, BLOCK_H):
        if H % BLOCK_H == 0:
            w = tl.load(weight_tile)
            x = tl.load(hidden_tile)
        else:
            w = tl.load(weight_tile, mask=h[None, :] < H - first, other=0.0)
            x = tl.load(hidden_tile, mask=h[None, :] < H - first, other=0.0)
        logits = dot(w, tl.trans(x), logits)
        weight_tile += BLOCK_H
        hidden_tile += BLOCK_H
    if bias is not None:
        logits += tl.load(bias + v).to(tl.float32)[:, None]
    # A few columns after the other: noise for the whole tile at once would spill.
    for part in tl.static_range(BLOCK_N // _COLUMNS):
        some = rounded(columns(logits, part, _COLUMNS), ROUND_TO)
        fold(
            some, chunk, first_row + part * _COLUMNS, candidate_ids, temperature, seed, records, rows, V, PER_ROW, NOISE
        )


@triton.jit
def columns(tile, PART: tl.constexpr, WIDTH: tl.constexpr):
    """Columns ``PART * WIDTH ... (PART + 1) * WIDTH - 1`` of up to ``8 * WIDTH``."""
    # Written out: Triton 3.4 compiles no recursion.
    if tile.shape[1] > WIDTH:
        tile = half(tile, PART * WIDTH % tile.shape[1] * 2 // tile.shape[1])
    if tile.shape[1] > WIDTH:
        tile = half(tile, PART * WIDTH % tile.shape[1] * 2 // tile.shape[1])
    if tile.shape[1] > WIDTH:
        tile = half(tile, PART * WIDTH % tile.shape[1] * 2 // tile.shape[1])
    tl.static_assert(tile.shape[1] == WIDTH)
    return tile


@triton.jit
def half(tile, RIGHT: tl.constexpr):
    """The left or the right half of the columns."""
    HALF: tl.constexpr = tile.shape[1] // 2
    left, right = tl.split(tl.permute(tl.reshape(tile, (tile.shape[0], 2, HALF)), (0, 2, 1)))
    if RIGHT:
        return right
    else:
        return left


@triton.jit
def fold(
    logits,
    chunk,
    first_row,
    candidate_ids,
    temperature,
    seed,
    records,
    rows,
    V: tl.constexpr,
    PER_ROW: tl.constexpr,
    NOISE: tl.constexpr,
):
    """Write the records of the rows from ``first_row`` on, whose logits of vocabulary tile ``chunk`` are ``[V, N]``.

    They lie as those of ``score_tokens`` do, in planes of ``[chunks, rows]`` words: maximum, rest,
    best id, logit of a draft's best token (with noise) or of the given one (if it lies here), best perturbed logit.
    """
    BLOCK_V: tl.constexpr = logits.shape[0]
    row = first_row + tl.arange(0, logits.shape[1])
    real = row < rows
    first = chunk * BLOCK_V
    v = tl.arange(0, BLOCK_V)[:, None]  # [V, 1]
    logits = tl.where(logits != logits, _INF, logits)  # a maximum of +inf stands for NaN, too
    logits = tl.where(v < V - first, logits, -_INF)

    record = records + (chunk.to(tl.int64) * rows + row)
    plane = rows.to(tl.int64) * tl.cdiv(V, BLOCK_V)
    maximum, best = tl.max(logits, 0, return_indices=True)  # [N], the first of equal ones
    shift = tl.where(maximum > -_INF, maximum, 0.0)  # -inf - -inf would be NaN
    tl.store(record, maximum, mask=real)
    others = tl.where(v == best[None, :], 0.0, tl.exp(logits - shift[None, :]))
    tl.store(record + plane, tl.sum(others, 0), mask=real)

    candidate = tl.load(candidate_ids + row, mask=real, other=SKIP)
    told = tl.where((candidate >= first) & (candidate < V), candidate - first, -1)  # whose logit is written down
    if NOISE:
        heat = temperature_of(row, temperature, real, PER_ROW)
        heat = tl.where(tl.abs(heat) < _INF, heat, 0.0)  # what is refused later must not make NaN here
        key = tl.load(seed + row, mask=real, other=0)[:, None]
        noise = tl.trans(gumbel(random_words(key, first, logits.shape[1], BLOCK_V)))  # [V, N]
        perturbed = tl.where(logits > -_INF, logits + heat[None, :] * noise, -_INF)  # banned, whatever the noise
        value, best = tl.max(perturbed, 0, return_indices=True)
        tl.store(record + 4 * plane, value, mask=real)
        told = tl.where(candidate == DRAFT, best, told)
    tl.store(record + 2 * plane, (first + best).to(tl.float32, bitcast=True), mask=real)
    told = tl.where(told < BLOCK_V, told, -1).to(tl.int32)
    if tl.max(told, 0) >= 0:
        tl.store(record[None, :] + 3 * plane + tl.zeros_like(v), logits, mask=v == told[None, :])


@triton.jit(do_not_specialize=["rows"])
def join_row(
    candidate_ids,
    token_ids,
    confidence,
    temperature,
    records,
    rows,
    V: tl.constexpr,
    PER_ROW: tl.constexpr,
    NOISE: tl.constexpr,
    BLOCK_V: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One program per row: its records lane by lane, then across lanes, in an order that hangs on GROUP alone."""
    CHUNKS: tl.constexpr = tl.cdiv(V, BLOCK_V)
    VALUE: tl.constexpr = 4 if NOISE else 0
    row = tl.program_id(0)
    candidate = tl.load(candidate_ids + row)
    draft = candidate == DRAFT
    token = tl.where(draft, 0, candidate)
    probability = tl.where(candidate == SKIP, 0.0, float("nan")).to(tl.float64)
    if asks_for_logits(candidate, temperature_of(row, temperature, True, PER_ROW), V):
        stride = rows.to(tl.int64)
        plane = stride * CHUNKS
        lane = tl.arange(0, GROUP)
        record = records + (lane * stride + row)  # [GROUP]
        maximum = tl.full((GROUP,), -_INF, tl.float32)
        best = maximum
        best_id = tl.zeros((GROUP,), tl.int32)
        for group in range(0, CHUNKS, GROUP):
            here = lane < CHUNKS - group
            maximum = tl.maximum(maximum, tl.load(record + group * stride, mask=here, other=-_INF))
            value = tl.load(record + (group * stride + VALUE * plane), mask=here, other=-_INF)
            own_id = tl.load(record + (group * stride + 2 * plane), mask=here, other=0.0).to(tl.int32, bitcast=True)
            best_id = tl.where(value > best, own_id, best_id)
            best = tl.maximum(best, value)
        top = tl.max(maximum, 0)
        shift = tl.where(top > -_INF, top, 0.0)
        rest = tl.zeros((GROUP,), tl.float64)
        largest = tl.zeros((GROUP,), tl.int32)
        for group in range(0, CHUNKS, GROUP):
            here = lane < CHUNKS - group
            own = tl.load(record + group * stride, mask=here, other=-_INF)
            scale = tl.exp(own - shift).to(tl.float64)
            part = tl.load(record + (group * stride + plane), mask=here, other=0.0)
            rest += part.to(tl.float64) * scale + tl.where(own < top, scale, 0.0)
            largest += (own == top).to(tl.int32)

        if tl.abs(top) < _INF:
            if draft:
                token = tl.min(tl.where(best == tl.max(best, 0), best_id, V - 1), 0).to(tl.int64)
            logit = top
            if NOISE or candidate >= 0:
                logit = tl.load(records + (3 * plane + token // BLOCK_V * stride + row))
            exponential = tl.exp(logit.to(tl.float64) - top.to(tl.float64))
            others = tl.sum(rest, 0) + (tl.sum(largest, 0) - 1).to(tl.float64)
            probability = exponential / (1.0 + others)
    tl.store(token_ids + row, token)
    tl.store(confidence + row, probability)
