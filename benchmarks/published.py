"""What a user would run instead: the authors' decoding loop as published, and formulations for torch.compile."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MASK_ID = 126336
PROMPT, GENERATION, BLOCK = 128, 256, 128
THRESHOLD, THRESHOLD_BACK = 0.6, 0.9


def published(logits: Tensor) -> tuple[Tensor, Tensor]:
    """As the authors' decoding loop scores a draft: argmax, float64 softmax, gather."""
    token_ids = torch.argmax(logits, dim=-1)
    probabilities = F.softmax(logits.to(torch.float64), dim=-1)
    return token_ids, torch.gather(probabilities, -1, token_ids[:, None])[:, 0]


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


class Published:
    """One sequence of the published loop: every array spans prompt, generation and shadow block."""

    def __init__(self, step: Step, row: int) -> None:
        size = step.tokens.shape[1]
        length = PROMPT + GENERATION + size
        self.block, self.shadow = slice(PROMPT, PROMPT + size), slice(length - size, length)
        self.tokens = torch.full((1, length), MASK_ID)
        self.tokens[0, :PROMPT] = 0
        self.tokens[0, self.block] = step.tokens[row]
        self.masked = torch.zeros(1, length, dtype=torch.bool)
        self.masked[0, self.block] = step.masked[row]
        self.filled = torch.zeros(1, length, dtype=torch.bool)  # in the shadow block's columns
        self.filled[0, self.shadow] = step.revocable[row]
        self.last = step.last[row].clone().long()
        self.drafted = torch.zeros(1, length, dtype=torch.int64)
        self.drafted[0, self.block] = step.token_ids[row]
        self.probability = torch.zeros(1, length, dtype=torch.float64)
        self.probability[0, self.block] = step.confidence[row].double()
        self.probability[0, self.shadow] = step.confidence[row].double()

    def step(self) -> None:
        """From the scored logits to the next state; the scoring itself is not part of it."""
        most = min(max(int(self.masked.sum() * 0.7), 5), 20)
        drafted = torch.where(self.masked, self.drafted, self.tokens)
        confidence = torch.where(self.masked, self.probability, -torch.inf)
        verified = torch.where(self.filled, self.probability, torch.inf)

        accepted = confidence > THRESHOLD
        if accepted.sum() > most:
            _, indices = torch.topk(confidence, k=most, largest=True)
            accepted = torch.zeros_like(confidence, dtype=torch.bool)
            accepted.view(-1)[indices] = True
        elif not accepted.any():
            accepted.view(-1)[torch.argmax(confidence)] = True
        self.tokens[accepted] = drafted[accepted]

        number = accepted.sum()
        if number > 1:
            remasked = verified < THRESHOLD_BACK
            if remasked.sum() >= self.last:
                flat = verified.view(-1)
                chosen = torch.zeros_like(flat, dtype=torch.bool)
                _, indices = torch.topk(flat, k=int(self.last) - 1, largest=False)
                chosen[indices] = True
                remasked = chosen.view(verified.shape)
        else:
            remasked = torch.zeros_like(accepted)

        reopened = torch.zeros_like(remasked)
        reopened[:, self.block] = remasked[:, self.shadow]
        self.tokens[reopened] = MASK_ID
        self.masked[accepted] = False
        self.masked[reopened] = True
        written = torch.zeros_like(accepted)
        written[:, self.shadow] = accepted[:, self.block]
        self.filled[written] = True
        self.filled[remasked] = False
        self.last = number
        self.masked.any()  # the loop's condition
