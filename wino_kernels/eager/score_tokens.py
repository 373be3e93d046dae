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
    confidence = torch.empty_like(ids, dtype=torch.float32)
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
    probabilities = torch.softmax(logits.double(), dim=-1)  # [rows, V]
    probability = probabilities.gather(1, torch.where(inside, token_ids, 0)[:, None])[:, 0].float()
    valid = torch.where(draft, draftable, finite & inside)
    confidence = torch.where(valid, probability, torch.nan)
    return token_ids, torch.where(ids == SKIP, 0.0, confidence)
