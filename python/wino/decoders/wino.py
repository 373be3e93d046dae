"""WINO: wide in, narrow out (docs/spec.md section 3, arXiv 2507.18578)."""

from __future__ import annotations

import torch
from torch import Tensor

import wino_kernels

from ..config import GenerationConfig
from .base import BlockState, Decoder, per_request


class Wino(Decoder):
    """Accepts drafts above ``threshold``, re-masks earlier tokens whose verification falls below ``threshold_back``."""

    uses_shadow = True

    def __init__(self, config: GenerationConfig, mask_id: int, batch: int, device: torch.device) -> None:
        super().__init__(config, mask_id, batch, device)
        self.threshold = per_request(config.threshold, batch, device, torch.float32)
        self.threshold_back = per_request(config.threshold_back, batch, device, torch.float32)

    def candidate_ids(self, state: BlockState) -> Tensor:
        return torch.where(state.masked, -1, torch.where(state.revocable, state.tokens, -2))

    def update(self, state: BlockState, token_ids: Tensor, confidence: Tensor) -> Tensor:
        *_, status = wino_kernels.accept_remask_(
            state.tokens,
            state.masked,
            state.revocable,
            token_ids,
            confidence,
            state.last_accepted,
            mask_id=self.mask_id,
            threshold=self.threshold,
            threshold_back=self.threshold_back,
            accept_fraction=self.config.accept_fraction,
            min_accept=self.config.min_accept,
            max_accept=self.config.max_accept,
            verify_last=self.config.verify_last,
        )
        return status
