"""score_tokens as Triton kernels (docs/spec.md section 6).

A program reduces one chunk of one row in registers and writes a record; a second, small launch joins the records of
each row from left to right. One program per row would leave most of a large GPU idle for a block of K rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from wino_kernels.triton.configs import config
from wino_kernels.triton.launch import Options, launch, rows_of, scalar_or_rows
from wino_kernels.triton.philox import gumbel, random_words
from wino_kernels.workspace import scratch

DRAFT = tl.constexpr(-1)
SKIP = tl.constexpr(-2)
_LOG2_E = tl.constexpr(1.4426950408889634)
_INF = tl.constexpr(float("inf"))

# A record is five words, each in a line of 32 rows: what the lanes of a warp read together lies together, and every
# record of a row lies at a distance from its first one that is known when the kernel is compiled.
MAXIMUM = tl.constexpr(0)
REST = tl.constexpr(1)
TOKEN = tl.constexpr(2)
LOGIT = tl.constexpr(3)
VALUE = tl.constexpr(4)
WORDS = tl.constexpr(5)
LINE = tl.constexpr(32)

_WIDE = 16  # bytes of a load

_NARROWEST = 128  # elements of a chunk
_SLICE_BYTES = 32 << 20  # of logits, which then stay in the L2 cache of a large GPU
_CHUNKS_JOINED = 4  # whose loads are in flight together
_DRAWN = tl.constexpr(1024)  # at a time: the noise of a whole chunk would leave no registers for a second program


def score_tokens(
    logits: Tensor, candidate_ids: Tensor, temperature: Tensor | None = None, seed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    token_ids = torch.empty_like(candidate_ids)
    confidence = torch.empty_like(candidate_ids, dtype=torch.float64)
    rows = candidate_ids.numel()
    if rows:
        plan = plan_scoring(logits, rows, temperature, seed)
        launch(score_chunks, plan.grid, {"candidate_ids": candidate_ids} | plan.arguments, plan.constants, plan.options)
        _join(candidate_ids, token_ids, confidence, plan.join_arguments, plan.join_constants)
    return token_ids, confidence


def score_product(
    hidden: Tensor,
    weight: Tensor,
    candidate_ids: Tensor,
    bias: Tensor | None,
    temperature: Tensor | None,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """score_tokens of ``hidden @ weight.T + bias``, by the library, at most ``_SLICE_BYTES`` of logits at a time."""
    token_ids = torch.empty_like(candidate_ids)
    confidence = torch.empty_like(candidate_ids, dtype=torch.float64)
    rows, vocabulary, size = candidate_ids.numel(), len(weight), hidden.dtype.itemsize
    options, width, chunks = _chunks(vocabulary, hidden)
    most_rows = max(1, _SLICE_BYTES // (width * size))
    at_once = max(1, min(chunks, most_rows // rows))
    words = _record_words(rows, chunks)
    memory = scratch(hidden, words + -(-min(rows, most_rows) * at_once * width * size // 4))
    heat, per_row = scalar_or_rows(temperature)
    shared: dict[str, Any] = {"temperature": heat, "records": memory}
    given = shared | {"candidate_ids": candidate_ids, "seed": seed}
    constants = {"V": vocabulary, "PER_ROW": per_row, "NOISE": seed is not None, "BLOCK": width}
    # A view of another dtype: scratch may have been made under inference_mode, and its own views could not be written.
    logits, flat = memory[words:].view(hidden.dtype), hidden.reshape(rows, -1)
    for first_row in range(0, rows, most_rows):
        some = flat[first_row : first_row + most_rows]
        for first_chunk in range(0, chunks, at_once):
            part = slice(first_chunk * width, min(vocabulary, (first_chunk + at_once) * width))
            columns = part.stop - part.start
            tile = logits[: len(some) * columns].view(len(some), columns)
            _multiply(some, weight[part], None if bias is None else bias[part], tile)
            place = {"logits": tile, "first_row": first_row, "first_chunk": first_chunk, "columns": columns}
            launch(
                score_slice,
                (len(some) * triton.cdiv(columns, width),),
                given | place,
                constants | {"UNIT": _unit(vocabulary, size)},
                options,
            )
    _join(candidate_ids, token_ids, confidence, shared, constants | _group(chunks))
    return token_ids, confidence


@torch.no_grad()
def _multiply(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if bias is None:
        torch.mm(hidden, weight.T, out=out)
    else:
        torch.addmm(bias, hidden, weight.T, out=out)


def _join(
    candidate_ids: Tensor,
    token_ids: Tensor,
    confidence: Tensor,
    arguments: dict[str, Any],
    constants: dict[str, Any],
) -> None:
    rows = candidate_ids.numel()
    outputs = {"token_ids": token_ids, "confidence": confidence, "rows": rows}
    launch(
        join_rows,
        (triton.cdiv(rows, LINE.value),),
        {"candidate_ids": candidate_ids} | arguments | outputs,
        constants,
        Options(num_warps=1, num_stages=1, fp_fusion=False),
    )


class Plan(NamedTuple):
    """How the rows of logits are scored: the launch over their chunks, and what the launch that joins them is given."""

    grid: tuple[int]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    options: Options
    join_arguments: dict[str, Any]
    join_constants: dict[str, Any]


def plan_scoring(logits: Tensor, rows: int, temperature: Tensor | None, seed: Tensor | None) -> Plan:
    vocabulary = logits.shape[-1]
    options, width, chunks = _chunks(vocabulary, logits)
    unit = _unit(vocabulary, logits.dtype.itemsize)
    logits, inner, outer_stride, inner_stride = _beginning_at(unit, logits)
    heat, per_row = scalar_or_rows(temperature)
    shared = {"temperature": heat, "records": scratch(logits, _record_words(rows, chunks))}
    strides = {"inner": inner, "outer_stride": outer_stride, "inner_stride": inner_stride}
    constants = {"V": vocabulary, "PER_ROW": per_row, "NOISE": seed is not None, "BLOCK": width}
    return Plan(
        (rows * chunks,),
        {"logits": logits, "seed": seed} | strides | shared,
        constants | {"UNIT": unit},
        options,
        shared,
        constants | _group(chunks),
    )


def _chunks(vocabulary: int, like: Tensor) -> tuple[Options, int, int]:
    """How a chunk is started, its width and how many a row has.

    The width decides the order of summation: it hangs on V and the dtype, never on the number of rows.
    """
    entry = "score_tokens", f"{like.dtype.itemsize} bytes"
    tuned = config(*entry, like.device)
    width = min(tuned["BLOCK"], max(triton.next_power_of_2(vocabulary), _NARROWEST))
    options = Options(tuned["num_warps"], tuned["num_stages"], fp_fusion=False, entry=entry)
    return options, width, triton.cdiv(vocabulary, width)


def _record_words(rows: int, chunks: int) -> int:
    return triton.cdiv(rows, LINE.value) * chunks * WORDS.value * LINE.value


def _group(chunks: int) -> dict[str, int]:
    return {"GROUP": min(triton.next_power_of_2(chunks), _CHUNKS_JOINED)}


def _unit(vocabulary: int, size: int) -> int:
    """Logits that are read at once, where rows of them lie behind each other: those of 16 bytes, or one.

    It decides the order of summation, so it hangs on V and the dtype alone, not on what a row is batched with.
    """
    return _WIDE // size if vocabulary * size % _WIDE == 0 else 1


def _beginning_at(unit: int, logits: Tensor) -> tuple[Tensor, int, int, int]:
    """``rows_of``, every row of which begins at a multiple of ``unit``: of a copy where need be."""
    logits, inner, outer_stride, inner_stride = rows_of(logits)
    begins = logits.data_ptr() // logits.dtype.itemsize, outer_stride, inner_stride
    if any(begin % unit for begin in begins):
        return rows_of(logits.clone(memory_format=torch.contiguous_format))
    return logits, inner, outer_stride, inner_stride


#: Numbers about rows: what Triton found out of their values would hang on the batch.
ROW_NUMBERS = ("inner", "outer_stride", "inner_stride")


@triton.jit(do_not_specialize=ROW_NUMBERS)
def score_chunks(
    candidate_ids,
    logits,
    inner,
    outer_stride,
    inner_stride,
    temperature,
    seed,
    records,
    V: tl.constexpr,
    PER_ROW: tl.constexpr,
    NOISE: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
):
    """One program per (row, chunk)."""
    row = tl.program_id(0) // ((V + BLOCK - 1) // BLOCK)
    candidate = tl.load(candidate_ids + row)
    heat = temperature_of(row, temperature, True, PER_ROW)
    if asks_for_logits(candidate, heat, V):
        start = logits + row_start(row, inner, outer_stride, inner_stride, UNIT)
        chunk = tl.program_id(0) % ((V + BLOCK - 1) // BLOCK)
        score_chunk(candidate, row, chunk, start, heat, seed, records, V, NOISE, BLOCK)


@triton.jit(do_not_specialize=["first_row", "first_chunk", "columns"])
def score_slice(
    candidate_ids,
    logits,
    first_row,
    first_chunk,
    columns,
    temperature,
    seed,
    records,
    V: tl.constexpr,
    PER_ROW: tl.constexpr,
    NOISE: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
):
    """As ``score_chunks``; ``logits`` [rows, columns] are those from ``first_row`` and ``first_chunk`` on."""
    chunks = tl.cdiv(columns, BLOCK)
    at = tl.program_id(0) // chunks
    row = first_row + at
    candidate = tl.load(candidate_ids + row)
    heat = temperature_of(row, temperature, True, PER_ROW)
    if asks_for_logits(candidate, heat, V):
        start = logits + row_start(at, 1, columns, 0, UNIT) - first_chunk * BLOCK
        chunk = first_chunk + tl.program_id(0) % chunks
        score_chunk(candidate, row, chunk, start, heat, seed, records, V, NOISE, BLOCK)


@triton.jit(do_not_specialize=["rows"])
def join_rows(
    candidate_ids,
    token_ids,
    confidence,
    temperature,
    records,
    rows,
    V: tl.constexpr,
    PER_ROW: tl.constexpr,
    NOISE: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One program per line of rows."""
    row = tl.program_id(0) * LINE + tl.arange(0, LINE)
    real = row < rows
    candidate = tl.load(candidate_ids + row, mask=real, other=SKIP)  # [LINE]
    heat = temperature_of(row, temperature, real, PER_ROW)
    token, probability = join_records(candidate, row, heat, records, V, NOISE, BLOCK, GROUP)
    tl.store(token_ids + row, token, mask=real)
    tl.store(confidence + row, probability, mask=real)


