"""linear_score_tokens on the CPU (SPEC section 6): Torch's matrix product a tile of V at a time, folded natively."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wino_kernels import _C
from wino_kernels.cpu.addresses import DTYPES, address, per_row
from wino_kernels.cpu.score_tokens import score_tokens
from wino_kernels.cpu.tiles import most_rows, tile_width

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
    number, columns = candidate_ids.numel(), hidden.shape[-1]
    round_to = round_to or hidden.dtype
    # Rounding elsewhere than to the input's dtype starts from float32 products, as a float32 head would give them.
    compute = hidden.dtype if round_to == hidden.dtype else torch.float32
    width = tile_width(number, compute, 0 if compute == weight.dtype else columns)
    most = most_rows(compute, columns)
    skips = number > 0 and int(candidate_ids.min()) <= _SKIP
    if number <= most and len(weight) <= width and not skips:
        if compute != hidden.dtype:
            hidden, weight, bias = hidden.float(), weight.float(), None if bias is None else bias.float()
        return score_tokens(F.linear(hidden, weight, bias).to(round_to), candidate_ids, temperature, seed)

    rows, ids = hidden.reshape(-1, columns), candidate_ids.view(-1)
    token_ids, confidence = torch.full_like(ids, _SKIP), torch.zeros(number)
    wanted = (ids != _SKIP).nonzero().view(-1)
    for first in range(0, len(wanted), most):
        some = wanted[first : first + most]
        heat = temperature.view(-1)[some] if temperature is not None and temperature.dim() else temperature
        noise = heat, None if seed is None else seed.view(-1)[some]
        with torch.no_grad():  # products go to a buffer
            scores = _score_rows(rows[some].to(compute), weight, ids[some], bias, *noise, round_to)
        token_ids[some], confidence[some] = scores
    return token_ids.view(candidate_ids.shape), confidence.view(candidate_ids.shape)


def _score_rows(
    rows: Tensor,
    weight: Tensor,
    ids: Tensor,
    bias: Tensor | None,
    temperature: Tensor | None,
    seed: Tensor | None,
    round_to: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """A tile of the vocabulary at a time; ``rows`` ``[rows, H]`` are of the products' dtype.

    Tiles share their buffers: freeing and allocating megabytes in turn leaves the C library with several times as many.
    """
    number, vocabulary, threads = len(rows), len(weight), torch.get_num_threads()
    converts, rounds = rows.dtype != weight.dtype, rows.dtype != round_to
    width = tile_width(number, rows.dtype, rows.shape[1] if converts else 0)
    products = rows.new_empty(number * width)
    rounded = rows.new_empty(number * width if rounds else 0, dtype=round_to)
    converted = rows.new_empty(width * rows.shape[1] if converts else 0)
    bias = None if bias is None else bias.to(rows.dtype)
    state = torch.empty(number * _C.tile_row_bytes // 8, dtype=torch.int64)
    _C.linear_score_tokens_begin(number, state.data_ptr())

    for first in range(0, vocabulary, width):
        columns = _in_dtype(weight[first : first + width], converted).t()
        logits = products[: number * columns.shape[1]].view(number, -1)  # [rows, width]
        if bias is None:
            torch.mm(rows, columns, out=logits)
        else:
            torch.addmm(bias[first : first + width], rows, columns, out=logits)
        logits = _in_dtype(logits, rounded)
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


def _in_dtype(tensor: Tensor, buffer: Tensor) -> Tensor:
    """``tensor``, copied into ``buffer`` where that has been given space for it."""
    return buffer[: tensor.numel()].view(tensor.shape).copy_(tensor) if buffer.numel() else tensor
