"""accept_remask_ as a Triton kernel (docs/spec.md sections 3 and 3a): a program per sequence, block in registers."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from wino_kernels.limits import exact_fraction
from wino_kernels.triton.configs import config
from wino_kernels.triton.launch import Options, launch, scalar_or_rows

RUNNING = tl.constexpr(0)
DONE = tl.constexpr(1)
NAN_MET = tl.constexpr(2)
_LEAST = tl.constexpr(-(2**63))  # below the rank of every number
_MOST = tl.constexpr(2**63 - 1)

#: Numbers of the rule: kernels must not be compiled anew for each.
RULE_NUMBERS = ("mask_id", "numerator", "denominator", "min_accept", "max_accept")


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
    rule = mask_id, threshold, threshold_back, accept_fraction, min_accept, max_accept, verify_last
    arguments, constants, outputs = plan_rule(tokens, masked, revocable, last_accepted, *rule)
    if len(tokens):
        launch(
            accept_remask_blocks,
            (len(tokens),),
            {"token_ids": token_ids, "confidence": confidence} | arguments,
            constants,
            block_options("accept_remask_", tokens),
        )
    return outputs


def plan_rule(
    tokens: Tensor,
    masked: Tensor,
    revocable: Tensor,
    last_accepted: Tensor,
    mask_id: int,
    threshold: Tensor,
    threshold_back: Tensor,
    accept_fraction: float,
    min_accept: int,
    max_accept: int,
    verify_last: bool,
) -> tuple[dict[str, Any], dict[str, Any], tuple[Tensor, Tensor, Tensor]]:
    """Arguments and constants of a kernel that applies the rule, and the outputs it fills."""
    length = tokens.shape[1]
    numerator, denominator = exact_fraction(accept_fraction)
    outputs = torch.empty_like(last_accepted), torch.empty_like(last_accepted), torch.empty_like(last_accepted)
    arguments = {
        "tokens": tokens,
        "tokens_stride": tokens.stride(0),
        "masked": masked,
        "masked_stride": masked.stride(0),
        "revocable": revocable,
        "revocable_stride": revocable.stride(0),
        "last_accepted": last_accepted,
        "mask_id": mask_id,
        "threshold": scalar_or_rows(threshold)[0],
        "threshold_back": scalar_or_rows(threshold_back)[0],
        "numerator": numerator,
        "denominator": denominator,
        "min_accept": min(min_accept, length),  # more than the whole block is the whole block
        "max_accept": min(max_accept, max(length, 1)),
        "num_accepted": outputs[0],
        "num_remasked": outputs[1],
        "status": outputs[2],
    }
    constants = block_constants(tokens) | {
        "PER_DRAFT": threshold.dim(),
        "PER_BACK": threshold_back.dim(),
        "VERIFY_LAST": verify_last,
    }
    return arguments, constants, outputs


def block_constants(tokens: Tensor) -> dict[str, int]:
    length = tokens.shape[1]
    return {"K": length, "KP": triton.next_power_of_2(max(length, 1))}


def block_options(operator: str, tokens: Tensor) -> Options:
    shape_class = next((f"K <= {most}" for most in (128, 512) if tokens.shape[1] <= most), "K > 512")
    tuned = config(operator, shape_class, tokens.device)
    return Options(tuned["num_warps"], tuned["num_stages"], fp_fusion=False, entry=(operator, shape_class))


@triton.jit(do_not_specialize=RULE_NUMBERS)
def accept_remask_blocks(
    token_ids,
    confidence,
    tokens,
    tokens_stride,
    masked,
    masked_stride,
    revocable,
    revocable_stride,
    last_accepted,
    mask_id,
    threshold,
    threshold_back,
    numerator,
    denominator,
    min_accept,
    max_accept,
    num_accepted,
    num_remasked,
    status,
    K: tl.constexpr,
    KP: tl.constexpr,
    PER_DRAFT: tl.constexpr,
    PER_BACK: tl.constexpr,
    VERIFY_LAST: tl.constexpr,
):
    """One program per sequence."""
    sequence = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, KP)
    tokens += sequence * tokens_stride
    masked += sequence * masked_stride
    revocable += sequence * revocable_stride
    M = flags(masked, k, K)  # [KP]
    U = flags(revocable, k, K)
    last = tl.load(last_accepted + sequence)
    token = tl.load(token_ids + sequence * K + k, mask=k < K, other=0)
    c = tl.load(confidence + sequence * K + k, mask=k < K, other=0.0)

    draft = of_sequence(threshold, sequence, PER_DRAFT)
    back = of_sequence(threshold_back, sequence, PER_BACK)
    most = accept_limit(M, numerator, denominator, min_accept, max_accept)
    accepted, remasked, last, state = apply_rule(M, U, c, last, most, draft, back, VERIFY_LAST)
    write_block(accepted, remasked, k, token, mask_id, tokens, masked, revocable)
    write_step(accepted, remasked, last, state, sequence, last_accepted, num_accepted, num_remasked, status)


@triton.jit
def of_sequence(value, sequence, PER_SEQUENCE: tl.constexpr):
    """A number of the host's, or this sequence's own."""
    if PER_SEQUENCE:
        return tl.load(value + sequence)
    else:
        return value


@triton.jit
def flags(row, k, K: tl.constexpr):
    """A row of a bool tensor, False behind its end; compared, since the interpreter hands out its bytes."""
    return tl.load(row + k, mask=k < K, other=0) != 0


@triton.jit
def count(chosen):
    return tl.sum(chosen.to(tl.int32), 0)


@triton.jit
def only_if(condition, chosen):
    """``chosen``, or nothing; compared, since the interpreter makes an integer of a condition that it spreads."""
    return (chosen & condition) != 0


@triton.jit
def accept_limit(M, numerator, denominator, min_accept, max_accept):
    """Step 1: how many may be accepted."""
    share = numerator.to(tl.int64) * count(M) // denominator
    return tl.minimum(tl.maximum(share, min_accept), max_accept).to(tl.int32)


@triton.jit
def apply_rule(M, U, c, last, most, threshold, threshold_back, VERIFY_LAST: tl.constexpr):
    """Steps 3 and 5, or section 3a's pass over a full block.

    M, U: bool ``[KP]``, c: float64 ``[KP]``, the others numbers. Returns which positions are accepted and which are
    re-masked, what ``last`` becomes, and the status. In a sequence that stays as it is, none and ``last``.
    """
    num_masked = count(M)
    compared = c.to(tl.float32)
    accepted = M & (compared > threshold)
    num_accepted = count(accepted)
    if (num_masked > 0) & ((num_accepted > most) | (num_accepted == 0)):
        num_accepted = tl.where(num_accepted > most, tl.maximum(most, 1), 1)
        accepted = largest(c, M, num_accepted)

    final_pass = (num_masked == 0) & (last > 1) if VERIFY_LAST else num_masked < 0
    verifying = (num_accepted > 1) | final_pass
    verified = only_if(verifying, U)
    remasked = verified & (compared < threshold_back)
    num_remasked = count(remasked)
    if verifying & (num_remasked >= last):
        num_remasked = tl.maximum(last - 1, 0)
        remasked = largest(-c, U, num_remasked)

    nan_met = count((c != c) & (M | verified)) > 0
    touched = ((num_masked > 0) | final_pass) & (nan_met == 0)
    accepted = only_if(touched, accepted)
    remasked = only_if(touched, remasked)
    after_pass = tl.where(num_remasked > 0, last - num_remasked, 0)
    last = tl.where(touched, tl.where(final_pass, after_pass, num_accepted), last)
    running = count((M & ~accepted) | remasked) > 0
    if VERIFY_LAST:
        running |= last > 1
    return accepted, remasked, last, tl.where(nan_met, NAN_MET, tl.where(running, RUNNING, DONE))


@triton.jit
def largest(value, among, number):
    """The ``number`` largest of ``value`` within ``among``, which has as many; of equal ones the lowest positions."""
    rank = tl.where(among, rank_of(value), _LEAST)
    low = tl.min(tl.where(among, rank, _MOST), 0)
    high = tl.max(rank, 0)
    while low < high:  # the rank that ends the selection lies between them
        middle = (low | high) - ((low ^ high) >> 1)  # rounded up, without a sum that overflows
        found = count(rank >= middle)
        low = tl.where(found >= number, middle, low)
        high = tl.where(found > number, high, tl.where(found == number, middle, middle - 1))
    equal = (rank == low).to(tl.int32)
    room = number - count(rank > low)
    return (rank > low) | ((equal > 0) & (tl.cumsum(equal, 0) <= room))


@triton.jit
def rank_of(value):
    """An int64 in the order of the float64 numbers, where -0 and +0 are equal."""
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int64, bitcast=True)
    return tl.where(bits < 0, bits ^ _MOST, bits)


@triton.jit
def write_block(accepted, remasked, k, token, mask_id, tokens, masked, revocable):
    """Step 6 for one sequence's block: only what changes is written."""
    changed = accepted | remasked
    tl.store(tokens + k, tl.where(remasked, mask_id, token), mask=changed)
    tl.store(masked + k, remasked, mask=changed)
    tl.store(revocable + k, ~remasked, mask=changed)


@triton.jit
def write_step(accepted, remasked, last, state, sequence, last_accepted, num_accepted, num_remasked, status):
    tl.store(last_accepted + sequence, last)
    tl.store(num_accepted + sequence, count(accepted))
    tl.store(num_remasked + sequence, count(remasked))
    tl.store(status + sequence, state)
