"""What happened at each step: for people watching, and for WINO+ (docs/spec.md section 5)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StepRecord:
    """One forward pass of one sequence.

    Positions count from the start of the generation region; ``block`` is 0 for "prophet", which looks at all of it.
    ``accepted_*`` are the tokens written in this step with their draft confidences; ``remasked_*`` the tokens taken
    back with their verification confidences.
    """

    step: int
    block: int
    accepted_positions: list[int]
    accepted_tokens: list[int]
    accepted_confidences: list[float]
    remasked_positions: list[int]
    remasked_tokens: list[int]
    remasked_confidences: list[float]


def record_step(
    *,
    step: int,
    block: int,
    block_length: int,
    tokens_before: Tensor,
    tokens_after: Tensor,
    masked_before: Tensor,
    masked_after: Tensor,
    confidence: Tensor,
) -> StepRecord:
    """The record of one sequence's step from its block (K,) before and after the update."""
    accepted = (masked_before & ~masked_after).nonzero().flatten()
    remasked = (~masked_before & masked_after).nonzero().flatten()
    offset = block * block_length
    return StepRecord(
        step=step,
        block=block,
        accepted_positions=(accepted + offset).tolist(),
        accepted_tokens=tokens_after[accepted].tolist(),
        accepted_confidences=confidence[accepted].tolist(),
        remasked_positions=(remasked + offset).tolist(),
        remasked_tokens=tokens_before[remasked].tolist(),
        remasked_confidences=confidence[remasked].tolist(),
    )
