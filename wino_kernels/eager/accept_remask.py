"""accept_remask_, the definition (docs/spec.md sections 3 and 3a)."""

from __future__ import annotations

import torch
from torch import Tensor

from wino_kernels.limits import exact_fraction

RUNNING, DONE, NAN_MET = 0, 1, 2


def per_row(value: Tensor) -> Tensor:
    """A host scalar stays 0-dim; ``(B,)`` becomes a column."""
    return value[:, None] if value.dim() else value


def largest(value: Tensor, among: Tensor, count: Tensor | int) -> Tensor:
    """Per row the ``count`` largest of ``value`` within ``among``; of equal values the lowest position goes first.

    ``value``, ``among``: ``(B, K)``; ``count``: ``(B,)`` or one number. Returns bool ``(B, K)``.
    """
    position = torch.arange(value.shape[1], device=value.device)
    other, own = value[:, None, :], value[:, :, None]  # [B, K, K]
    before = (other > own) | ((other == own) & (position[None, :] < position[:, None]))
    rank = (before & among[:, None, :]).sum(-1)  # how many of `among` go before this one
    return among & (rank < (per_row(count) if isinstance(count, Tensor) else count))


def accept_remask_(
    tokens: Tensor,
    masked: Tensor,
    revocable: Tensor,
    token_ids: Tensor,
    confidence: Tensor,
    last_accepted: Tensor,
    mask_id: int,
    threshold: Tensor,
    threshold_back: Tensor,
    accept_fraction: float = 0.7,
    min_accept: int = 5,
    max_accept: int = 20,
    verify_last: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    # Step 1: how many may be accepted.
    numerator, denominator = exact_fraction(accept_fraction)
    num_masked = masked.sum(1)  # [B]
    limit = (num_masked * numerator // denominator).clamp(min=min_accept).clamp(max=max_accept)

    # Step 3: accept what is above the threshold, at most `limit`, at least one.
    compared = confidence.float()
    accepted = largest(confidence, masked & (compared > per_row(threshold)), limit)
    accepted = torch.where(accepted.any(1, keepdim=True), accepted, largest(confidence, masked, 1))
    num_accepted = accepted.sum(1)

    # Step 5, or section 3a's pass over a full block: re-mask what is below the other threshold, fewer than `last`.
    last = last_accepted.long()
    final_pass = (num_masked == 0) & (last > 1) & verify_last
    verifying = ((num_accepted > 1) | final_pass)[:, None]
    remasked = revocable & (compared < per_row(threshold_back))
    too_many = (remasked.sum(1) >= last)[:, None]
    remasked = torch.where(too_many, largest(-confidence, revocable, last - 1), remasked) & verifying
    num_remasked = remasked.sum(1)

    # A sequence that met NaN, or that was done before, stays as it is.
    nan_met = (confidence.isnan() & (masked | (revocable & verifying))).any(1)
    untouched = nan_met | ((num_masked == 0) & ~final_pass)
    accepted = accepted & ~untouched[:, None]
    remasked = remasked & ~untouched[:, None]
    num_accepted = torch.where(untouched, 0, num_accepted)
    num_remasked = torch.where(untouched, 0, num_remasked)

    # Step 6.
    tokens.copy_(torch.where(remasked, mask_id, torch.where(accepted, token_ids, tokens)))
    masked.copy_((masked & ~accepted) | remasked)
    revocable.copy_((revocable | accepted) & ~remasked)
    last_after_pass = torch.where(num_remasked == 0, 0, last - num_remasked)
    new_last = torch.where(final_pass, last_after_pass, num_accepted)
    last_accepted.copy_(torch.where(untouched, last, new_last))

    pass_ahead = (last_accepted > 1) & verify_last
    status = torch.where(masked.any(1) | pass_ahead, RUNNING, DONE)
    status = torch.where(nan_met, NAN_MET, status)
    return num_accepted.int(), num_remasked.int(), status.int()
