"""Prompts of several lengths as one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """``input_ids`` and ``attention_mask`` (B, P) int64 of prompts of any lengths, as :func:`wino.generate` takes.

    Raises:
        ValueError: no prompts, or an empty one.
    """
    if not prompts or not all(prompts):
        raise ValueError("prompts: expected at least one, none of them empty")
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask
