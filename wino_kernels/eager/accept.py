"""accept_, the definition (docs/spec.md sections 4 and 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from wino_kernels.eager.accept_remask import DONE, NAN_MET, RUNNING, largest, per_row


def accept_(
    tokens: Tensor,
    masked: Tensor,
    token_ids: Tensor,
    confidence: Tensor,
    threshold: Tensor | None = None,
    count: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    if threshold is not None:
        accepted = masked & ((confidence.float() >= per_row(threshold)) | largest(confidence, masked, 1))
    else:
        assert count is not None  # exactly one of the two, as checked by the caller
        accepted = largest(confidence, masked, count)

    nan_met = (confidence.isnan() & masked).any(1)
    accepted = accepted & ~nan_met[:, None]
    tokens.copy_(torch.where(accepted, token_ids, tokens))
    masked.copy_(masked & ~accepted)
    status = torch.where(masked.any(1), RUNNING, DONE)
    return accepted.sum(1).int(), torch.where(nan_met, NAN_MET, status).int()