@triton.jit
def temperature_of(row, temperature, real, PER_ROW: tl.constexpr):
    """The rows' temperature; 0 where there is none."""
    none = (row * 0).to(tl.float32)
    if temperature is None:
        return none
    elif PER_ROW:
        return tl.load(temperature + row, mask=real, other=0.0)
    else:
        return none + temperature


@triton.jit
def row_start(row, inner, outer_stride, inner_stride, UNIT: tl.constexpr = 1):
    """Offset of a row's first element, as ``rows_of`` describes it; a multiple of UNIT."""
    start = (row // inner).to(tl.int64) * outer_stride + (row % inner).to(tl.int64) * inner_stride
    if UNIT > 1:
        start = tl.multiple_of(start, UNIT)
    return start


@triton.jit
def asks_for_logits(candidate, heat, V: tl.constexpr):
    """Whether the answer hangs on the row: a draft at a temperature that is one, or a token of the vocabulary."""
    draft = (candidate == DRAFT) & (heat >= 0.0) & (heat < _INF)
    return draft | ((candidate >= 0) & (candidate < V))


@triton.jit
def first_record(row, CHUNKS: tl.constexpr):
    """Offset of a row's record of chunk 0; the others follow at distances of WORDS lines."""
    return (row // LINE).to(tl.int64) * (CHUNKS * WORDS * LINE) + row % LINE


@triton.jit
def score_chunk(
    candidate, row, chunk, start, heat, seed, records, V: tl.constexpr, NOISE: tl.constexpr, BLOCK: tl.constexpr
):
    """Write the record of a row's chunk: maximum, the rest and, as far as the row asks for it, a token.

    The rest is the sum of exp(x - maximum) over all but one of the largest. NaN makes it NaN, +inf the maximum +inf;
    where everything is banned they are -inf and 0. The token is the given one if it lies here (its logit), else the
    best one (id, with noise also logit and perturbed logit).
    """
    CHUNKS: tl.constexpr = (V + BLOCK - 1) // BLOCK
    first = chunk * BLOCK
    v = tl.arange(0, BLOCK)
    x = tl.load(start + first + v, mask=v < V - first, other=-_INF).to(tl.float32)  # [BLOCK]

    maximum = tl.max(x, 0)
    shift = tl.where(maximum > -_INF, maximum, 0.0)  # -inf - -inf would be NaN
    best_v = tl.min(tl.where(x == maximum, v, BLOCK - 1), 0)
    rest = tl.sum(tl.where(v == best_v, 0.0, tl.exp2((x - shift) * _LOG2_E)), 0)
    nan = tl.max((x != x).to(tl.int32), 0)
    record = records + first_record(row, CHUNKS) + chunk * (WORDS * LINE)
    tl.store(record + MAXIMUM * LINE, maximum)
    tl.store(record + REST * LINE, tl.where(nan > 0, float("nan"), rest))
    if candidate != DRAFT:
        if candidate // BLOCK == chunk:
            tl.store(record + LOGIT * LINE, tl.load(start + candidate).to(tl.float32))
    else:
        if NOISE:
            best = maximum
            if heat > 0.0:
                best, best_v = draw_from_chunk(first, start, heat, tl.load(seed + row), V, BLOCK)
            logit = tl.load(start + first + best_v, mask=best_v < V - first, other=-_INF)
            tl.store(record + LOGIT * LINE, logit.to(tl.float32))
            tl.store(record + VALUE * LINE, best)
        tl.store(record + TOKEN * LINE, (first + best_v).to(tl.float32, bitcast=True))


@triton.jit
def draw_from_chunk(first, start, heat, seed, V: tl.constexpr, BLOCK: tl.constexpr):
    """Largest x + heat * g of the chunk and the lowest index in it that has it; -inf where everything is banned."""
    TILE: tl.constexpr = _DRAWN if BLOCK > _DRAWN else BLOCK
    WIDTH: tl.constexpr = BLOCK if V > BLOCK else V
    best = tl.full((TILE,), -_INF, tl.float32)
    best_v = tl.zeros((TILE,), tl.int32)
    key = tl.zeros((1, 1), tl.int64) + seed
    for tile in range(0, WIDTH, TILE):
        v = tile + tl.arange(0, TILE)
        x = tl.load(start + first + v, mask=v < V - first, other=-_INF).to(tl.float32)  # [TILE], in the L1 by now
        y = x + heat * gumbel(tl.reshape(random_words(key, first + tile, 1, TILE), (TILE,)))
        y = tl.where(x > -_INF, y, -_INF)  # banned, whatever the noise
        best_v = tl.where(y > best, v, best_v)
        best = tl.maximum(best, y)
    top = tl.max(best, 0)
    return top, tl.min(tl.where(best == top, best_v, BLOCK - 1), 0)


@triton.jit
def join_records(
    candidate,
    row,
    heat,
    records,
    V: tl.constexpr,
    NOISE: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Token and confidence of several rows. candidate, row: ``[R]``; where there is no row, candidate is SKIP.

    Every row's records are added on their own, chunk after chunk, so that its bits hang on nothing else.
    """
    CHUNKS: tl.constexpr = (V + BLOCK - 1) // BLOCK
    RANKED: tl.constexpr = VALUE if NOISE else MAXIMUM
    asked = asks_for_logits(candidate, heat, V)
    draft = candidate == DRAFT
    records += first_record(row, CHUNKS)
    maximum = tl.full(row.shape, -_INF, tl.float32)
    rest = tl.zeros(row.shape, tl.float64)  # as in the records, of all chunks so far
    best = maximum
    best_id = tl.zeros(row.shape, tl.int32)
    for group in range(0, CHUNKS, GROUP):
        before = maximum
        for i in tl.static_range(GROUP):
            record = records + (group + i) * (WORDS * LINE)
            here = asked & (group + i < CHUNKS)
            maximum = tl.maximum(maximum, tl.load(record + MAXIMUM * LINE, mask=here, other=-_INF))
        shift = tl.where(maximum > -_INF, maximum, 0.0)
        held = before == maximum  # the largest has been met
        rescale = tl.exp2((before - shift) * _LOG2_E).to(tl.float64)
        rest = tl.where(held, rest, (rest + 1.0) * rescale)
        for i in tl.static_range(GROUP):
            record = records + (group + i) * (WORDS * LINE)
            here = asked & (group + i < CHUNKS)
            own = tl.load(record + MAXIMUM * LINE, mask=here, other=-_INF)
            scale = tl.exp2((own - shift) * _LOG2_E).to(tl.float64)
            joins = held | (own < maximum)
            rest += tl.load(record + REST * LINE, mask=here, other=0.0).to(tl.float64) * scale
            rest += tl.where(joins, scale, 0.0)
            held |= own == maximum
            value = tl.load(record + RANKED * LINE, mask=here, other=-_INF)
            own_id = tl.load(record + TOKEN * LINE, mask=here & draft, other=0.0).to(tl.int32, bitcast=True)
            best_id = tl.where(value > best, own_id, best_id)  # of equal ones the first: chunks come in order
            best = tl.maximum(best, value)

    valid = asked & (tl.abs(maximum) < _INF) & (rest == rest)
    token = tl.where(draft, tl.where(valid, best_id, 0), candidate)
    reread = valid if NOISE else valid & (candidate >= 0)
    logit = tl.load(records + (token // BLOCK * (WORDS * LINE) + LOGIT * LINE), mask=reread, other=0.0)
    distance = tl.where(reread, logit.to(tl.float64) - maximum.to(tl.float64), 0.0)
    probability = tl.exp(distance) / (1.0 + tl.where(valid, rest, 0.0))
    return token, tl.where(candidate == SKIP, 0.0, tl.where(valid, probability, float("nan")))
