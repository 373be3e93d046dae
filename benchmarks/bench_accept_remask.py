"""accept_remask_ through torch.ops, against the same step in tensor operations as the published loop writes them.

pytest benchmarks/bench_accept_remask.py
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from conftest import Table, interleaved
from torch import Tensor

MASK_ID = 126336
PROMPT, GENERATION, BLOCK = 128, 256, 128
THRESHOLD, THRESHOLD_BACK = 0.6, 0.9
ROUNDS = 101


class Step(NamedTuple):
    """State of ``batch`` sequences in the middle of their first block, and what a forward pass said about it."""

    tokens: Tensor  # [B, K] int64
    masked: Tensor  # [B, K] bool
    revocable: Tensor  # [B, K] bool
    last: Tensor  # [B] int32
    token_ids: Tensor  # [B, K] int64
    confidence: Tensor  # [B, K] float32


def make_step(batch: int) -> Step:
    generator = torch.Generator().manual_seed(0)
    masked = torch.rand(batch, BLOCK, generator=generator) < 0.6
    token_ids = torch.randint(1000, (batch, BLOCK), generator=generator)
    tokens = torch.where(masked, MASK_ID, torch.randint(1000, (batch, BLOCK), generator=generator))
    token_ids = torch.where(masked, token_ids, tokens)
    last = torch.full((batch,), 12, dtype=torch.int32)
    return Step(tokens, masked, ~masked, last, token_ids, torch.rand(batch, BLOCK, generator=generator))


class Published:
    """One sequence of the published loop: every array spans prompt, generation and shadow block."""

    def __init__(self, step: Step, row: int) -> None:
        length = PROMPT + GENERATION + BLOCK
        self.block = slice(PROMPT, PROMPT + BLOCK)
        self.tokens = torch.full((1, length), MASK_ID)
        self.tokens[0, :PROMPT] = 0
        self.tokens[0, self.block] = step.tokens[row]
        self.masked = torch.zeros(1, length, dtype=torch.bool)
        self.masked[0, self.block] = step.masked[row]
        self.filled = torch.zeros(1, length, dtype=torch.bool)  # in the shadow block's columns
        self.filled[0, -BLOCK:] = step.revocable[row]
        self.last = step.last[row].clone().long()
        self.drafted = torch.zeros(1, length, dtype=torch.int64)
        self.drafted[0, self.block] = step.token_ids[row]
        self.probability = torch.zeros(1, length, dtype=torch.float64)
        self.probability[0, self.block] = step.confidence[row].double()
        self.probability[0, -BLOCK:] = step.confidence[row].double()

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
        reopened[:, self.block] = remasked[:, -BLOCK:]
        self.tokens[reopened] = MASK_ID
        self.masked[accepted] = False
        self.masked[reopened] = True
        written = torch.zeros_like(accepted)
        written[:, -BLOCK:] = accepted[:, self.block]
        self.filled[written] = True
        self.filled[remasked] = False
        self.last = number
        self.masked.any()  # the loop's condition


@pytest.mark.parametrize(("batch", "bar"), [(1, 8), (64, 200)])
def test_accept_remask(batch: int, bar: float, table: Table, two_threads: int) -> None:
    step = make_step(batch)
    threshold, threshold_back = torch.tensor(THRESHOLD), torch.tensor(THRESHOLD_BACK)
    tokens, masked, revocable, last = state = [tensor.clone() for tensor in step[:4]]
    sequences: list[Published] = []

    def restore(name: str) -> None:
        """The state from before the step, where a decoder keeps it: in the same buffers."""
        if name == "ours":
            for tensor, initial in zip(state, step[:4], strict=True):
                tensor.copy_(initial)
        else:
            sequences[:] = [Published(step, row) for row in range(batch)]

    def ours() -> None:
        torch.ops.wino.accept_remask_(
            tokens,
            masked,
            revocable,
            step.token_ids,
            step.confidence,
            last,
            mask_id=MASK_ID,
            threshold=threshold,
            threshold_back=threshold_back,
        )

    def published() -> None:
        for sequence in sequences:
            sequence.step()

    restore("published")
    published()
    ours()
    for row, sequence in enumerate(sequences):
        assert torch.equal(tokens[row], sequence.tokens[0, sequence.block])
        assert torch.equal(masked[row], sequence.masked[0, sequence.block])
        assert torch.equal(revocable[row], sequence.filled[0, -BLOCK:])
        assert last[row] == sequence.last

    seconds = interleaved({"published": published, "ours": ours}, ROUNDS, restore)
    table.time(f"accept_remask_ B={batch} K={BLOCK}: ours", seconds["ours"])
    table.time(f"accept_remask_ B={batch} K={BLOCK}: published", seconds["published"])
    table.ratio(f"accept_remask_ B={batch} K={BLOCK}: published / ours", seconds["published"], seconds["ours"], bar)
