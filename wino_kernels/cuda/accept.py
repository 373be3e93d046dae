"""accept_ in CUDA C++ (docs/spec.md sections 4 and 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from wino_kernels.cuda.accept_remask import block
from wino_kernels.cuda.native import _C_cuda, launch, per_row


def accept_(
    tokens: Tensor,
    masked: Tensor,
    token_ids: Tensor,
    confidence: Tensor,
    threshold: Tensor | None = None,
    count: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    accepted, status = (torch.empty(tokens.shape[0], dtype=torch.int32, device=tokens.device) for _ in range(2))
    launch(
        _C_cuda.accept,
        tokens,
        *tokens.shape,
        *block(tokens, masked),
        token_ids.data_ptr(),
        confidence.data_ptr(),
        threshold is not None,
        *per_row(threshold),
        *per_row(count),
        count is not None and count.dtype is torch.int64,
        accepted.data_ptr(),
        status.data_ptr(),
    )
    return accepted, status
