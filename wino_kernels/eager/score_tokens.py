"""score_tokens, the definition (docs/spec.md sections 3 and 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from wino_kernels.eager.philox import gumbel_noise

# Rows are independent: taking them in groups only bounds the float64 and int64 intermediates.
_ELEMENTS_AT_ONCE = 1 << 23

DRAFT, SKIP = -1, -2


def score_tokens(
    logits: Tensor, candidate_ids: Tensor, temperature: Tensor | None = None, seed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    vocabulary = logits.shape[-1]
    rows = logits.reshape(-1, vocabulary)
    group = max(1, _ELEMENTS_AT_ONCE // vocabulary)
    ids = candidate_ids.reshape(-1)
    token_ids = torch.empty_like(ids)
    confidence = torch.empty_like(ids, dtype=torch.float64)
    if temperature is not None:
        # Added, not moved: a host scalar then reaches another device as a kernel's argument, without a copy.
        temperature = (torch.zeros_like(candidate_ids, dtype=torch.float32) + temperature).view(-1)
    for start in range(0, len(ids), group):
        part = slice(start, start + group)
        noise = None if temperature is None or seed is None else (temperature[part], seed.reshape(-1)[part])
        token_ids[part], confidence[part] = _score_rows(rows[part], ids[part], noise)
    return token_ids.view(candidate_ids.shape), confidence.view(candidate_ids.shape)


def _score_rows(logits: Tensor, ids: Tensor, noise: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    vocabulary = logits.shape[-1]
    draft = ids == DRAFT
    finite = logits.amax(-1).isfinite()  # false for NaN, +inf, or nothing but -inf

    perturbed = logits.float()
    draftable = finite
    if noise is not None:
        temperature, seed = noise
        perturbed = perturbed + temperature[:, None] * gumbel_noise(seed, vocabulary)
        draftable = finite & temperature.isfinite() & (temperature >= 0)
    drafted = torch.where(draftable, perturbed.argmax(-1), 0)  # argmax takes the lowest of equal ones
    token_ids = torch.where(draft, drafted, ids)

    inside = (token_ids >= 0) & (token_ids < vocabulary)
    exact = logits.double()
    largest = exact.argmax(-1, keepdim=True)
    top = exact.gather(1, largest)
    others = exact.scatter(1, largest, -torch.inf)  # [rows, V]
    second = others.amax(-1)
    # What the others add up to, relative to the largest, by way of the second's share in it: a softmax has the same
    # bits with any number of threads. The largest one's own 1 is added last: beside it the others would lose digits.
    rest = torch.where(second > -torch.inf, (second - top[:, 0]).exp() / torch.softmax(others, -1).amax(-1), 0.0)
    distance = exact.gather(1, torch.where(inside, token_ids, 0)[:, None]) - top
    probability = distance[:, 0].exp() / (1.0 + rest)
    valid = torch.where(draft, draftable, finite & inside)
    confidence = torch.where(valid, probability, torch.nan)
    return token_ids, torch.where(ids == SKIP, 0.0, confidence)
