"""linear_score_tokens on the CPU (SPEC section 6): Torch's matrix product a tile of V at a time, folded natively."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wino_kernels import _C
from wino_kernels.cpu.addresses import DTYPES, address, per_row

# Bytes of logits (and of a converted weight tile) alive at once: about what the last-level cache keeps for us.
_TILE_BYTES = 4 << 20
_TILE_STEP = 1024
_SKIP = -2


def linear_score_tokens(
    hidden: Tensor,
    weight: Tensor,
    candidate_ids: Tensor,
    bias: Tensor | None = None,
    temperature: Tensor | None = None,
    seed: Tensor | None = None,
    round_to: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    token_ids = torch.full_like(candidate_ids, _SKIP)
    confidence = torch.zeros_like(candidate_ids, dtype=torch.float32)
    ids = candidate_ids.view(-1)
    wanted = (ids != _SKIP).nonzero().view(-1)  # [rows]
    if not len(wanted):
        return token_ids, confidence

    rows = hidden.reshape(-1, hidden.shape[-1])[wanted]  # [rows, H]
    if temperature is not None and temperature.dim():
        temperature = temperature.view(-1)[wanted]
    if seed is not None:
        seed = seed.view(-1)[wanted]
    token_ids.view(-1)[wanted], confidence.view(-1)[wanted] = _score_rows(
        rows, weight, ids[wanted], bias, temperature, seed, round_to or hidden.dtype
    )
    return token_ids, confidence


def _score_rows(
    rows: Tensor,
    weight: Tensor,
    ids: Tensor,
    bias: Tensor | None,
    temperature: Tensor | None,
    seed: Tensor | None,
    round_to: torch.dtype,
) -> tuple[Tensor, Tensor]:
    number, vocabulary = len(rows), len(weight)
    # Rounding elsewhere than to the input's dtype starts from float32 products, as a float32 head would give them.
    compute = rows.dtype if round_to == rows.dtype else torch.float32
    rows, threads = rows.to(compute), torch.get_num_threads()
    state = torch.empty(number * _C.tile_row_bytes // 8, dtype=torch.int64)
    _C.linear_score_tokens_begin(number, state.data_ptr())

    width = _tile_width(number, 0 if compute == weight.dtype else rows.shape[1], compute)
    for first in range(0, vocabulary, width):
        tile = slice(first, first + width)
        logits = F.linear(rows, weight[tile].to(compute), None if bias is None else bias[tile].to(compute))
        logits = logits.to(round_to)  # [rows, width]
        _C.linear_score_tokens_tile(
            logits.data_ptr(),
            DTYPES[round_to],
            number,
            logits.shape[1],
            logits.stride(0),
            first,
            ids.data_ptr(),
            *per_row(temperature),
            address(seed),
            state.data_ptr(),
            threads,
        )

    token_ids, confidence = torch.empty_like(ids), torch.empty(number, dtype=torch.float32)
    _C.linear_score_tokens_end(
        number,
        vocabulary,
        ids.data_ptr(),
        *per_row(temperature),
        address(seed),
        state.data_ptr(),
        token_ids.data_ptr(),
        confidence.data_ptr(),
    )
    return token_ids, confidence


def _tile_width(rows: int, converted: int, dtype: torch.dtype) -> int:
    """Vocabulary entries per tile, a multiple of ``_TILE_STEP``; ``converted``: columns of weight to convert, or 0."""
    return max(_TILE_BYTES // (max(rows, converted) * dtype.itemsize) // _TILE_STEP, 1) * _TILE_STEP
