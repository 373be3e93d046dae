"""What a user would run instead, operator by operator: pieces of the published loop, and others for torch.compile.

The loop itself, and the scoring and the step that are timed here, are :mod:`wino.benchmark.published`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wino.benchmark.published import PublishedBlock, published

__all__ = ["BLOCK", "COMPILED", "MASK_ID", "Published", "Step", "make_step", "published"]

MASK_ID = 126336
PROMPT, GENERATION, BLOCK = 128, 256, 128
THRESHOLD, THRESHOLD_BACK = 0.6, 0.9


def max_and_exp_sum(logits: Tensor) -> Tensor:
    """The confidence alone, the least a compiled formulation has to do: no token id."""
    values = logits.float()
    return 1 / (values - values.amax(-1, keepdim=True)).exp().sum(-1)


def max_index_and_exp_sum(logits: Tensor) -> tuple[Tensor, Tensor]:
    values = logits.float()
    best, token_ids = values.max(-1, keepdim=True)
    return token_ids[:, 0], 1 / (values - best).exp().sum(-1)


def argmax_and_softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    values = logits.float()
    return values.argmax(-1), values.softmax(-1).amax(-1)


COMPILED = (max_and_exp_sum, max_index_and_exp_sum, argmax_and_softmax)


class Step(NamedTuple):
    """State of ``batch`` sequences in the middle of their first block, and what a forward pass said about it."""

    tokens: Tensor  # [B, K] int64
    masked: Tensor  # [B, K] bool
    revocable: Tensor  # [B, K] bool
    last: Tensor  # [B] int32
    token_ids: Tensor  # [B, K] int64
    confidence: Tensor  # [B, K] float32


def make_step(batch: int, block: int = BLOCK) -> Step:
    generator = torch.Generator().manual_seed(0)
    masked = torch.rand(batch, block, generator=generator) < 0.6
    token_ids = torch.randint(1000, (batch, block), generator=generator)
    tokens = torch.where(masked, MASK_ID, torch.randint(1000, (batch, block), generator=generator))
    token_ids = torch.where(masked, token_ids, tokens)
    last = torch.full((batch,), 12, dtype=torch.int32)
    return Step(tokens, masked, ~masked, last, token_ids, torch.rand(batch, block, generator=generator))


class Published(PublishedBlock):
    """One sequence of a :class:`Step` in the published loop's layout, scored."""

    def __init__(self, step: Step, row: int) -> None:
        size = step.tokens.shape[1]
        length = PROMPT + GENERATION + size
        tokens = torch.full((1, length), MASK_ID)
        tokens[0, :PROMPT] = 0
        tokens[0, PROMPT : PROMPT + size] = step.tokens[row]
        super().__init__(tokens, PROMPT, size, mask_id=MASK_ID, threshold=THRESHOLD, threshold_back=THRESHOLD_BACK)
        self.masked[0, self.block] = step.masked[row]
        self.filled[0, self.shadow] = step.revocable[row]
        self.last = step.last[row].clone().long()
        self.drafted = torch.zeros(1, length, dtype=torch.int64)
        self.drafted[0, self.block] = step.token_ids[row]
        self.probability = torch.zeros(1, length, dtype=torch.float64)
        self.probability[0, self.block] = step.confidence[row].double()
        self.probability[0, self.shadow] = step.confidence[row].double()

    def step(self) -> None:
        """From the scored logits to the next state; the scoring itself is not part of it."""
        self.accept(self.drafted, self.probability)
