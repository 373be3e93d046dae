"""accept_remask_ on the CPU (docs/spec.md sections 3, 3a, 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from wino_kernels import _C
from wino_kernels.cpu.exchange import HAS_EXCHANGE
from wino_kernels.limits import exact_fraction


def accept_remask_ordinary(
    tokens: Tensor,
    masked: Tensor,
    revocable: Tensor,
    token_ids: Tensor,
    confidence: Tensor,
    last_accepted: Tensor,
    mask_id: int,
    threshold: Tensor,
    threshold_back: Tensor,
    accept_fraction: float = 0.7,
    min_accept: int = 5,
    max_accept: int = 20,
    verify_last: bool = False,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """``accept_remask_`` where the native module finds every argument valid and dense; else None, with nothing done."""
    if not (HAS_EXCHANGE and 0.0 <= accept_fraction <= 1.0):
        return None
    numerator, denominator = exact_fraction(accept_fraction)
    results: tuple[Tensor, Tensor, Tensor] | None = _C.accept_remask_ordinary(
        tokens,
        masked,
        revocable,
        token_ids,
        confidence,
        last_accepted,
        mask_id,
        threshold,
        threshold_back,
        numerator,
        denominator,
        min_accept,
        max_accept,
        verify_last,
        torch.get_num_threads(),
    )
    return results


def accept_remask_(
    tokens: Tensor,
    masked: Tensor,
    revocable: Tensor,
    token_ids: Tensor,
    confidence: Tensor,
    last_accepted: Tensor,
    mask_id: int,
    threshold: Tensor,
    threshold_back: Tensor,
    accept_fraction: float = 0.7,
    min_accept: int = 5,
    max_accept: int = 20,
    verify_last: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    rule = (mask_id, threshold, threshold_back, accept_fraction, min_accept, max_accept, verify_last)
    results = accept_remask_ordinary(tokens, masked, revocable, token_ids, confidence, last_accepted, *rule)
    if results is not None:
        return results
    B, K = tokens.shape
    accepted = torch.empty_like(last_accepted)
    remasked = torch.empty_like(last_accepted)
    status = torch.empty_like(last_accepted)
    _C.accept_remask(
        B,
        K,
        tokens.data_ptr(),
        tokens.stride(0),
        masked.data_ptr(),
        masked.stride(0),
        revocable.data_ptr(),
        revocable.stride(0),
        token_ids.data_ptr(),
        K,
        confidence.data_ptr(),
        K,
        last_accepted.data_ptr(),
        1,
        mask_id,
        threshold.data_ptr(),
        threshold.dim(),
        threshold_back.data_ptr(),
        threshold_back.dim(),
        *exact_fraction(accept_fraction),
        min_accept,
        max_accept,
        verify_last,
        accepted.data_ptr(),
        remasked.data_ptr(),
        status.data_ptr(),
        torch.get_num_threads(),
    )
    return accepted, remasked, status


accept_remask_.if_valid = accept_remask_ordinary  # type: ignore[attr-defined]
