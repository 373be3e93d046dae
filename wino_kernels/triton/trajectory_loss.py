"""trajectory_loss and its gradient as Triton kernels (docs/spec.md section 5), the LM head fused in.

Rows that are neither target nor candidate are sorted out on the device; programs beyond the others' number end at once.
Forward: a tile of logits stays in registers and leaves four numbers a row, which a second kernel joins into the
statistics that backward starts from: for rows of some part alone and one chunk of V after the other, the logits'
gradient goes to scratch and from there into the products with weight and hidden.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from wino_kernels.triton.configs import Config, config
from wino_kernels.triton.launch import Options, launch, rows_of
from wino_kernels.triton.matrix import multiply_add, narrowed, rounded
from wino_kernels.workspace import scratch

#: Elements of the logits' gradient that a chunk may hold: with very many rows its columns become fewer.
_CHUNK_ELEMENTS = 1 << 26
#: Rows above which grad_hidden is no longer summed in several parts of V: row tiles then fill the GPU.
_ROWS_TO_SPLIT = 8192
_LANES = 1024
_ROWS = 4  # of a program that joins
_ALIGNMENT = 128
_SMALL = Options(num_warps=8, num_stages=1, fp_fusion=True)

# The rows of the statistics: aligned or not with the number of rows, so no kernel is compiled for either.
_STATISTICS = ["log_sum_exp", "entropy", "parts"]

# Bits of a row's parts.
_CROSS_ENTROPY, _UNMASK, _REMASK = (tl.constexpr(bit) for bit in (1, 2, 4))
_NO_TOKEN = tl.constexpr(2**31 - 1)

Arguments = dict[str, Any]


class _Head(NamedTuple):
    """The operator's inputs, of the dtypes and strides that kernels take."""

    arguments: Arguments
    dtype: torch.dtype
    precise: torch.dtype
    rows: int
    vocabulary: int
    width: int

    @classmethod
    def of(cls, hidden: Tensor, weight: Tensor, labels: Tensor) -> _Head:
        (vocabulary, width), rows = weight.shape, labels.numel()
        hidden, inner, outer_stride, inner_stride = rows_of(hidden)
        arguments = {
            "hidden": hidden,
            "inner": inner,
            "outer_stride": outer_stride,
            "inner_stride": inner_stride,
            "weight": weight,
            "weight_stride": weight.stride(0),
            "labels": labels.contiguous(),
            "rows": rows,
            "vocabulary": vocabulary,
            "width": width,
        }
        precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        return cls(arguments, hidden.dtype, precise, rows, vocabulary, width)

    def tuned(self, operator: str) -> tuple[Config, Options]:
        """Blocks and compiler options."""
        entry = operator, f"{self.dtype.itemsize} bytes"
        tuned = dict(config(*entry, self.arguments["hidden"].device))
        return tuned, Options(tuned.pop("num_warps"), tuned.pop("num_stages"), fp_fusion=True, entry=entry)


def trajectory_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    target_mask: Tensor,
    candidate_mask: Tensor,
    threshold: Tensor,
    threshold_back: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    head = _Head.of(hidden, weight, labels)
    sums = torch.empty(3, dtype=head.precise, device=hidden.device)
    counts = torch.empty(3, dtype=torch.int64, device=hidden.device)
    statistics = torch.empty((3, head.rows), dtype=head.precise, device=hidden.device)
    if not head.rows:
        return sums.zero_(), counts.zero_(), statistics
    cross_entropy = _score_rows(head, target_mask, candidate_mask, threshold, threshold_back, statistics)
    launch(
        _sum_parts,
        (1,),
        {
            "cross_entropy": cross_entropy,
            "entropy": statistics[1],
            "parts": statistics[2],
            "sums": sums,
            "counts": counts,
            "rows": head.rows,
        },
        {"BLOCK": _LANES},
        _SMALL,
    )
    return sums, counts, statistics


