"""wino_step_ as Triton kernels (docs/spec.md section 6): score_tokens on one row per position, then accept_remask_.

Two launches: over the chunks of the rows that the step needs, then over the sequences, each of which joins the records
of its rows and applies the rule. Token ids and confidences never reach memory.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from wino_kernels.triton.accept_remask import (
    RULE_NUMBERS,
    accept_limit,
    apply_rule,
    block_constants,
    block_options,
    flags,
    of_sequence,
    only_if,
    plan_rule,
    write_block,
    write_step,
)
from wino_kernels.triton.launch import launch
from wino_kernels.triton.score_tokens import (
    DRAFT,
    ROW_NUMBERS,
    SKIP,
    asks_for_logits,
    join_records,
    plan_scoring,
    row_start,
    score_chunk,
    temperature_of,
)


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
    rule = mask_id, threshold, threshold_back, accept_fraction, min_accept, max_accept, verify_last
    arguments, constants, outputs = plan_rule(tokens, masked, revocable, last_accepted, *rule)
    if not len(tokens):
        return outputs

    scoring = plan_scoring(logits, tokens.numel(), temperature, seed)
    block = {name: arguments[name] for name in _BLOCK}
    if tokens.numel():
        verified = block_constants(tokens) | {"VERIFY_LAST": verify_last}
        launch(score_positions, scoring.grid, scoring.arguments | block, scoring.constants | verified, scoring.options)
    launch(
        step_blocks,
        (len(tokens),),
        scoring.join_arguments | arguments,
        scoring.join_constants | constants,
        block_options("wino_step_", tokens),
    )
    return outputs


_BLOCK = ("tokens", "tokens_stride", "masked", "masked_stride", "revocable", "revocable_stride", "last_accepted")


@triton.jit(do_not_specialize=ROW_NUMBERS)
def score_positions(
    logits,
    inner,
    outer_stride,
    inner_stride,
    temperature,
    seed,
    records,
    tokens,
    tokens_stride,
    masked,
    masked_stride,
    revocable,
    revocable_stride,
    last_accepted,
    V: tl.constexpr,
    PER_ROW: tl.constexpr,
    NOISE: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    VERIFY_LAST: tl.constexpr,
):
    """One program per (position, chunk)."""
    row = tl.program_id(0) // ((V + BLOCK - 1) // BLOCK)
    sequence = (row // K).to(tl.int64)
    k = row % K
    candidate = tl.full((), SKIP, tl.int64)
    if tl.load(masked + sequence * masked_stride + k):
        candidate = tl.full((), DRAFT, tl.int64)
    elif tl.load(revocable + sequence * revocable_stride + k):
        # What a finished sequence holds is never verified.
        every = tl.arange(0, KP)
        M = flags(masked + sequence * masked_stride, every, K)
        if is_running(M, tl.load(last_accepted + sequence), VERIFY_LAST):
            candidate = tl.load(tokens + sequence * tokens_stride + k)
    heat = temperature_of(row, temperature, True, PER_ROW)
    if asks_for_logits(candidate, heat, V):
        start = logits + row_start(row, inner, outer_stride, inner_stride, UNIT)
        chunk = tl.program_id(0) % ((V + BLOCK - 1) // BLOCK)
        score_chunk(candidate, row, chunk, start, heat, seed, records, V, NOISE, BLOCK)


@triton.jit
def is_running(M, last, VERIFY_LAST: tl.constexpr):
    """Whether a step has anything to do in a sequence with these masks."""
    running = tl.max(M.to(tl.int32), 0) > 0
    if VERIFY_LAST:
        running |= last > 1
    return running


@triton.jit(do_not_specialize=RULE_NUMBERS)
def step_blocks(
    temperature,
    records,
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
    V: tl.constexpr,
    PER_ROW: tl.constexpr,
    NOISE: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
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

    held = tl.load(tokens + k, mask=k < K, other=SKIP)
    candidate = tl.where(M, DRAFT, tl.where(only_if(is_running(M, last, VERIFY_LAST), U), held, SKIP))
    row = sequence * K + k
    heat = temperature_of(row, temperature, k < K, PER_ROW)
    token, c = join_records(candidate, row, heat, records, V, NOISE, BLOCK, GROUP)

    draft = of_sequence(threshold, sequence, PER_DRAFT)
    back = of_sequence(threshold_back, sequence, PER_BACK)
    most = accept_limit(M, numerator, denominator, min_accept, max_accept)
    accepted, remasked, last, state = apply_rule(M, U, c, last, most, draft, back, VERIFY_LAST)
    write_block(accepted, remasked, k, token, mask_id, tokens, masked, revocable)
    write_step(accepted, remasked, last, state, sequence, last_accepted, num_accepted, num_remasked, status)
