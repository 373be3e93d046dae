"""shadow_attention in Triton (docs/spec.md sections 2, 6): one pass over the keys, online softmax, no mask tensor.

A program takes a tile of real queries or a tile of shadow queries, never both, so which keys it sees is decided by
scalars: real queries stop before the shadow keys, and only the tiles of keys that hold a hidden one, or the end, are
compared key by key. The query heads that share a key head are rows of one tile.
"""

from __future__ import annotations

import ctypes
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from wino_kernels.triton.configs import config
from wino_kernels.triton.launch import Options, launch
from wino_kernels.triton.matrix import multiply_add, narrowed

#: Tiles are halved until there are this many programs: about two per multiprocessor of a large GPU.
_ENOUGH_PROGRAMS = 256


@triton.jit
def _load_rows(start, stride, column, wanted, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """``[ROWS, columns]`` from ``start`` on; zeros beyond WIDTH and where ``wanted`` (None: all) says no."""
    pointers = start + tl.arange(0, ROWS)[:, None].to(tl.int64) * stride + column[None, :]
    mask = (column < WIDTH)[None, :]
    if wanted is not None:
        mask = mask & wanted[:, None]
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def _without_padding(padding, seen):
    """Of keys 0 ... seen - 1: the first that is not padding, how many up to the last that is not, padding between?"""
    begin = seen.to(tl.int64)
    end = begin * 0
    count = begin * 0
    for first in range(0, seen, 1024):
        number = first + tl.arange(0, 1024).to(tl.int64)
        present = tl.load(padding + number, mask=number < seen, other=0) != 0
        begin = tl.minimum(begin, tl.min(tl.where(present, number, seen), axis=0))
        end = tl.maximum(end, tl.max(tl.where(present, number + 1, 0), axis=0))
        count += tl.sum(present.to(tl.int64), axis=0)
    length = tl.maximum(end - begin, 0)
    return begin, length.to(tl.int32), count < length


@triton.jit
def _hidden_tiles(
    start, first_row, num_rows, real_keys, GROUP: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr
):
    """The first tile of keys that holds a token of these shadow queries, and how many tiles do."""
    last_row = tl.minimum(first_row + BLOCK_QUERIES, num_rows) - 1
    begin = tl.maximum(start + first_row // GROUP, 0)
    end = tl.minimum(start + last_row // GROUP + 1, real_keys)
    first = tl.minimum(begin, real_keys) // BLOCK_KEYS
    beyond = tl.cdiv(tl.maximum(end, 0), BLOCK_KEYS)
    return first.to(tl.int32), tl.where(end > begin, beyond - first, 0).to(tl.int32)


@triton.jit(do_not_specialize=["num_queries", "num_keys", "num_shadow"])
def _shadow_attention(
    query,
    key,
    value,
    block_start,
    padding,
    output,
    num_queries,
    num_keys,
    num_shadow,
    query_batch_stride,
    query_head_stride,
    query_stride,
    key_batch_stride,
    key_head_stride,
    key_stride,
    value_batch_stride,
    value_head_stride,
    value_stride,
    factor,  # |scale| log2(e), and what float32 leaves of it
    factor_rest,
    NEGATE: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    FIRST: tl.constexpr,  # columns of the first part of a row
    SECOND: tl.constexpr,  # and of the second; 0: none
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    num_real = num_queries - num_shadow
    real_tiles = tl.cdiv(num_real * GROUP, BLOCK_QUERIES)
    tiles = real_tiles + tl.cdiv(num_shadow * GROUP, BLOCK_QUERIES)
    program = tl.program_id(0)
    tile = program % tiles
    head = (program // tiles % HEADS).to(tl.int64)
    batch = (program // tiles // HEADS).to(tl.int64)
    is_shadow = tile >= real_tiles

    # Rows of the tile are (query, query head of the group) pairs, heads fastest; j counts within its kind of query.
    first_row = (tile - tl.where(is_shadow, real_tiles, 0)) * BLOCK_QUERIES
    row = first_row + tl.arange(0, BLOCK_QUERIES)
    num_rows = tl.where(is_shadow, num_shadow, num_real) * GROUP
    j = row // GROUP  # [BLOCK_QUERIES]
    position = (tl.where(is_shadow, num_real, 0) + j).to(tl.int64)
    query_head = head * GROUP + row % GROUP
    in_tile = row < num_rows

    # Keys count from here on from the first one that is not padding.
    begin = 0
    seen = tl.where(is_shadow, num_keys, num_keys - num_shadow)
    if padding is not None:
        padding += batch * num_keys
        begin, seen, has_holes = _without_padding(padding, seen)
    real_keys = num_keys - num_shadow - begin

    # A shadow query does not see own. Every own is in a tile of keys first_hidden ... first_hidden + hidden - 1.
    start = tl.load(block_start + batch) - begin
    own = start + j
    own = tl.where(is_shadow & (own >= 0) & (own < real_keys), own, -1).to(tl.int32)  # [BLOCK_QUERIES]
    first_hidden, hidden = _hidden_tiles(start, first_row, num_rows, real_keys, GROUP, BLOCK_QUERIES, BLOCK_KEYS)
    full = seen // BLOCK_KEYS
    first_hidden = tl.minimum(first_hidden, full)
    hidden = tl.where(is_shadow, tl.minimum(hidden, full - first_hidden), 0)
    if padding is not None:
        first_hidden = tl.where(has_holes, 0, first_hidden)
        hidden = tl.where(has_holes, full, hidden)
    clear = full - hidden

    query += batch * query_batch_stride
    query_row = query + query_head * query_head_stride + position * query_stride  # [BLOCK_QUERIES]
    key += batch * key_batch_stride + head * key_head_stride + begin * key_stride
    value += batch * value_batch_stride + head * value_head_stride + begin * value_stride
    dtype: tl.constexpr = query.dtype.element_ty
    precise: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    column = tl.arange(0, FIRST)
    q = tl.load(query_row[:, None] + column[None, :], mask=in_tile[:, None] & (column < WIDTH)[None, :], other=0.0)
    mixed = tl.zeros((BLOCK_QUERIES, FIRST), precise)
    if SECOND:
        column_2 = FIRST + tl.arange(0, SECOND)
        wanted_2 = in_tile[:, None] & (column_2 < WIDTH)[None, :]
        q_2 = tl.load(query_row[:, None] + column_2[None, :], mask=wanted_2, other=0.0)
        mixed_2 = tl.zeros((BLOCK_QUERIES, SECOND), precise)

    best = tl.full((BLOCK_QUERIES,), float("-inf"), precise)  # of the scores before scaling
    total = tl.zeros((BLOCK_QUERIES,), precise)
    scale = tl.full((), factor, precise) + tl.full((), factor_rest, precise)
    for masked in tl.static_range(2):  # first the tiles that are seen whole, then those that are not
        for step in range(clear if masked else 0, tl.cdiv(seen, BLOCK_KEYS) if masked else clear):
            if masked:
                block = tl.where(step - clear < hidden, first_hidden + step - clear, step)
            else:
                block = step + tl.where(step >= first_hidden, hidden, 0)
            number = block * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
            present = number < seen  # [BLOCK_KEYS]
            first_key = (block * BLOCK_KEYS).to(tl.int64)
            keys = key + first_key * key_stride
            values = value + first_key * value_stride
            k = _load_rows(keys, key_stride, column, present if masked else None, BLOCK_KEYS, WIDTH)
            scores = multiply_add(q, tl.trans(k), tl.zeros((BLOCK_QUERIES, BLOCK_KEYS), precise))
            if SECOND:
                k = _load_rows(keys, key_stride, column_2, present if masked else None, BLOCK_KEYS, WIDTH)
                scores = multiply_add(q_2, tl.trans(k), scores)
            if NEGATE:
                scores = -scores
            if masked:
                if padding is not None:
                    present = present & (tl.load(padding + begin + number, mask=present, other=0) != 0)
                scores = tl.where(present[None, :] & (number[None, :] != own[:, None]), scores, float("-inf"))
            new_best = tl.maximum(best, tl.max(scores, axis=1))
            base = new_best
            if masked:
                base = tl.where(new_best == float("-inf"), 0.0, new_best)
            # Not scores * scale - base * scale: of one product rounded and one fused, a large difference may be left.
            weight = tl.exp2((scores - base[:, None]) * scale)
            fade = tl.exp2((best - base) * scale)
            best = new_best
            total = total * fade + tl.sum(weight, axis=1)
            w = narrowed(weight, dtype)
            v = _load_rows(values, value_stride, column, present if masked else None, BLOCK_KEYS, WIDTH)
            mixed = multiply_add(w, v, mixed * fade[:, None])
            if SECOND:
                v = _load_rows(values, value_stride, column_2, present if masked else None, BLOCK_KEYS, WIDTH)
                mixed_2 = multiply_add(w, v, mixed_2 * fade[:, None])

    total = tl.where(total == 0.0, 1.0, total)  # a query that sees nothing: zeros
    out_row = output + ((batch * HEADS * GROUP + query_head) * num_queries + position) * WIDTH
    mixed = narrowed(mixed / total[:, None], dtype)
    tl.store(out_row[:, None] + column[None, :], mixed, mask=in_tile[:, None] & (column < WIDTH)[None, :])
    if SECOND:
        mixed_2 = narrowed(mixed_2 / total[:, None], dtype)
        tl.store(out_row[:, None] + column_2[None, :], mixed_2, mask=wanted_2)


def shadow_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_shadow: int,
    block_start: Tensor,
    key_padding_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    if not output.numel():
        return output
    batch, query_heads, num_queries, width = query.shape
    heads, num_keys = key.shape[1], key.shape[2]
    group = query_heads // heads
    entry = "shadow_attention", shape_class(query.dtype, width)
    tile = config(*entry, query.device)
    rows = (num_queries - num_shadow) * group, num_shadow * group
    block_queries, programs = _tiling(rows, batch * heads, tile["BLOCK_QUERIES"])
    first, second = parts(width, block_queries)
    num_warps = tile["num_warps"] * block_queries // tile["BLOCK_QUERIES"]
    scale = width**-0.5 if scale is None else scale
    factor = max(abs(scale) * math.log2(math.e), 2.0**-126)  # 0 would turn the -inf of a hidden key into NaN
    rounded = ctypes.c_float(factor).value
    launch(
        _shadow_attention,
        (programs,),
        {
            "query": query,
            "key": key,
            "value": value,
            "block_start": block_start,
            "padding": key_padding_mask,
            "output": output,
            "num_queries": num_queries,
            "num_keys": num_keys,
            "num_shadow": num_shadow,
            "query_batch_stride": query.stride(0),
            "query_head_stride": query.stride(1),
            "query_stride": query.stride(2),
            "key_batch_stride": key.stride(0),
            "key_head_stride": key.stride(1),
            "key_stride": key.stride(2),
            "value_batch_stride": value.stride(0),
            "value_head_stride": value.stride(1),
            "value_stride": value.stride(2),
            "factor": rounded,
            "factor_rest": factor - rounded,
        },
        {
            "NEGATE": scale < 0,
            "HEADS": heads,
            "GROUP": group,
            "WIDTH": width,
            "FIRST": first,
            "SECOND": second,
            "BLOCK_QUERIES": block_queries,
            "BLOCK_KEYS": tile["BLOCK_KEYS"],
        },
        Options(num_warps, tile["num_stages"], fp_fusion=True, entry=entry),
    )
    return output


def parts(width: int, block: int) -> tuple[int, int]:
    """d as one or two powers of two (the second may be 0), for tiles of ``block`` queries.

    Two where that pads less, as 96 = 64 + 32, and where one would be wider than the tile is high: Triton then gives
    every warp all queries and a part of the keys, and each maximum has to cross warps.
    """
    whole = max(16, triton.next_power_of_2(width))
    first, rest = whole // 2, max(16, triton.next_power_of_2(max(width - whole // 2, 1)))
    if first >= 16 and (first + rest < whole or whole > block >= first):
        return first, rest
    return whole, 0


def shape_class(dtype: torch.dtype, width: int) -> str:
    """Shapes that share a configuration."""
    limits = {2: (64, 128, 256), 4: (96, 128), 8: ()}[dtype.itemsize]
    limit = next((f"d <= {limit}" for limit in limits if width <= limit), "wider")
    return f"{dtype.itemsize} bytes, {limit}"


def _tiling(rows: tuple[int, int], sequences: int, block: int) -> tuple[int, int]:
    """Rows of a tile, and how many tiles ``rows`` of each kind make in ``sequences``; no tile is halved below 64."""
    programs = sequences * sum(triton.cdiv(kind, block) for kind in rows)
    if block >= 128 and (programs < _ENOUGH_PROGRAMS or max(rows) <= block // 2):
        return _tiling(rows, sequences, block // 2)
    return block, programs
