"""linear_score_tokens on the CPU (docs/spec.md section 6): product and scores in one native call, tile by tile."""

from __future__ import annotations

import torch
from torch import Tensor

from wino_kernels import _C
from wino_kernels.cpu.addresses import DTYPES, address, per_row
from wino_kernels.cpu.exchange import HAS_EXCHANGE
from wino_kernels.cpu.linear import linear


def linear_score_tokens(
    hidden: Tensor,
    weight: Tensor,
    candidate_ids: Tensor,
    bias: Tensor | None = None,
    temperature: Tensor | None = None,
    seed: Tensor | None = None,
    round_to: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    token_ids = torch.empty_like(candidate_ids)
    confidence = torch.empty_like(candidate_ids, dtype=torch.float64)
    rows = hidden.reshape(-1, hidden.shape[-1])
    _C.linear_score_tokens(
        DTYPES[hidden.dtype],
        DTYPES[round_to or hidden.dtype],
        candidate_ids.numel(),
        rows.stride(0),
        rows.data_ptr(),
        linear(weight, bias),
        candidate_ids.data_ptr(),
        *per_row(temperature),
        address(seed),
        token_ids.data_ptr(),
        confidence.data_ptr(),
        torch.get_num_threads(),
    )
    return token_ids, confidence


def linear_score_tokens_ordinary(
    hidden: Tensor,
    weight: Tensor,
    candidate_ids: Tensor,
    bias: Tensor | None = None,
    temperature: Tensor | None = None,
    seed: Tensor | None = None,
    round_to: torch.dtype | None = None,
) -> tuple[Tensor, Tensor] | None:
    """``linear_score_tokens`` where the native module finds every argument valid and dense; else None."""
    rounding = -1 if round_to is None else DTYPES.get(round_to)
    if not HAS_EXCHANGE or rounding is None:
        return None
    token_ids = torch.empty_like(candidate_ids)
    confidence = torch.empty_like(candidate_ids, dtype=torch.float64)
    given = hidden, weight, candidate_ids, bias, temperature, seed, rounding
    done = _C.linear_score_tokens_ordinary(*given, token_ids, confidence, torch.get_num_threads())
    return (token_ids, confidence) if done else None


linear_score_tokens.if_valid = linear_score_tokens_ordinary  # type: ignore[attr-defined]
