"""What a user would run instead: the authors' decoding loop as published, transcribed.

Source: ``decoding_wino`` in LLaDA/decoding.py of https://github.com/Feng-Hong/WINO-DLLM (commit 84964c7), greedy. Every
tensor operation and every wait for the device is kept, in its order: logits of every position, prompt included; a
dense (1, 1, L, L) mask; a softmax in float64; some forty small operations on arrays as long as the sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .timing import Clock

LAST_ACCEPTED_AT_START = 30


def published(logits: Tensor, replace: Callable[[Tensor], None] | None = None) -> tuple[Tensor, Tensor]:
    """Score logits (..., V): the argmax and its float64 probability (...).

    ``replace``, if given, writes other tokens into the argmax before their probabilities are read.
    """
    token_ids = torch.argmax(logits, dim=-1)
    if replace is not None:
        replace(token_ids)
    probabilities = F.softmax(logits.to(torch.float64), dim=-1)
    return token_ids, torch.gather(probabilities, -1, token_ids[..., None])[..., 0]


class PublishedBlock:
    """One block of one sequence: every array spans prompt, generation and shadow block, L in all.

    Attributes:
        tokens: (1, L) int64.
        masked: (1, L) bool, what is still to be filled.
        filled: (1, L) bool, in the shadow block's columns: what may be taken back.
        last: how many tokens the step before accepted.
    """

    def __init__(
        self, tokens: Tensor, start: int, size: int, *, mask_id: int, threshold: float, threshold_back: float
    ) -> None:
        self.tokens, self.mask_id = tokens, mask_id
        self.threshold, self.threshold_back = threshold, threshold_back
        self.block, self.shadow = slice(start, start + size), slice(-size, None)
        self.masked = tokens == mask_id
        self.masked[:, self.block.stop :] = False
        self.filled = torch.full_like(self.masked, False)
        self.filled[:, self.shadow] = ~self.masked[:, self.block]
        self.last: int | Tensor = LAST_ACCEPTED_AT_START

    def position_ids(self) -> Tensor:
        """(L,): a shadow token has the position of the token it verifies."""
        size, device = self.block.stop - self.block.start, self.tokens.device
        real = torch.arange(self.tokens.shape[1] - size, device=device)
        return torch.cat([real, torch.arange(self.block.start, self.block.stop, device=device)])

    def attention_mask(self) -> Tensor:
        """(1, 1, L, L) bool, the table of docs/spec.md section 2."""
        length, size, device = self.tokens.shape[1], self.block.stop - self.block.start, self.tokens.device
        mask = torch.ones(1, 1, length, length, dtype=torch.bool).to(device)
        mask[:, :, :, self.shadow] = False
        mask[:, :, self.shadow, self.shadow] = torch.ones(size, size, dtype=torch.bool).to(device)
        mask[:, :, self.shadow, self.block] = ~torch.eye(size, dtype=torch.bool).to(device)
        return mask

    def score(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Token and probability (1, L) of every position: the draft, and what stands there in the shadow block."""

        def verify(token_ids: Tensor) -> None:
            filled = torch.zeros_like(self.filled)
            filled[:, self.block] = self.filled[:, self.shadow]
            token_ids[self.filled] = self.tokens[filled]

        return published(logits, verify)

    def accept(self, token_ids: Tensor, probability: Tensor) -> Tensor:
        """From the scored logits to the next state; returns whether anything is still masked, () bool."""
        most = min(max(int(self.masked.sum() * 0.7), 5), 20)
        drafted = torch.where(self.masked, token_ids, self.tokens)
        confidence = torch.where(self.masked, probability, -torch.inf)
        verified = torch.where(self.filled, probability, torch.inf)

        accepted = confidence > self.threshold
        if accepted.sum() > most:
            _, indices = torch.topk(confidence, k=most, largest=True)
            accepted = torch.zeros_like(confidence, dtype=torch.bool)
            accepted.view(-1)[indices] = True
        elif not accepted.any():
            accepted.view(-1)[torch.argmax(confidence)] = True
        self.tokens[accepted] = drafted[accepted]

        number = accepted.sum()
        if number > 1:
            remasked = verified < self.threshold_back
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
        self.tokens[reopened] = self.mask_id
        self.masked[accepted] = False
        self.masked[reopened] = True
        written = torch.zeros_like(accepted)
        written[:, self.shadow] = accepted[:, self.block]
        self.filled[written] = True
        self.filled[remasked] = False
        self.last = number
        return self.masked.any()


class PublishedDecode(NamedTuple):
    """Result of :func:`decode`: (1, P + G) int64 tokens, and the number of forward passes."""

    sequences: Tensor
    steps: int


@torch.no_grad()
def decode(
    model: Any,
    prompt: Tensor,
    *,
    max_new_tokens: int,
    block_length: int,
    mask_id: int,
    threshold: float,
    threshold_back: float,
    clock: Clock | None = None,
    watch: Callable[[PublishedBlock, Tensor, Tensor], object] = lambda block, logits, probability: None,
) -> PublishedDecode:
    """Decode one prompt (1, P) int64 as the published loop does.

    ``model(ids, attention_mask=..., position_ids=...).logits`` is all it calls. ``clock`` is told where each phase
    ends: bookkeeping, head, scoring; where the trunk ends within a forward pass, only a hook on the model's final norm
    can tell it. ``watch`` sees each step's block, logits and probabilities before tokens are accepted.
    """
    clock = clock or Clock()
    first = prompt.shape[1]
    length = first + max_new_tokens + block_length
    tokens = torch.full((1, length), mask_id, dtype=torch.long).to(prompt.device)
    tokens[:, :first] = prompt.clone()
    steps = 0
    for start in range(first, first + max_new_tokens, block_length):
        block = PublishedBlock(
            tokens, start, block_length, mask_id=mask_id, threshold=threshold, threshold_back=threshold_back
        )
        position_ids, attention_mask = block.position_ids(), block.attention_mask()
        running = block.masked.any()
        while running:
            clock.lap("bookkeeping")
            logits = model(tokens, attention_mask=attention_mask, position_ids=position_ids).logits
            clock.lap("head")
            token_ids, probability = block.score(logits)
            clock.lap("scoring")
            watch(block, logits, probability)
            running = block.accept(token_ids, probability)
            steps += 1
    clock.lap("bookkeeping")
    return PublishedDecode(tokens[:, : first + max_new_tokens], steps)
