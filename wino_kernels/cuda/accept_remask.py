"""accept_remask_ in CUDA C++ (docs/spec.md sections 3, 3a, 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from wino_kernels.cuda.native import Argument, _C_cuda, launch, per_row
from wino_kernels.limits import exact_fraction


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
    accepted, remasked, status = (torch.empty_like(last_accepted) for _ in range(3))
    launch(
        _C_cuda.accept_remask,
        tokens,
        *tokens.shape,
        *block(tokens, masked, revocable),
        token_ids.data_ptr(),
        confidence.data_ptr(),
        last_accepted.data_ptr(),
        *rule(mask_id, threshold, threshold_back, accept_fraction, min_accept, max_accept, verify_last),
        accepted.data_ptr(),
        remasked.data_ptr(),
        status.data_ptr(),
    )
    return accepted, remasked, status


def block(*tensors: Tensor) -> list[int]:
    """Address and stride between sequences of each in-place ``(B, K)`` tensor."""
    return [number for tensor in tensors for number in (tensor.data_ptr(), tensor.stride(0))]


def rule(
    mask_id: int,
    threshold: Tensor,
    threshold_back: Tensor,
    accept_fraction: float,
    min_accept: int,
    max_accept: int,
    verify_last: bool,
) -> tuple[Argument, ...]:
    """The rule's numbers in the order of csrc/cuda/bindings.cpp."""
    fraction = exact_fraction(accept_fraction)
    return mask_id, *per_row(threshold), *per_row(threshold_back), *fraction, min_accept, max_accept, verify_last
