"""Accept everything the model is confident of (Fast-dLLM's rule, docs/spec.md section 4)."""

from __future__ import annotations

import torch
from torch import Tensor

import wino_kernels

from ..config import GenerationConfig
from .base import BlockState, Decoder, per_request


class ConfidenceThreshold(Decoder):
    """Accepts every draft with confidence >= ``threshold``, always at least the largest; never takes one back."""

    def __init__(self, config: GenerationConfig, mask_id: int, batch: int, device: torch.device) -> None:
        super().__init__(config, mask_id, batch, device)
        self.threshold = per_request(config.threshold, batch, device, torch.float32)

    def update(self, state: BlockState, token_ids: Tensor, confidence: Tensor) -> Tensor:
        _, status = wino_kernels.accept_(state.tokens, state.masked, token_ids, confidence, threshold=self.threshold)
        return status
