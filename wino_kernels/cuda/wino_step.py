"""wino_step_ in CUDA C++ (docs/spec.md sections 3 and 6): one launch for the rows' scores and the rule."""

from __future__ import annotations

import torch
from torch import Tensor

from wino_kernels import workspace
from wino_kernels.cuda.accept_remask import block, rule
from wino_kernels.cuda.native import DTYPES, _C_cuda, address, launch, per_row


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
    accepted, remasked, status = (torch.empty_like(last_accepted) for _ in range(3))
    # Held until the launch: under graph capture nobody else does, and the second would be given the first one's memory.
    scratch = workspace.scratch(logits, _C_cuda.scratch_elements(B * K, V, B))
    counters = workspace.counters(logits, _C_cuda.counter_elements(B * K, B))
    launch(
        _C_cuda.wino_step,
        logits,
        logits.data_ptr(),
        DTYPES[logits.dtype],
        B,
        K,
        V,
        logits.stride(0),
        logits.stride(1),
        *per_row(temperature),
        address(seed),
        *block(tokens, masked, revocable),
        last_accepted.data_ptr(),
        *rule(mask_id, threshold, threshold_back, accept_fraction, min_accept, max_accept, verify_last),
        accepted.data_ptr(),
        remasked.data_ptr(),
        status.data_ptr(),
        scratch.data_ptr(),
        counters.data_ptr(),
    )
    return accepted, remasked, status