def trajectory_loss_backward(
    grad_sums: Tensor, hidden: Tensor, weight: Tensor, labels: Tensor, statistics: Tensor, weight_gradient: bool
) -> tuple[Tensor, Tensor]:
    head = _Head.of(hidden, weight, labels)
    grad_hidden = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)
    grad_weight = torch.empty(weight.shape if weight_gradient else 0, dtype=weight.dtype, device=weight.device)
    if not head.rows:
        return grad_hidden, grad_weight.zero_()

    tuned = head.tuned("trajectory_loss_backward")[0]
    splits = max(1, min(tuned["SPLITS"], _ROWS_TO_SPLIT // head.rows))
    chunk = _chunk_columns(head, tuned["CHUNK"], splits * tuned["BLOCK_V"])
    memory = _carve(
        hidden,
        {
            **_selection_fields(head.rows),
            "grad_logits": (head.rows * chunk, hidden.dtype),
            "partial": (splits * head.rows * head.width, head.precise),
        },
    )
    statistics = statistics.contiguous()
    _select(head, _named(statistics)["parts"], None, memory)
    for first in range(0, head.vocabulary, chunk):
        _add_chunk(head, memory, statistics, grad_sums, grad_weight if weight_gradient else None, first, chunk, splits)
    launch(
        _join_grad_hidden,
        (triton.cdiv(head.rows, _ROWS), triton.cdiv(head.width, _LANES)),
        {
            "partial": memory["partial"],
            "slot": memory["slot"],
            "grad_hidden": grad_hidden,
            "rows": head.rows,
            "width": head.width,
            "splits": splits,
        },
        {"BLOCK_ROWS": _ROWS, "BLOCK": min(_LANES, triton.next_power_of_2(head.width))},
        _SMALL,
    )
    return grad_hidden, grad_weight


def _add_chunk(
    head: _Head,
    memory: dict[str, Tensor],
    statistics: Tensor,
    grad_sums: Tensor,
    grad_weight: Tensor | None,
    first: int,
    chunk: int,
    splits: int,
) -> None:
    """The columns of V from ``first`` on: their part of grad_hidden's sums, their rows of grad_weight."""
    tuned, options = head.tuned("trajectory_loss_backward")
    row_tiles, width_tiles = triton.cdiv(head.rows, tuned["BLOCK_ROWS"]), triton.cdiv(head.width, tuned["BLOCK_H"])
    v_tiles = triton.cdiv(min(chunk, head.vocabulary - first), tuned["BLOCK_V"])
    common: Arguments = {
        **_take(memory, "index", "count", "grad_logits"),
        "chunk": chunk,
        "first": first,
    }
    launch(
        _grad_logits,
        (row_tiles * v_tiles,),
        {
            **common,
            **head.arguments,
            **_named(statistics),
            "grad_sums": grad_sums,
            "grad_stride": grad_sums.stride(0),
        },
        {"EVEN": head.width % tuned["BLOCK_K"] == 0, **_take(tuned, "BLOCK_ROWS", "BLOCK_V", "BLOCK_K")},
        options,
    )
    launch(
        _grad_hidden,
        (row_tiles * width_tiles * splits,),
        {
            **common,
            **_take(head.arguments, "weight", "weight_stride", "rows", "vocabulary", "width"),
            "partial": memory["partial"],
            "split": chunk // splits,
        },
        _take(tuned, "BLOCK_ROWS", "BLOCK_H", "BLOCK_K"),
        options,
    )
    if grad_weight is not None:
        inputs = ("hidden", "inner", "outer_stride", "inner_stride", "vocabulary", "width")
        launch(
            _grad_weight,
            (v_tiles * width_tiles,),
            {**common, **_take(head.arguments, *inputs), "grad_weight": grad_weight},
            _take(tuned, "BLOCK_V", "BLOCK_H", "BLOCK_K"),
            options,
        )


def _score_rows(
    head: _Head,
    target_mask: Tensor,
    candidate_mask: Tensor,
    threshold: Tensor,
    threshold_back: Tensor,
    statistics: Tensor,
) -> Tensor:
    """Fills ``statistics``; returns the rows' cross entropies, in scratch."""
    tuned, options = head.tuned("trajectory_loss")
    tiles = triton.cdiv(head.vocabulary, tuned["BLOCK_V"])
    memory = _carve(
        head.arguments["hidden"],
        {
            **_selection_fields(head.rows),
            **dict.fromkeys(("label_logit", "cross_entropy"), (head.rows, head.precise)),
            "tile_id": (head.rows * tiles, torch.int32),
            **dict.fromkeys(("tile_max", "tile_sum", "tile_product"), (head.rows * tiles, head.precise)),
        },
    )
    records = {**_take(memory, "tile_id", "tile_max", "tile_sum", "tile_product", "label_logit"), "tiles": tiles}
    target_mask, candidate_mask = target_mask.contiguous(), candidate_mask.contiguous()
    _select(head, target_mask, candidate_mask, memory)
    launch(
        _score_tile,
        (triton.cdiv(head.rows, tuned["BLOCK_ROWS"]) * tiles,),
        {**head.arguments, **_take(memory, "index", "count"), **records},
        {"EVEN": head.width % tuned["BLOCK_K"] == 0, **tuned},
        options,
    )
    launch(
        _join_tiles,
        (triton.cdiv(head.rows, _ROWS),),
        {
            **_take(head.arguments, "labels", "rows", "vocabulary"),
            "target_mask": target_mask,
            "candidate_mask": candidate_mask,
            "threshold": threshold.item() if threshold.is_cpu else threshold,
            "threshold_back": threshold_back.item() if threshold_back.is_cpu else threshold_back,
            **records,
            **_take(memory, "slot", "cross_entropy"),
            **_named(statistics),
        },
        {
            "LOAD_THRESHOLD": not threshold.is_cpu,
            "LOAD_THRESHOLD_BACK": not threshold_back.is_cpu,
            "BLOCK_ROWS": _ROWS,
            "BLOCK": min(_LANES, triton.next_power_of_2(tiles)),
        },
        _SMALL,
    )
    return memory["cross_entropy"]


def _select(head: _Head, first: Tensor, second: Tensor | None, memory: dict[str, Tensor]) -> None:
    outputs = _take(memory, "index", "slot", "count")
    launch(
        _select_rows, (1,), {"first": first, "second": second, **outputs, "rows": head.rows}, {"BLOCK": _LANES}, _SMALL
    )


def _named(statistics: Tensor) -> Arguments:
    return dict(zip(_STATISTICS, statistics, strict=True))


def _chunk_columns(head: _Head, most: int, multiple: int) -> int:
    """Columns of a chunk: a multiple of ``multiple``, no more than V needs, fewer where there are very many rows."""
    columns = min(most, _CHUNK_ELEMENTS // head.rows, head.vocabulary)
    return max(1, triton.cdiv(columns, multiple)) * multiple


def _selection_fields(rows: int) -> dict[str, tuple[int, torch.dtype]]:
    return {"index": (rows, torch.int32), "slot": (rows, torch.int32), "count": (1, torch.int32)}


def _carve(like: Tensor, fields: dict[str, tuple[int, torch.dtype]]) -> dict[str, Tensor]:
    """Named arrays, (elements, dtype) each, of one piece of scratch."""
    starts, total = {}, 0
    for name, (elements, dtype) in fields.items():
        starts[name] = total
        total += -(-elements * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
    memory = scratch(like, total // 4).view(torch.uint8)
    return {
        name: memory[starts[name] : starts[name] + elements * dtype.itemsize].view(dtype)
        for name, (elements, dtype) in fields.items()
    }


def _take(table: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: table[name] for name in names}


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["first"])
def _select_rows(first, second, index, slot, count, rows, BLOCK: tl.constexpr):
    """The rows with a flag, in order; the place of each row among them, or -1; their number. One program."""
    found = 0
    for start in range(0, rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        real = row < rows
        wanted = tl.load(first + row, mask=real, other=0) != 0
        if second is not None:
            wanted |= tl.load(second + row, mask=real, other=0) != 0
        one = wanted.to(tl.int32)
        place = found + tl.cumsum(one, 0) - one
        tl.store(index + place, row, mask=wanted)
        tl.store(slot + row, tl.where(wanted, place, -1), mask=real)
        found += tl.sum(one, 0)
    tl.store(count, found)


@triton.jit
def _row_starts(row, inner, outer_stride, inner_stride):
    row = row.to(tl.int64)
    return row // inner * outer_stride + row % inner * inner_stride


@triton.jit
def _lane_of(label, first_v, vocabulary, BLOCK_V: tl.constexpr):
    """Where in the tile of V that starts at first_v a row's label lies, -1 if it does not."""
    lane = label - first_v  # int64
    return tl.where((lane >= 0) & (lane < tl.minimum(vocabulary - first_v, BLOCK_V)), lane, -1).to(tl.int32)


@triton.jit
def _logits_tile(hidden_rows, weight_rows, width, TOTAL: tl.constexpr, EVEN: tl.constexpr, BLOCK_K: tl.constexpr):
    """Logits as an unfused head rounds them, in TOTAL's precision: [rows, V]. Pointers to rows come in."""
    k = tl.arange(0, BLOCK_K)
    hidden_tile = hidden_rows[:, None] + k[None, :]  # [rows, K]
    weight_tile = weight_rows[:, None] + k[None, :]  # [V, K]
    logits = tl.zeros((hidden_rows.shape[0], weight_rows.shape[0]), TOTAL)
    for first in range(0, width, BLOCK_K):
        if EVEN:
            x = tl.load(hidden_tile)
            w = tl.load(weight_tile)
        else:
            x = tl.load(hidden_tile, mask=k[None, :] < width - first, other=0.0)
            w = tl.load(weight_tile, mask=k[None, :] < width - first, other=0.0)
        logits = multiply_add(x, tl.trans(w), logits)
        hidden_tile += BLOCK_K
        weight_tile += BLOCK_K
    if logits.dtype == tl.float64:
        return logits
    else:
        return rounded(logits, hidden_rows.dtype.element_ty)


@triton.jit(do_not_specialize=["rows", "inner"])
def _score_tile(
    hidden,
    inner,
    outer_stride,
    inner_stride,
    labels,
    rows,
    vocabulary,
    width,
    weight,
    weight_stride,
    index,
    count,
    tile_id,
    tile_max,
    tile_sum,
    tile_product,
    label_logit,
    tiles,
    EVEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Maximum, its lowest id, sum of e and of e * (x - maximum), e = exp(x - maximum), of a tile's rows."""
    # Programs that share a tile of the weight are neighbours: all but one of them find it in the L2.
    row_tiles = tl.cdiv(rows, BLOCK_ROWS)
    tile = tl.program_id(0) // row_tiles
    first = tl.program_id(0) % row_tiles * BLOCK_ROWS
    number = tl.load(count)
    if first >= number:
        return
    slot = first + tl.arange(0, BLOCK_ROWS)
    real = slot < number
    # Beyond the last row and the last token others are repeated, and not stored: loads then need no mask.
    row = tl.load(index + tl.minimum(slot, number - 1))  # [rows]
    first_v = tile * BLOCK_V
    lane = tl.arange(0, BLOCK_V)
    v = first_v + tl.minimum(lane, vocabulary - 1 - first_v)
    inside = (lane < vocabulary - first_v)[None, :]
    x = _logits_tile(
        hidden + _row_starts(row, inner, outer_stride, inner_stride),
        weight + v.to(tl.int64) * weight_stride,
        width,
        tile_max.dtype.element_ty,
        EVEN,
        BLOCK_K,
    )  # [rows, V]
    x = tl.where(inside, x, float("-inf"))
    top = tl.max(x, 1)
    lowest = tl.min(tl.where(x == top[:, None], v[None, :], _NO_TOKEN), 1)

    label = _lane_of(tl.load(labels + row), first_v, vocabulary, BLOCK_V)
    of_label = tl.sum(tl.where(lane[None, :] == label[:, None], x, 0.0), 1)
    tl.store(label_logit + row, of_label, mask=real & (label >= 0))

    x -= tl.where(top == float("-inf"), 0.0, top)[:, None]
    e = tl.exp(x)
    record = slot.to(tl.int64) * tiles + tile
    tl.store(tile_id + record, lowest, mask=real)
    tl.store(tile_max + record, top, mask=real)
    tl.store(tile_sum + record, tl.sum(e, 1), mask=real)
    tl.store(tile_product + record, tl.sum(e * tl.where(inside, x, 0.0), 1), mask=real)


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=_STATISTICS)
def _join_tiles(
    labels,
    rows,
    vocabulary,
    target_mask,
    candidate_mask,
    threshold,
    threshold_back,
    slot,
    tile_id,
    tile_max,
    tile_sum,
    tile_product,
    label_logit,
    cross_entropy,
    log_sum_exp,
    entropy,
    parts,
    tiles,
    LOAD_THRESHOLD: tl.constexpr,
    LOAD_THRESHOLD_BACK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Joins the tiles of a few rows, in float64, and decides which parts these rows belong to."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    real = row < rows
    place = tl.load(slot + row, mask=real, other=-1)  # [rows]
    counts = place >= 0
    PRECISE: tl.constexpr = tile_max.dtype.element_ty
    if tl.max(place, 0) < 0:
        nothing = tl.zeros((BLOCK_ROWS,), PRECISE)
        tl.store(log_sum_exp + row, nothing, mask=real)
        tl.store(entropy + row, nothing, mask=real)
        tl.store(parts + row, nothing, mask=real)
        return
    base = tl.maximum(place, 0).to(tl.int64)[:, None] * tiles
    top = tl.full((BLOCK_ROWS,), float("-inf"), PRECISE)
    token = tl.full((BLOCK_ROWS,), 0, tl.int32)
    for first in range(0, tiles, BLOCK):
        tile = first + tl.arange(0, BLOCK)[None, :]
        wanted = counts[:, None] & (tile < tiles)
        each = tl.load(tile_max + base + tile, mask=wanted, other=float("-inf"))  # [rows, tiles]
        ids = tl.load(tile_id + base + tile, mask=wanted, other=_NO_TOKEN)
        largest = tl.max(each, 1)
        lowest = tl.min(tl.where(each == largest[:, None], ids, _NO_TOKEN), 1)
        token = tl.where(largest > top, lowest, token)  # earlier tiles hold lower ids
        top = tl.where(largest > top, largest, top)

    total = tl.zeros((BLOCK_ROWS,), tl.float64)
    product = tl.zeros((BLOCK_ROWS,), tl.float64)
    for first in range(0, tiles, BLOCK):
        tile = first + tl.arange(0, BLOCK)[None, :]
        wanted = counts[:, None] & (tile < tiles)
        shift = tl.where(wanted, tl.load(tile_max + base + tile, mask=wanted, other=0.0) - top[:, None], 0.0)
        s = tl.load(tile_sum + base + tile, mask=wanted, other=0.0).to(tl.float64)
        products = tl.load(tile_product + base + tile, mask=wanted, other=0.0)
        scale = tl.exp(shift).to(tl.float64)
        total += tl.sum(scale * s, 1)
        product += tl.sum(scale * (products + shift.to(tl.float64) * s), 1)
    total = tl.where(counts, total, 1.0)
    log_total = tl.log(total)
    row_entropy = log_total - product / total
    top_p = (1.0 / total).to(PRECISE)

    label = tl.load(labels + row, mask=counts, other=-1)
    label_inside = (label >= 0) & (label < vocabulary)
    of_label = tl.load(label_logit + row, mask=label_inside, other=float("nan"))
    if LOAD_THRESHOLD:
        threshold = tl.load(threshold)
    if LOAD_THRESHOLD_BACK:
        threshold_back = tl.load(threshold_back)
    target = tl.load(target_mask + row, mask=counts, other=0) != 0
    candidate = tl.load(candidate_mask + row, mask=counts, other=0) != 0
    sure = target & (token == label) & (top_p < threshold_back)
    wrong = candidate & (token != label) & (top_p > threshold)
    bits = tl.where(target, _CROSS_ENTROPY, 0) | tl.where(sure, _UNMASK, 0) | tl.where(wrong, _REMASK, 0)
    # Where a target's label is no token the loss is NaN, and so is the gradient.
    normaliser = tl.where(target & (label_inside == 0), float("nan"), top + log_total)
    tl.store(log_sum_exp + row, tl.where(counts, normaliser, 0.0).to(PRECISE), mask=real)
    tl.store(entropy + row, tl.where(counts, row_entropy, 0.0).to(PRECISE), mask=real)
    tl.store(parts + row, bits.to(PRECISE), mask=real)
    tl.store(cross_entropy + row, (log_total - (of_label - top)).to(PRECISE), mask=counts)


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=_STATISTICS)
def _sum_parts(cross_entropy, entropy, parts, sums, counts, rows, BLOCK: tl.constexpr):
    """Sum and count of each part, over rows in their order. One program."""
    for part in tl.static_range(3):
        values = cross_entropy if part == 0 else entropy
        total = tl.zeros((BLOCK,), tl.float64)
        number = tl.zeros((BLOCK,), tl.int64)
        for start in range(0, rows, BLOCK):
            row = start + tl.arange(0, BLOCK)
            bits = tl.load(parts + row, mask=row < rows, other=0).to(tl.int32)
            chosen = (bits >> part) & 1 == 1
            total += tl.load(values + row, mask=chosen, other=0.0).to(tl.float64)
            number += chosen.to(tl.int64)
        tl.store(sums + part, tl.sum(total, 0).to(sums.dtype.element_ty))
        tl.store(counts + part, tl.sum(number, 0))


@triton.jit(do_not_specialize=["rows", "inner"], do_not_specialize_on_alignment=_STATISTICS)
def _grad_logits(
    index,
    count,
    grad_logits,
    chunk,
    hidden,
    inner,
    outer_stride,
    inner_stride,
    labels,
    rows,
    vocabulary,
    width,
    weight,
    weight_stride,
    log_sum_exp,
    entropy,
    parts,
    grad_sums,
    grad_stride,
    first,
    EVEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of d loss / d logits, in the input's dtype, into the chunk [rows of some part, chunk]; 0 beyond V."""
    row_tiles = tl.cdiv(rows, BLOCK_ROWS)
    tile = tl.program_id(0) // row_tiles
    first_row = tl.program_id(0) % row_tiles * BLOCK_ROWS
    number = tl.load(count)
    if first_row >= number:
        return
    slot = first_row + tl.arange(0, BLOCK_ROWS)
    row = tl.load(index + tl.minimum(slot, number - 1))  # [rows]
    first_v = first + tile * BLOCK_V
    lane = tl.arange(0, BLOCK_V)
    v = first_v + tl.minimum(lane, vocabulary - 1 - first_v)
    x = _logits_tile(
        hidden + _row_starts(row, inner, outer_stride, inner_stride),
        weight + v.to(tl.int64) * weight_stride,
        width,
        log_sum_exp.dtype.element_ty,
        EVEN,
        BLOCK_K,
    )  # [rows, V]

    bits = tl.load(parts + row).to(tl.int32)
    of_cross_entropy = tl.where(bits & _CROSS_ENTROPY != 0, tl.load(grad_sums), 0.0)
    of_entropy = tl.where(bits & _UNMASK != 0, tl.load(grad_sums + grad_stride), 0.0)
    of_entropy += tl.where(bits & _REMASK != 0, tl.load(grad_sums + 2 * grad_stride), 0.0)
    label = tl.load(labels + row)
    label = tl.where((label >= 0) & (label < vocabulary), label, 0)  # the loss is NaN then; eager's gradient is this
    label = _lane_of(label, first_v, vocabulary, BLOCK_V)

    # d CE / d logit_v = p_v - [v = label];  d H / d logit_v = -p_v (log p_v + H)
    log_p = x - tl.load(log_sum_exp + row)[:, None]
    p = tl.exp(log_p)
    d_entropy = -p * (log_p + tl.load(entropy + row)[:, None])
    d_cross_entropy = p - tl.where(lane[None, :] == label[:, None], 1.0, 0.0)
    gradient = of_cross_entropy[:, None] * d_cross_entropy + of_entropy[:, None] * d_entropy
    gradient = tl.where((lane < vocabulary - first_v)[None, :], gradient, 0.0)
    destination = grad_logits + slot.to(tl.int64)[:, None] * chunk + (tile * BLOCK_V + lane)[None, :]
    tl.store(destination, narrowed(gradient, grad_logits.dtype.element_ty), mask=(slot < number)[:, None])


@triton.jit(do_not_specialize=["rows"])
def _grad_hidden(
    index,
    count,
    grad_logits,
    chunk,
    weight,
    weight_stride,
    rows,
    vocabulary,
    width,
    partial,
    first,
    split,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Adds one split of the chunk times its rows of the weight to that split's sum [rows of some part, H]."""
    row_tiles = tl.cdiv(rows, BLOCK_ROWS)
    part = tl.program_id(0) // row_tiles
    width_tiles = tl.cdiv(width, BLOCK_H)
    first_row = tl.program_id(0) % row_tiles * BLOCK_ROWS
    number = tl.load(count)
    if first_row >= number:
        return
    slot = first_row + tl.arange(0, BLOCK_ROWS)
    h = part % width_tiles * BLOCK_H + tl.arange(0, BLOCK_H)
    k = tl.arange(0, BLOCK_K)
    start = part // width_tiles * split
    end = tl.minimum(start + split, vocabulary - first)
    real = (slot < number)[:, None] & (h < width)[None, :]
    sums = partial + ((part // width_tiles).to(tl.int64) * rows + slot)[:, None] * width + h[None, :]
    before = tl.where(first > 0, number, 0)  # rows that hold the sums of earlier chunks
    total = tl.load(sums, mask=(slot < before)[:, None] & (h < width)[None, :], other=0.0)

    source = tl.minimum(slot, number - 1).to(tl.int64)  # beyond the last row it is repeated, and not stored
    grad_tile = grad_logits + source[:, None] * chunk + (start + k)[None, :]  # [rows, K]
    weight_tile = weight + (first + start + k).to(tl.int64)[:, None] * weight_stride + h[None, :]  # [K, H]
    step = tl.full((), BLOCK_K, tl.int64) * weight_stride
    for at in range(start, end, BLOCK_K):
        g = tl.load(grad_tile)
        w = tl.load(weight_tile, mask=(k < end - at)[:, None] & (h < width)[None, :], other=0.0)
        total = multiply_add(g, w, total)
        grad_tile += BLOCK_K
        weight_tile += step
    tl.store(sums, total, mask=real)


@triton.jit(do_not_specialize=["inner"])
def _grad_weight(
    index,
    count,
    grad_logits,
    chunk,
    hidden,
    inner,
    outer_stride,
    inner_stride,
    vocabulary,
    width,
    grad_weight,
    first,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The chunk, transposed, times the rows of hidden: a tile [V, H] of grad_weight."""
    width_tiles = tl.cdiv(width, BLOCK_H)
    column = tl.program_id(0) // width_tiles * BLOCK_V + tl.arange(0, BLOCK_V)
    h = tl.program_id(0) % width_tiles * BLOCK_H + tl.arange(0, BLOCK_H)
    k = tl.arange(0, BLOCK_K)
    number = tl.load(count)
    PRECISE: tl.constexpr = tl.float64 if hidden.dtype.element_ty == tl.float64 else tl.float32
    total = tl.zeros((BLOCK_V, BLOCK_H), PRECISE)
    for at in range(0, number, BLOCK_K):
        real = (at + k < number)[:, None]
        row = tl.load(index + at + k, mask=at + k < number, other=0)
        starts = _row_starts(row, inner, outer_stride, inner_stride)
        g = tl.load(grad_logits + (at + k).to(tl.int64)[:, None] * chunk + column[None, :], mask=real, other=0.0)
        x = tl.load(hidden + starts[:, None] + h[None, :], mask=real & (h < width)[None, :], other=0.0)
        total = multiply_add(tl.trans(g), x, total)
    destination = grad_weight + (first + column).to(tl.int64)[:, None] * width + h[None, :]
    stored = (column < vocabulary - first)[:, None] & (h < width)[None, :]
    tl.store(destination, narrowed(total, grad_weight.dtype.element_ty), mask=stored)


@triton.jit(do_not_specialize=["rows", "splits"])
def _join_grad_hidden(partial, slot, grad_hidden, rows, width, splits, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The splits of a few rows, added in their order; zeros for a row of no part."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    h = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    place = tl.load(slot + row, mask=row < rows, other=-1)
    summed = (place >= 0)[:, None] & (h < width)
    total = tl.zeros((BLOCK_ROWS, BLOCK), partial.dtype.element_ty)
    start = place.to(tl.int64)
    for _ in range(splits):
        total += tl.load(partial + start[:, None] * width + h, mask=summed, other=0.0)
        start += rows
    destination = grad_hidden + row.to(tl.int64)[:, None] * width + h
    tl.store(destination, narrowed(total, grad_hidden.dtype.element_ty), mask=(row < rows)[:, None] & (h < width))
