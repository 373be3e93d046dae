"""wino_step_ on the CPU (docs/spec.md sections 3 and 6): one native call for the rows' scores and the rule."""

from __future__ import annotations

import torch
from torch import Tensor

from wino_kernels import _C
from wino_kernels.cpu.addresses import DTYPES, address, per_row
from wino_kernels.limits import exact_fraction


def wino_step_(
    logits: Tensor,
    tokens: Tensor,
    masked: Tensor,
    revocable: Tensor,
    last_accepted: Tensor,
    temperature: Tensor | None,
    seed: Tensor | None,
    mask_id: int,
    threshold: Tensor,
    threshold_back: Tensor,
    accept_fraction: float = 0.7,
    min_accept: int = 5,
    max_accept: int = 20,
    verify_last: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    B, K, V = logits.shape
    accepted = torch.empty_like(last_accepted)
    remasked = torch.empty_like(last_accepted)
    status = torch.empty_like(last_accepted)
    _C.wino_step(
        logits.data_ptr(),
        DTYPES[logits.dtype],
        B,
        K,
        V,
        logits.stride(0),
        logits.stride(1),
        *per_row(temperature),
        address(seed),
        tokens.data_ptr(),
        tokens.stride(0),
        masked.data_ptr(),
        masked.stride(0),
        revocable.data_ptr(),
        revocable.stride(0),
        last_accepted.data_ptr(),
        1,
        mask_id,
        *per_row(threshold),
        *per_row(threshold_back),
        *exact_fraction(accept_fraction),
        min_accept,
        max_accept,
        verify_last,
        accepted.data_ptr(),
        remasked.data_ptr(),
        status.data_ptr(),
        torch.get_num_threads(),
    )
    return accepted, remasked, status
