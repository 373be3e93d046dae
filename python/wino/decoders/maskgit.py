"""MaskGIT's decoder, with which MMaDA draws pictures (Chang et al., arXiv 2202.04200)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import wino_kernels

from ..config import MASKGIT_STEPS, GenerationConfig
from .base import BlockState, Decoder, keep_rows, uniform_draws

_LEAST = 1e-20  # what logarithms are taken of at least, as in MMaDA's code


class MaskGit(Decoder):
    """Draws every masked token each step and keeps those it is surest of, on a cosine schedule.

    After step i of S, floor(N cos(pi/2 (i + 1) / S)) of a block's N masks are left, but at least one fewer than before
    and at least one, until the last step fills all. Surest: log p + T_i g with Gumbel noise g; T_i starts at
    ``choice_temperature`` and is multiplied by 1 - (j + 1) / S after every step j, as MMaDA's code does.
    """

    def __init__(self, config: GenerationConfig, mask_id: int, batch: int, device: torch.device) -> None:
        super().__init__(config, mask_id, batch, device)
        blocks = config.max_new_tokens // config.block_size
        steps = MASKGIT_STEPS if config.steps is None else config.steps // blocks
        progress = torch.tensor([1.0 * (step + 1) / steps for step in range(steps)])
        self.masked_share = torch.cos(progress * math.pi * 0.5).to(device)  # float32 as there: floors may hang on it
        self.noise = (config.choice_temperature * torch.cumprod(1.0 - progress.double(), 0)).float().to(device)
        self.masks_at_start = torch.zeros(batch, dtype=torch.int64, device=device)

    def start_blocks(self, state: BlockState, starting: Tensor) -> None:
        self.masks_at_start.copy_(torch.where(starting, state.masked.sum(-1), self.masks_at_start))

    def update(self, state: BlockState, token_ids: Tensor, confidence: Tensor) -> Tensor:
        last = len(self.masked_share) - 1
        step = state.block_step.clamp(max=last)
        left = state.masked.sum(-1)
        wanted = (self.masks_at_start * self.masked_share[step]).floor().long()
        remaining = torch.where(step < last, torch.minimum(left - 1, wanted).clamp(min=1), 0)
        surety = confidence.clamp(min=_LEAST).log()
        if self.config.choice_temperature > 0:
            draws = uniform_draws(state.row_seeds)
            surety = surety + self.noise[step][:, None] * -(-draws.clamp(min=_LEAST).log()).clamp(min=_LEAST).log()
        _, status = wino_kernels.accept_(state.tokens, state.masked, token_ids, surety, count=left - remaining)
        return status

    def keep(self, rows: Tensor) -> None:
        """Only ``rows`` of the sequences go on; the schedule is that of all."""
        keep_rows(self, rows, shared=("masked_share", "noise"))
