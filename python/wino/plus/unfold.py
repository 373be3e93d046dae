"""Unfold trajectories into training samples, and collate those into padded batches (docs/spec.md section 5)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
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
        first_share: only this share of the samples, the first ones.

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
        first_share: float = 1.0,
    ) -> None:
        if order not in ("wino", "random"):
            raise ValueError(f"order: expected 'wino' or 'random', got {order!r}")
        self._trajectories = [t if order == "wino" else randomised(t, seed) for t in trajectories]
        self._mask_id = mask_id
        self._block_length = block_length
        steps = [(i, step) for i, t in enumerate(self._trajectories) for step in steps_of(t)]
        self._steps = steps[: int(first_share * len(steps))]
        if not self._steps:
            raise ValueError("trajectories: expected at least one record with an accepted step, got none")

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> Sample:
        which, step = self._steps[index]
        trajectory = self._trajectories[which]
        block_length = trajectory.metadata.get("block_length") or self._block_length
        return unfold(trajectory, step, block_length or len(trajectory.generated_ids), self._mask_id, index)


class Limits(NamedTuple):
    """What a record has to be to be trained on; see :class:`wino.plus.recipe.Stage`."""

    allow_incorrect: bool = False
    max_prompt_length: int | None = None
    max_length: int | None = None


def within(
    trajectories: Iterable[Trajectory], limits: Limits, left_out: Counter[str], end_id: int | None = None
) -> Iterator[Trajectory]:
    """Pass on what ``limits`` allow; why others are left out is counted in ``left_out``.

    Args:
        end_id: answers end with the first of these; None: they stay as they are.
    """
    for trajectory in trajectories:
        if end_id is not None:
            trajectory = ended(trajectory, end_id)
        length = trajectory.prompt_length + len(trajectory.generated_ids)
        if not (trajectory.correct or limits.allow_incorrect):
            left_out["not correct"] += 1
        elif limits.max_prompt_length is not None and trajectory.prompt_length > limits.max_prompt_length:
            left_out[f"prompt longer than {limits.max_prompt_length} tokens"] += 1
        elif limits.max_length is not None and length > limits.max_length:
            left_out[f"longer than {limits.max_length} tokens"] += 1
        else:
            yield trajectory


def ended(trajectory: Trajectory, end_id: int) -> Trajectory:
    """``trajectory`` up to and including the first ``end_id`` of its answer."""
    if end_id not in trajectory.generated_ids:
        return trajectory
    end = trajectory.generated_ids.index(end_id) + 1
    proposed = trajectory.trajectory_proposed
    return replace(
        trajectory,
        generated_ids=trajectory.generated_ids[:end],
        trajectory_accepted=trajectory.trajectory_accepted[:end],
        trajectory_proposed=None if proposed is None else proposed[:end],
    )


def collate(samples: Sequence[Sample], pad_id: int, visible_length: int | None = None) -> dict[str, Tensor]:
    """A batch padded on the right, to its longest sample; or to ``visible_length`` with padding that is attended.

    Returns:
        ``index`` (B,), ``prompt_length`` (B,) and ``length`` (B,) int64; ``tokens``, ``input_ids`` and ``roles`` (B, L)
        int64, padded with ``pad_id``, ``pad_id`` and ``NEITHER``; ``attention_mask`` (B, L) bool, False on padding that
        is not attended.
    """
    longest = max(len(sample.tokens) for sample in samples) if visible_length is None else visible_length

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
        "attention_mask": torch.arange(longest) < (length if visible_length is None else length * 0 + longest)[:, None],
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
