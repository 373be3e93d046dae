"""What a user would run instead, operator by operator: pieces of the published loop, and others for torch.compile.

The loop itself, and the scoring and the step that are timed here, are :mod:`wino.benchmark.published`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wino.benchmark.published import PublishedBlock, published
from wino_kernels import eager
from wino_kernels.eager.norm_qkv_rope import rms_norm
from wino_kernels.eager.shadow_attention import visibility
from wino_kernels.eager.shadow_trunk import by

__all__ = [
    "BLOCK",
    "COMPILED",
    "MASK_ID",
    "LossBatch",
    "Published",
    "Step",
    "make_loss_batch",
    "make_step",
    "masked_trunk",
    "published",
    "published_loss",
]

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
    confidence: Tensor  # [B, K] float64


def make_step(batch: int, block: int = BLOCK) -> Step:
    generator = torch.Generator().manual_seed(0)
    masked = torch.rand(batch, block, generator=generator) < 0.6
    token_ids = torch.randint(1000, (batch, block), generator=generator)
    tokens = torch.where(masked, MASK_ID, torch.randint(1000, (batch, block), generator=generator))
    token_ids = torch.where(masked, token_ids, tokens)
    last = torch.full((batch,), 12, dtype=torch.int32)
    return Step(tokens, masked, ~masked, last, token_ids, torch.rand(batch, block, generator=generator).double())


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
        self.probability[0, self.block] = step.confidence[row]
        self.probability[0, self.shadow] = step.confidence[row]

    def step(self) -> None:
        """From the scored logits to the next state; the scoring itself is not part of it."""
        self.accept(self.drafted, self.probability)


class LossBatch(NamedTuple):
    """One unfolded sample of a sequence of 448: 16 targets and 94 other masks in its block, a frozen head."""

    hidden: Tensor  # [448, H], requires grad
    weight: Tensor  # [V, H]
    labels: Tensor  # [448] int64
    target: Tensor  # [448] bool
    candidate: Tensor  # [448] bool


def make_loss_batch(vocabulary: int, width: int, dtype: torch.dtype) -> LossBatch:
    generator = torch.Generator().manual_seed(0)
    length, targets, masks = 448, 16, 110
    hidden = torch.randn(length, width, generator=generator).to(dtype)
    weight = (torch.randn(vocabulary, width, generator=generator) * 6 / width**0.5).to(dtype)
    labels = torch.nn.functional.linear(hidden, weight).argmax(-1)
    labels[::3] = torch.randint(0, vocabulary, (len(labels[::3]),), generator=generator)
    masked = length - 128 + torch.randperm(128, generator=generator)[:masks]
    target, candidate = torch.zeros(2, length, dtype=torch.bool)
    target[masked[:targets]], candidate[masked[targets:]] = True, True
    return LossBatch(hidden.requires_grad_(), weight, labels, target, candidate)


def published_loss(batch: LossBatch, threshold: float = 0.6, threshold_back: float = 0.9) -> Tensor:
    """docs/spec.md section 5 as public trainers compute it: logits of the whole sequence, three softmaxes over them."""
    logits = torch.nn.functional.linear(batch.hidden, batch.weight).float()
    cross_entropy = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none")
    entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    with torch.no_grad():
        top_p, top = logits.softmax(-1).max(-1)
        sure = batch.target & (top == batch.labels) & (top_p < threshold_back)
        wrong = batch.candidate & (top != batch.labels) & (top_p > threshold)

    def mean(values: Tensor, chosen: Tensor) -> Tensor:
        return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp(min=1)

    return mean(cross_entropy, batch.target) + 0.1 * mean(entropy, sure) - mean(entropy, wrong)


def masked_trunk(length: int, shadow: int, start: Tensor) -> Callable[..., Tensor]:
    """shadow_trunk of separate operations around the library's attention, under dense masks that are made once.

    The last layer is pruned as ours is: of its L rows only the leaving ones, as many as shadow rows, and those ask.
    """
    masks = {queries: visibility(queries, length, shadow, start)[:, None] for queries in (length, 2 * shadow)}

    def attend(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=masks[query.shape[2]])

    return by(eager.norm_qkv_rope, attend, eager.out_norm_swiglu, rms_norm)
