"""Unfold trajectories into training samples, and collate those into padded batches (docs/spec.md section 5)."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .records import Trajectory, randomised

#: What a position is to the loss of one sample.
NEITHER, TARGET, CANDIDATE = 0, 1, 2


class Sample(NamedTuple):
    """One accepted step of one trajectory.

    Attributes:
        number: the sample's place in its data set; what is random about it follows from this.
        prompt_length: P.
        tokens: P + G final token ids.
        input_ids: the same with [MASK] wherever a token was not yet accepted.
        roles: P + G of ``NEITHER``, ``TARGET`` (accepted at this step), ``CANDIDATE`` (the block's other masks).
    """

    number: int
    prompt_length: int
    tokens: list[int]
    input_ids: list[int]
    roles: list[int]


def steps_of(trajectory: Trajectory) -> list[int]:
    """The steps that accepted something, in order."""
    return sorted({step for step in trajectory.trajectory_accepted if step >= 0})


def unfold(trajectory: Trajectory, step: int, block_length: int, mask_id: int, index: int = 0) -> Sample:
    """The sample of accepted step ``step``: what was accepted before is given, what this step accepted is the target.

    Fixed positions (accepted at -1) are given too; the candidates are the other masks of the first target's block.
    """
    accepted = trajectory.trajectory_accepted
    targets = [i for i, at in enumerate(accepted) if at == step]
    if not targets:
        raise ValueError(f"step: {trajectory.unique_id!r} accepted nothing at step {step}")
    first = targets[0] // block_length * block_length
    prompt, answer = list(trajectory.prompt_ids), list(trajectory.generated_ids)
    roles = [NEITHER] * len(prompt + answer)
    for i, at in enumerate(accepted):
        if at == step:
            roles[len(prompt) + i] = TARGET
        elif at > step and first <= i < first + block_length:
            roles[len(prompt) + i] = CANDIDATE
    shown = [token if at < step else mask_id for token, at in zip(answer, accepted, strict=True)]
    return Sample(index, len(prompt), prompt + answer, prompt + shown, roles)


class TrajectorySamples(Dataset[Sample]):
    """Every accepted step of every trajectory.

    Args:
        trajectories: validated records.
        mask_id: the model's [MASK].
        block_length: for records whose metadata names none; None: the whole answer is one block.
        order: ``"wino"``, or ``"random"`` for the ablation that keeps tokens and number per step but not the order.
        seed: of the random order.

    Raises:
        ValueError: nothing to train on, or an unknown ``order``.
    """

    def __init__(
        self,
        trajectories: Iterable[Trajectory],
        mask_id: int,
        *,
        block_length: int | None = None,
        order: str = "wino",
        seed: int = 0,
    ) -> None:
        if order not in ("wino", "random"):
            raise ValueError(f"order: expected 'wino' or 'random', got {order!r}")
        self._trajectories = [t if order == "wino" else randomised(t, seed) for t in trajectories]
        self._mask_id = mask_id
        self._block_length = block_length
        self._steps = [(i, step) for i, t in enumerate(self._trajectories) for step in steps_of(t)]
        if not self._steps:
            raise ValueError("trajectories: expected at least one record with an accepted step, got none")

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> Sample:
        which, step = self._steps[index]
        trajectory = self._trajectories[which]
        block_length = trajectory.metadata.get("block_length") or self._block_length
        return unfold(trajectory, step, block_length or len(trajectory.generated_ids), self._mask_id, index)


def collate(samples: Sequence[Sample], pad_id: int) -> dict[str, Tensor]:
    """A batch padded on the right.

    Returns:
        ``index`` (B,), ``prompt_length`` (B,) and ``length`` (B,) int64; ``tokens``, ``input_ids`` and ``roles`` (B, L)
        int64, padded with ``pad_id``, ``pad_id`` and ``NEITHER``; ``attention_mask`` (B, L) bool, False on padding.
    """
    longest = max(len(sample.tokens) for sample in samples)

    def padded(rows: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])

    length = torch.tensor([len(sample.tokens) for sample in samples])
    return {
        "index": torch.tensor([sample.number for sample in samples]),
        "prompt_length": torch.tensor([sample.prompt_length for sample in samples]),
        "length": length,
        "tokens": padded([sample.tokens for sample in samples], pad_id),
        "input_ids": padded([sample.input_ids for sample in samples], pad_id),
        "roles": padded([sample.roles for sample in samples], NEITHER),
        "attention_mask": torch.arange(longest) < length[:, None],
    }


def mask_answers(batch: dict[str, Tensor], mask_id: int, seed: str) -> tuple[Tensor, Tensor]:
    """The mixed-in LLaDA objective's input: k ~ U{1..G} of each row's G answer tokens masked.

    Row i's noise follows from ``seed`` and ``index[i]`` alone: neither the other rows of its batch nor how a batch is
    spread over processes changes it.

    Returns:
        Noisy tokens (B, L) and which are masked (B, L) bool.
    """
    masked = torch.zeros_like(batch["tokens"], dtype=torch.bool)
    rows = zip(*(batch[name].tolist() for name in ("index", "prompt_length", "length")), strict=True)
    for row, (index, start, end) in enumerate(rows):
        rng = random.Random(f"{seed}/{index}")
        chosen = rng.sample(range(start, end), rng.randint(1, end - start))
        masked[row, chosen] = True
    return batch["tokens"].masked_fill(masked, mask_id), masked
