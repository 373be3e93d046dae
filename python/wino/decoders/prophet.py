"""Prophet: LLaDA's decoder that commits to the answer once it is sure (docs/spec.md section 4, arXiv 2508.19982)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

import wino_kernels

from ..config import ANSWER_REGION, GenerationConfig
from ..models.head import Head
from .base import BlockState, Decoder

# Gap of the two largest logits at which to commit, while fewer than this many hundredths of the steps are done.
_PHASES = ((33, 7.5), (67, 5.0))
_LAST_GAP = 2.5


class Prophet(Decoder):
    """low_confidence, and an early exit.

    Scores the whole generation region each step, since a commit fills all of it: the loop's block is the region, and
    the blocks of ``block_length`` are kept here. The exit looks at the answer region's positions, filled ones included,
    or without ``answer_start`` at all masked positions; what it fills in is every position's draft.
    """

    def __init__(self, config: GenerationConfig, mask_id: int, batch: int, device: torch.device) -> None:
        super().__init__(config, mask_id, batch, device)
        self.length = config.block_length or config.max_new_tokens
        self.total = config.max_new_tokens if config.steps is None else config.steps
        self.block_steps = self.total // (config.max_new_tokens // self.length)
        self.block = torch.full((batch,), -1, dtype=torch.int64, device=device)
        self.block_step = torch.zeros(batch, dtype=torch.int64, device=device)
        self.masks_at_start = torch.zeros(batch, dtype=torch.int64, device=device)
        self.gap = torch.zeros(batch, dtype=torch.float32, device=device)

    def observe(self, state: BlockState, head: Head, hidden: Tensor) -> None:
        """Keep each sequence's mean gap for :meth:`update`."""
        start, gap_of = self.config.answer_start, partial(draft_gap, mask_id=self.mask_id - head.first)
        if start is not None:
            (gaps,) = head.each_tile(gap_of, hidden[:, start : start + ANSWER_REGION])
            self.gap.copy_(gaps.mean(-1))
            return
        (gaps,) = head.each_tile(gap_of, hidden)
        masks = state.masked.sum(-1).clamp(min=1)
        self.gap.copy_(torch.where(state.masked, gaps, 0.0).sum(-1) / masks)

    def update(self, state: BlockState, token_ids: Tensor, confidence: Tensor) -> Tensor:
        block_of = torch.arange(state.masked.shape[1], device=state.masked.device) // self.length
        current = torch.where(state.masked, block_of, block_of[-1] + 1).amin(-1)  # [B]
        own = state.masked & (block_of == current[:, None])
        entered = current != self.block
        self.block_step.copy_(torch.where(entered, 0, self.block_step))
        self.masks_at_start.copy_(torch.where(entered, own.sum(-1), self.masks_at_start))
        self.block.copy_(current)

        remainder = self.masks_at_start % self.block_steps
        count = self.masks_at_start // self.block_steps + (self.block_step < remainder)
        commit = self.gap >= self._needed(current * self.block_steps + self.block_step + 1)
        open_now = torch.where(commit[:, None], state.masked, own)
        count = torch.where(commit, state.masked.sum(-1), count)
        left = open_now.clone()
        _, status = wino_kernels.accept_(state.tokens, left, token_ids, confidence, count=count)
        state.masked.copy_(state.masked & ~(open_now & ~left))
        self.block_step.add_(1)
        return torch.where(status == 2, status, (~state.masked.any(-1)).to(status.dtype))

    def _needed(self, step: Tensor) -> Tensor:
        """The gap that commits at forward pass ``step`` (from 1) of ``total``."""
        needed = torch.full(step.shape, _LAST_GAP, device=step.device)
        for hundredths, gap in reversed(_PHASES):
            needed = torch.where(100 * step < hundredths * self.total, gap, needed)
        return needed


def draft_gap(logits: Tensor, mask_id: int) -> tuple[Tensor]:
    """What a draft's logit is above the largest other one of ``logits`` (..., V), float32; 0 for a tie, 0 if V = 1.

    Negative where the largest of all is the mask's, which is never drafted.
    """
    if logits.shape[-1] == 1:
        return (torch.zeros_like(logits[..., 0], dtype=torch.float32),)
    best, tokens = logits.topk(2, dim=-1)
    gap = best[..., 0].float() - best[..., 1].float()
    return (torch.where(tokens[..., 0] == mask_id, -gap, gap),)
