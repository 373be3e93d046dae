"""wino_step_, the definition (docs/spec.md section 6): score_tokens on one row per position, then accept_remask_."""

from __future__ import annotations

import torch
from torch import Tensor

from wino_kernels.eager.accept_remask import accept_remask_
from wino_kernels.eager.score_tokens import DRAFT, SKIP, score_tokens


def wino_step_(
    logits: Tensor,
    tokens: Tensor,
    masked: Tensor,
    revocable: Tensor,
    last_accepted: Tensor,
    temperature: Tensor | None,
    seed: Tensor | None,
    mask_id: int,
    threshold: Tensor,
    threshold_back: Tensor,
    accept_fraction: float = 0.7,
    min_accept: int = 5,
    max_accept: int = 20,
    verify_last: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    candidate_ids = torch.where(masked, DRAFT, torch.where(revocable, tokens, SKIP))
    token_ids, confidence = score_tokens(logits, candidate_ids, temperature, seed)
    return accept_remask_(
        tokens,
        masked,
        revocable,
        token_ids,
        confidence,
        last_accepted,
        mask_id,
        threshold,
        threshold_back,
        accept_fraction,
        min_accept,
        max_accept,
        verify_last,
    )
