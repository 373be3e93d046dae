"""How far a probability is from 1, where 1 - p would round it away, and logits that come near."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def missing(logits: Tensor, tokens: Tensor) -> Tensor:
    """1 - p of each row's token in float64, from the others' exponentials alone."""
    exact = logits.double()
    exponentials = (exact - exact.amax(-1, keepdim=True)).exp()
    own = exponentials.gather(-1, tokens[..., None])[..., 0]
    others = exponentials.scatter(-1, tokens[..., None], 0.0).sum(-1)
    return others / (own + others)


def assert_sure_enough(confidence: Tensor, logits: Tensor, tokens: Tensor) -> None:
    """docs/spec.md section 6: |(1 - confidence) - (1 - p)| <= 4e-6 (1 - p) + 2e-16."""
    expected = missing(logits, tokens)
    error = ((1 - confidence) - expected).abs()
    assert confidence.dtype == torch.float64
    assert (error <= 4e-6 * expected + 2e-16).all(), f"largest relative error {(error / expected).max():.2e}"


def peaked(rows: int, vocabulary: int, dtype: torch.dtype, scale: float = 2.0) -> Tensor:
    """Random logits and above them one, which outweighs the others by up to 1e17 : 1; every third row bans tokens."""
    logits = torch.randn(rows, vocabulary) * scale
    logits[1::3, ::2] = -math.inf
    top = torch.randint(0, vocabulary, (rows,))
    height = logits.logsumexp(-1).nan_to_num(neginf=0.0) + torch.linspace(0, 40, rows)
    return logits.scatter(1, top[:, None], height[:, None]).to(dtype)


def adversarial(vocabulary: int, dtype: torch.dtype) -> Tensor:
    """Rows in which a running maximum, a lane or a part of the row is not what it usually is. At least 9 tokens."""
    place = torch.arange(vocabulary)
    rise = torch.linspace(-40.0, 40.0, vocabulary)
    spikes = torch.where(place % max(vocabulary // 7, 1) == 0, 8.0 * (place * 7 // vocabulary), -20.0)
    flat = torch.full((vocabulary,), -18.0)
    rows = [rise, rise.flip(0), spikes, spikes.flip(0), flat, torch.where(place < 4, 1e30, -1e30)]
    for at in (0, 1, vocabulary // 2, vocabulary - 2, vocabulary - 1):
        alone, tied, doubled = torch.full((vocabulary,), -math.inf), flat.clone(), flat.clone()
        alone[at] = -3.0
        tied[[at, vocabulary // 3]] = 12.0  # at most one half each
        doubled[at], doubled[vocabulary // 3] = 12.0, 11.0  # between a half and all
        lone = torch.full((vocabulary,), -87.0)  # nothing beside it
        lone[at] = 0.0
        sure = flat.clone()
        sure[at] = 14.0
        later = torch.where(place > at, -5.0, -60.0)  # what counts is behind the largest, or nothing is
        later[at] = 16.0
        rows += [alone, tied, doubled, lone, sure, later]
    return torch.stack(rows).clamp(min=-math.inf, max=torch.finfo(dtype).max).to(dtype)
