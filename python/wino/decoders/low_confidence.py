"""LLaDA's own decoder: a fixed number of most confident tokens a step (docs/spec.md section 4, arXiv 2502.09992)."""

from __future__ import annotations

import torch
from torch import Tensor

import wino_kernels

from ..config import GenerationConfig
from .base import BlockState, Decoder, uniform_draws


class LowConfidence(Decoder):
    """Splits a block's masks evenly over its steps; the first ``remainder`` steps take one more."""

    def __init__(self, config: GenerationConfig, mask_id: int, batch: int, device: torch.device) -> None:
        super().__init__(config, mask_id, batch, device)
        total = config.max_new_tokens if config.steps is None else config.steps
        self.block_steps = total // (config.max_new_tokens // config.block_size)
        self.masks_at_start = torch.zeros(batch, dtype=torch.int64, device=device)

    def start_blocks(self, state: BlockState, starting: Tensor) -> None:
        self.masks_at_start.copy_(torch.where(starting, state.masked.sum(-1), self.masks_at_start))

    def update(self, state: BlockState, token_ids: Tensor, confidence: Tensor) -> Tensor:
        if self.config.remasking == "random":
            confidence = torch.where(confidence.isnan(), confidence, uniform_draws(state.row_seeds))
        remainder = self.masks_at_start % self.block_steps
        count = self.masks_at_start // self.block_steps + (state.block_step < remainder)
        _, status = wino_kernels.accept_(state.tokens, state.masked, token_ids, confidence, count=count)
        return status
