"""accept_ as a Triton kernel (docs/spec.md section 4): one program per sequence, its block in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wino_kernels.triton.accept_remask import (
    DONE,
    NAN_MET,
    RUNNING,
    block_constants,
    block_options,
    count,
    flags,
    largest,
    of_sequence,
    only_if,
)
from wino_kernels.triton.launch import launch, scalar_or_rows


def accept_(
    tokens: Tensor,
    masked: Tensor,
    token_ids: Tensor,
    confidence: Tensor,
    threshold: Tensor | None = None,
    count: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    num_accepted = torch.empty(len(tokens), dtype=torch.int32, device=tokens.device)
    status = torch.empty_like(num_accepted)
    if len(tokens):
        least, per_sequence = scalar_or_rows(count if threshold is None else threshold)
        launch(
            accept_blocks,
            (len(tokens),),
            {
                "tokens": tokens,
                "tokens_stride": tokens.stride(0),
                "masked": masked,
                "masked_stride": masked.stride(0),
                "token_ids": token_ids,
                "confidence": confidence,
                "wanted": least,
                "num_accepted": num_accepted,
                "status": status,
            },
            block_constants(tokens) | {"PER_SEQUENCE": per_sequence, "BY_COUNT": threshold is None},
            block_options("accept_", tokens),
        )
    return num_accepted, status


@triton.jit(do_not_specialize=["wanted"])
def accept_blocks(
    tokens,
    tokens_stride,
    masked,
    masked_stride,
    token_ids,
    confidence,
    wanted,
    num_accepted,
    status,
    K: tl.constexpr,
    KP: tl.constexpr,
    PER_SEQUENCE: tl.constexpr,
    BY_COUNT: tl.constexpr,
):
    """One program per sequence. wanted: how many to accept, or the confidence that is enough."""
    sequence = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, KP)
    tokens += sequence * tokens_stride
    masked += sequence * masked_stride
    M = flags(masked, k, K)  # [KP]
    token = tl.load(token_ids + sequence * K + k, mask=k < K, other=0)
    c = tl.load(confidence + sequence * K + k, mask=k < K, other=0.0)
    own = of_sequence(wanted, sequence, PER_SEQUENCE)

    num_masked = count(M)
    if BY_COUNT:
        accepted = M
        number = tl.minimum(tl.maximum(own.to(tl.int64), 0), num_masked).to(tl.int32)
    else:
        accepted = M & (c.to(tl.float32) >= own)
        number = tl.maximum(count(accepted), tl.minimum(num_masked, 1))
    if number != count(accepted):
        accepted = largest(c, M, number)

    nan_met = count((c != c) & M) > 0
    accepted = only_if(nan_met == 0, accepted)
    remaining = num_masked - count(accepted)
    tl.store(tokens + k, token, mask=accepted)
    tl.store(masked + k, ~accepted, mask=accepted)
    tl.store(num_accepted + sequence, count(accepted))
    tl.store(status + sequence, tl.where(nan_met, NAN_MET, tl.where(remaining > 0, RUNNING, DONE)))
