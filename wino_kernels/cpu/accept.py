"""accept_ on the CPU (docs/spec.md sections 4 and 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from wino_kernels import _C
from wino_kernels.cpu.addresses import per_row


def accept_(
    tokens: Tensor,
    masked: Tensor,
    token_ids: Tensor,
    confidence: Tensor,
    threshold: Tensor | None = None,
    count: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    B, K = tokens.shape
    accepted = torch.empty(B, dtype=torch.int32)
    status = torch.empty(B, dtype=torch.int32)
    _C.accept(
        B,
        K,
        tokens.data_ptr(),
        tokens.stride(0),
        masked.data_ptr(),
        masked.stride(0),
        token_ids.data_ptr(),
        K,
        confidence.data_ptr(),
        K,
        *per_row(threshold),
        *per_row(count),
        count is not None and count.dtype is torch.int64,
        accepted.data_ptr(),
        status.data_ptr(),
        torch.get_num_threads(),
    )
    return accepted, status
