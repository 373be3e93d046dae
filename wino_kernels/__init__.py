"""Operators for decoding masked diffusion language models with WINO, on CPU and CUDA tensors.

The public operators are ``__all__``. Each one is ``torch.ops.wino.<operator>``, which checks its arguments and picks a
backend (``use_backend``); where nothing listens to Torch's dispatcher some ordinary calls on the CPU go past it.
docs/spec.md, which the docstrings cite, is the algorithms' definition; ``wino_kernels.eager`` is that definition as
plain torch code.

"Per row" arguments are a Python scalar for all rows or a tensor with one value per row (per sequence). A Python scalar
is a constant of a compiled graph or a captured CUDA graph; a tensor may change between calls.

Every operator raises ``TypeError`` for a wrong type or dtype and ``ValueError`` for a wrong shape, device, stride or
value, before anything is written; and ``BackendUnavailableError`` when an explicitly chosen backend cannot serve the
call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wino_kernels import ops as _ops
from wino_kernels._version import __version__ as __version__
from wino_kernels.backends import BackendUnavailableError, has_kernel, implementation, use_backend
from wino_kernels.random import row_seeds, seeds_of_rows, splitmix64

__all__ = [
    "BackendUnavailableError",
    "TrajectoryLoss",
    "accept_",
    "accept_remask_",
    "draft_confidence",
    "linear_score_tokens",
    "norm_qkv_rope",
    "out_norm_swiglu",
    "pack_trunk",
    "row_seeds",
    "score_tokens",
    "shadow_attention",
    "shadow_trunk",
    "splitmix64",
    "trajectory_loss",
    "use_backend",
    "verify_confidence",
    "wino_step_",
]


def score_tokens(
    logits: Tensor, candidate_ids: Tensor, *, temperature: float | Tensor = 0.0, seed: int | Tensor = 0
) -> tuple[Tensor, Tensor]:
    """One (token, confidence) per row of logits: draft a token or verify a given one (docs/spec.md section 6).

    Args:
        logits: ``(..., V)`` float32, bfloat16 or float16, unit stride in V. -inf (banned) is allowed.
        candidate_ids: ``(...)`` int64. ``>= 0``: this token's probability; ``-1``: draft, the argmax of
            ``logits + temperature * Gumbel noise`` (equal values: the lowest id); ``-2``: skip the row.
        temperature: per row, float32, >= 0; 0 drafts the argmax itself.
        seed: integer, row r of the flattened rows draws with ``splitmix64(seed + r)``; or ``(...)`` int64, the rows'
            own seeds (``row_seeds``). Not read at temperature 0.

    Returns:
        ``token_ids`` ``(...)`` int64: the drafted or the given token, ``-2`` for skipped rows.
        ``confidence`` ``(...)`` float64, so that sure ones differ: its probability under ``softmax(logits)``, without
        temperature and noise; 0 for skipped rows; NaN if the row holds NaN or +inf or nothing finite (a draft is then
        token 0), for a candidate that is neither a token, -1 nor -2, and for a draft whose temperature is negative or
        not finite.

    Not differentiable.
    """
    _require_tensors("score_tokens", "logits candidate_ids", logits, candidate_ids)
    noise = _noise("score_tokens", temperature, seed, logits.shape[:-1], logits.device)
    return _ops.score_tokens(logits, candidate_ids, temperature=noise[0], seed=noise[1])


def draft_confidence(
    logits: Tensor, *, temperature: float | Tensor = 0.0, seed: int | Tensor = 0
) -> tuple[Tensor, Tensor]:
    """``score_tokens`` with every row a draft: ``(token_ids, confidence)`` of shape ``(...)``.

    docs/spec.md section 6.
    """
    _require_tensors("draft_confidence", "logits", logits)
    draft = torch.full(logits.shape[:-1], -1, dtype=torch.int64, device=logits.device)
    return score_tokens(logits, draft, temperature=temperature, seed=seed)


def verify_confidence(logits: Tensor, token_ids: Tensor) -> Tensor:
    """``score_tokens`` with every row given: the probability of ``token_ids`` ``(...)``, float64.

    docs/spec.md section 6.

    NaN for an id that is no token, negative ids included: -1 and -2 have no special meaning here.
    """
    _require_tensors("verify_confidence", "logits token_ids", logits, token_ids)
    return score_tokens(logits, token_ids)[1].masked_fill(token_ids < 0, math.nan)


def linear_score_tokens(
    hidden: Tensor,
    weight: Tensor,
    candidate_ids: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 0.0,
    seed: int | Tensor = 0,
    round_to: str | torch.dtype = "input",
) -> tuple[Tensor, Tensor]:
    """``score_tokens`` of ``hidden @ weight.T + bias``: the LM head fused in (docs/spec.md section 6).

    Args:
        hidden: ``(..., H)`` float32, bfloat16 or float16, unit stride in H.
        weight: ``(V, H)``, dtype of ``hidden``, unit stride in H.
        candidate_ids: ``(...)`` int64, as in ``score_tokens``.
        bias: ``(V,)``, dtype of ``hidden``, or None.
        temperature, seed: as in ``score_tokens``.
        round_to: dtype each logit is rounded to before it is scored: ``"input"``, that of ``hidden``, as a separate
            head does; ``torch.float32`` keeps the accumulator's precision.

    Returns:
        ``token_ids`` ``(...)`` int64 and ``confidence`` ``(...)`` float64, as ``score_tokens`` gives them.

    Not differentiable.
    """
    op = "linear_score_tokens"
    _require_tensors(op, "hidden weight candidate_ids", hidden, weight, candidate_ids)
    noise = _noise(op, temperature, seed, hidden.shape[:-1], hidden.device)
    if round_to != "input" and not isinstance(round_to, torch.dtype):
        raise ValueError(f'{op}: round_to must be "input" or a torch.dtype, got {round_to!r}')
    return _ops.linear_score_tokens(
        hidden,
        weight,
        candidate_ids,
        bias=bias,
        temperature=noise[0],
        seed=noise[1],
        round_to=None if round_to == "input" else round_to,
    )


def accept_remask_(
    tokens: Tensor,
    masked: Tensor,
    revocable: Tensor,
    token_ids: Tensor,
    confidence: Tensor,
    last_accepted: Tensor,
    *,
    mask_id: int,
    threshold: float | Tensor,
    threshold_back: float | Tensor,
    accept_fraction: float = 0.7,
    min_accept: int = 5,
    max_accept: int = 20,
    verify_last: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """One WINO step on the block of every sequence, in place (docs/spec.md section 3 steps 1, 3, 5, 6; section 3a).

    Args:
        tokens: ``(B, K)`` int64, written. The in-place tensors have unit stride in K and any stride between rows.
        masked: ``(B, K)`` bool, written. Positions still to be filled.
        revocable: ``(B, K)`` bool, written. Positions that a re-mask may reopen; disjoint from ``masked``.
        token_ids: ``(B, K)`` int64. The drafted tokens; read at masked positions.
        confidence: ``(B, K)`` float64, or float32, which is converted first (that allocates). Of the draft at masked
            positions, of the verification at revocable ones. Ranked as it is, compared with the thresholds as float32.
        last_accepted: ``(B,)`` int32, written. Number accepted by the block's previous step; 30 at its start.
        mask_id: token id of ``[MASK]``, written where a token is taken back.
        threshold: per sequence, float32 in [0, 1]: drafts above it are accepted (the surest one always).
        threshold_back: per sequence, float32 in [0, 1]: tokens verified below it are re-masked.
        accept_fraction, min_accept, max_accept: at most
            ``min(max(floor(accept_fraction * number masked), min_accept), max_accept)`` are accepted, and never fewer
            than one. The fraction is the decimal as written: 0.7 is 7/10.
        verify_last: verify the tokens of the block's last step too: a full block is then done only when
            ``last_accepted`` is at most 1, and until then a call verifies it (docs/spec.md section 3a).

    Returns:
        ``num_accepted``, ``num_remasked``, ``status``: ``(B,)`` int32. Status 0: running; 1: done (a sequence that was
        done before the call is left as it was); 2: a confidence that the step reads is NaN, the sequence is left as it
        was.
    """
    op = "accept_remask_"
    names = "tokens masked revocable token_ids confidence last_accepted"
    _require_tensors(op, names, tokens, masked, revocable, token_ids, confidence, last_accepted)
    return _ops.accept_remask_(
        tokens,
        masked,
        revocable,
        token_ids,
        confidence,
        last_accepted,
        mask_id=mask_id,
        threshold=_threshold(op, "threshold", threshold, tokens),
        threshold_back=_threshold(op, "threshold_back", threshold_back, tokens),
        accept_fraction=accept_fraction,
        min_accept=min_accept,
        max_accept=max_accept,
        verify_last=verify_last,
    )


def accept_(
    tokens: Tensor,
    masked: Tensor,
    token_ids: Tensor,
    confidence: Tensor,
    *,
    threshold: float | Tensor | None = None,
    count: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Fill the surest masked positions of every sequence, in place (docs/spec.md section 4). Nothing is taken back.

    Args:
        tokens: ``(B, K)`` int64, written. The in-place tensors have unit stride in K and any stride between rows.
        masked: ``(B, K)`` bool, written.
        token_ids: ``(B, K)`` int64, the drafted tokens; read at masked positions.
        confidence: ``(B, K)`` float64, or float32, which is converted first (that allocates); of the drafts, read at
            masked positions. Ranked as it is, compared with the threshold as float32.
        threshold: per sequence, float32 in [0, 1]: accept confidence >= threshold, always at least the largest.
        count: per sequence, int32 or int64, >= 0: accept this many of the largest (all if fewer are masked). Exactly
            one of ``threshold`` and ``count`` is given. Equal confidences: the lowest position first.

    Returns:
        ``num_accepted``, ``status``: ``(B,)`` int32. Status 0: positions are still masked; 1: none is; 2: a masked
        position's confidence is NaN, the sequence is left as it was.
    """
    op = "accept_"
    _require_tensors(op, "tokens masked token_ids confidence", tokens, masked, token_ids, confidence)
    if count is not None and not isinstance(count, Tensor):
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"{op}: count must be an integer or a tensor, got {type(count).__name__}")
        if count < 0:
            raise ValueError(f"{op}: count must be >= 0, got {count}")
        count = torch.scalar_tensor(min(count, tokens.numel()), dtype=torch.int64, device="cpu")
    return _ops.accept_(
        tokens,
        masked,
        token_ids,
        confidence,
        threshold=None if threshold is None else _threshold(op, "threshold", threshold, tokens),
        count=None if count is None else _one_per_row(count, tokens.shape[:1]),
    )


def wino_step_(
    logits: Tensor,
    tokens: Tensor,
    masked: Tensor,
    revocable: Tensor,
    last_accepted: Tensor,
    *,
    temperature: float | Tensor = 0.0,
    seed: int | Tensor = 0,
    mask_id: int,
    threshold: float | Tensor,
    threshold_back: float | Tensor,
    accept_fraction: float = 0.7,
    min_accept: int = 5,
    max_accept: int = 20,
    verify_last: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """``score_tokens`` and ``accept_remask_`` in one: a whole WINO step from its logits, in place.

    docs/spec.md sections 3, 6.

    Args:
        logits: ``(B, K, V)`` float32, bfloat16 or float16, unit stride in V. One row per position: the real row where
            masked, the shadow row where revocable, not read elsewhere (docs/spec.md section 2).
        temperature: a number, or float32 ``(B,)`` or ``(B, K)``.
        seed: an integer as in ``score_tokens`` (rows in the order of ``(B, K)``), or int64 ``(B, K)``.
        tokens, masked, revocable, last_accepted, mask_id, threshold, threshold_back, accept_fraction, min_accept,
            max_accept, verify_last: as in ``accept_remask_``.

    Returns:
        ``num_accepted``, ``num_remasked``, ``status``: ``(B,)`` int32, as in ``accept_remask_``.
    """
    op = "wino_step_"
    names = "logits tokens masked revocable last_accepted"
    _require_tensors(op, names, logits, tokens, masked, revocable, last_accepted)
    noise = _noise(op, temperature, seed, tokens.shape, tokens.device)
    return _ops.wino_step_(
        logits,
        tokens,
        masked,
        revocable,
        last_accepted,
        temperature=noise[0],
        seed=noise[1],
        mask_id=mask_id,
        threshold=_threshold(op, "threshold", threshold, tokens),
        threshold_back=_threshold(op, "threshold_back", threshold_back, tokens),
        accept_fraction=accept_fraction,
        min_accept=min_accept,
        max_accept=max_accept,
        verify_last=verify_last,
    )


def shadow_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_shadow: int,
    block_start: Tensor,
    key_padding_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention of real tokens followed by the shadow block that verifies one block of them.

    docs/spec.md sections 2, 6.

    The last ``num_shadow`` keys and the last ``num_shadow`` queries are the shadow block. Real queries see the real
    keys; shadow query j sees every key but ``block_start + j``, the token it verifies.

    Args:
        query: ``(B, Hq, Lq, d)`` float32, bfloat16, float16 or float64, unit stride in d, any d.
        key, value: ``(B, Hkv, Lk, d)``, dtype of ``query``, unit stride in d. Hkv divides Hq: query head h reads key
            head ``h // (Hq / Hkv)``. Lq may be smaller than Lk (cached keys, pruned rows): the real queries come first.
        num_shadow: number of shadow tokens, 0 (plain bidirectional attention) to ``min(Lq, Lk)``.
        block_start: ``(B,)`` int64: index, among the keys, of the real key that shadow query 0 does not see.
        key_padding_mask: ``(B, Lk)`` bool, True where a key may be attended; None: everywhere. What the other keys and
            values hold is irrelevant.
        scale: factor of the scores; None: ``d ** -0.5``.

    Returns:
        ``(B, Hq, Lq, d)``, dtype of ``query``; zeros for a query that sees no key.

    Raises:
        RuntimeError: an input requires gradients while gradients are enabled. The operator has none; training has no
            shadow block and uses ``torch.nn.functional.scaled_dot_product_attention``.
    """
    _require_tensors("shadow_attention", "query key value block_start", query, key, value, block_start)
    _refuse_gradients("shadow_attention", query, key, value)
    return _ops.shadow_attention(
        query,
        key,
        value,
        num_shadow=num_shadow,
        block_start=block_start,
        key_padding_mask=key_padding_mask,
        scale=scale,
    )


def norm_qkv_rope(
    x: Tensor,
    norm_weight: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    v_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float,
    q_bias: Tensor | None = None,
    k_bias: Tensor | None = None,
    v_bias: Tensor | None = None,
    query_rows: Tensor | None = None,
    full_precision: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """What attention needs of a layer's input: RMS norm, the three projections, rotary embedding of query and key.

    Every result is rounded to the dtype of ``x`` as the separate operations would round it (norm: float32, rounded,
    times its weight).

    Args:
        x: ``(B, L, D)`` float32, bfloat16, float16 or float64, unit stride in D.
        norm_weight: ``(D,)``, as all weights in the dtype of ``x``.
        q_weight, k_weight, v_weight: ``(H d, D)``, ``(Hkv d, D)`` twice, as ``torch.nn.Linear`` keeps them.
        cos, sin: ``(B, 1, L, d)`` or ``(1, 1, L, d)`` float32, equal strides: the rotary tables of heads whose two
            halves are rotated against each other.
        eps: added to the mean of the squares.
        q_bias, k_bias, v_bias: ``(H d,)``, ``(Hkv d,)`` twice.
        query_rows: ``(B, Q)`` int64 indices into L of the rows whose queries are wanted; None: all.
        full_precision: rotate in float32; else in the dtype of ``x``.

    Returns:
        query ``(B, H, Q, d)``, key and value ``(B, Hkv, L, d)``, each a view of dense ``(B, L, H, d)``.

    Raises:
        RuntimeError: ``x`` or a weight requires gradients while gradients are enabled; the operator has none.
    """
    op, weights = "norm_qkv_rope", (norm_weight, q_weight, k_weight, v_weight)
    _require_tensors(op, "x norm_weight q_weight k_weight v_weight cos sin", x, *weights, cos, sin)
    _refuse_gradients(op, x, *weights, q_bias, k_bias, v_bias)
    return _ops.norm_qkv_rope(
        x,
        *weights,
        cos,
        sin,
        eps=eps,
        q_bias=q_bias,
        k_bias=k_bias,
        v_bias=v_bias,
        query_rows=query_rows,
        full_precision=full_precision,
    )


def out_norm_swiglu(
    x: Tensor,
    attended: Tensor,
    out_weight: Tensor,
    norm_weight: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    *,
    eps: float,
    out_bias: Tensor | None = None,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
) -> Tensor:
    """The rest of a layer after attention: ``y = x + out(attended)``, then ``y + down(silu(gate(n)) * up(n))``.

    n is the RMS norm of y. Every result is rounded to the dtype of ``x`` as the separate operations would round it.

    Args:
        x: ``(B, L, D)`` float32, bfloat16, float16 or float64, unit stride in D.
        attended: ``(B, H, L, d)``, unit stride in d, as all others in the dtype of ``x``.
        out_weight: ``(D, H d)``, as ``torch.nn.Linear`` keeps it.
        norm_weight: ``(D,)``.
        gate_weight, up_weight: ``(M, D)``. down_weight: ``(D, M)``.
        eps: added to the mean of the squares.
        out_bias, down_bias: ``(D,)``. gate_bias, up_bias: ``(M,)``.

    Returns:
        ``(B, L, D)``, dense.

    Raises:
        RuntimeError: ``x``, ``attended`` or a weight requires gradients while gradients are enabled; the operator has
            none.
    """
    op, weights = "out_norm_swiglu", (out_weight, norm_weight, gate_weight, up_weight, down_weight)
    _require_tensors(op, "x attended out_weight norm_weight gate_weight up_weight down_weight", x, attended, *weights)
    _refuse_gradients(op, x, attended, *weights, out_bias, gate_bias, up_bias, down_bias)
    return _ops.out_norm_swiglu(
        x,
        attended,
        *weights,
        eps=eps,
        out_bias=out_bias,
        gate_bias=gate_bias,
        up_bias=up_bias,
        down_bias=down_bias,
    )


def shadow_trunk(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    cos: Tensor,
    sin: Tensor,
    rows: Tensor,
    *,
    num_shadow: int,
    block_start: Tensor,
    eps: float,
    key_padding_mask: Tensor | None = None,
    norm_weight: Tensor | None = None,
    full_precision: bool = True,
    packed: Tensor | None = None,
) -> Tensor:
    """All layers of a LLaMA-style trunk over real tokens followed by the shadow block, and the final norm.

    docs/spec.md section 2.

    Layer by layer ``norm_qkv_rope``, ``shadow_attention`` and ``out_norm_swiglu``; the last layer computes queries,
    output projection and MLP for the rows that leave alone.

    Args:
        x: ``(B, L, D)`` float32, bfloat16, float16 or float64, unit stride in D; the last ``num_shadow`` rows are the
            shadow block's.
        weights: nine for each layer, in the dtype of ``x``: norm, query, key, value, output projection, norm, gate, up,
            down, as those operators take them; all layers of one shape.
        biases: seven for each layer, of the linear layers in that order, each may be None; or an empty list.
        cos, sin: ``(B, 1, L, d)`` or ``(1, 1, L, d)`` float32, equal strides.
        rows: ``(B, R)`` int64 indices into L: what leaves.
        num_shadow: number of shadow tokens; 0: plain attention.
        block_start: ``(B,)`` int64: the row that shadow row 0 does not see.
        eps: of every norm.
        key_padding_mask: ``(B, L)`` bool, True where a row may be attended; None: everywhere.
        norm_weight: ``(D,)``, of a norm over what leaves; None: there is none.
        full_precision: rotate in float32; else in the dtype of ``x``.
        packed: :func:`pack_trunk` of these weights; that one of them has changed since, or is another at the same
            address, is not noticed. None: they are packed in the call where that is needed.

    Returns:
        ``(B, R, D)``, dense.

    Raises:
        RuntimeError: ``x`` or a weight requires gradients while gradients are enabled; the operator has none.
    """
    _require_tensors("shadow_trunk", "x cos sin rows block_start", x, cos, sin, rows, block_start)
    if torch.is_grad_enabled():
        _refuse_gradients("shadow_trunk", x, *weights, *biases, norm_weight)
    return _ops.shadow_trunk(
        x,
        weights,
        biases,
        cos,
        sin,
        rows,
        num_shadow=num_shadow,
        block_start=block_start,
        eps=eps,
        key_padding_mask=key_padding_mask,
        norm_weight=norm_weight,
        full_precision=full_precision,
        packed=packed,
    )


def pack_trunk(weights: Sequence[Tensor]) -> Tensor | None:
    """The weights of :func:`shadow_trunk`, in the order in which the kernel that serves it now reads them.

    Worth it for several calls with the same weights and few rows.

    Args:
        weights: as for :func:`shadow_trunk`.

    Returns:
        ``(bytes,)`` uint8, about as large as the weights, twice that where bfloat16 is widened; None where no kernel
        would read it, or where the weights have more than 64 MiB.
    """
    weights = list(weights)
    for index, weight in enumerate(weights):
        if not isinstance(weight, Tensor):
            raise TypeError(f"pack_trunk: weights[{index}] must be a torch.Tensor, got {type(weight).__name__}")
    if not weights or len(weights) % 9:
        raise ValueError(f"pack_trunk: weights must be nine for each layer, got {len(weights)}")
    which = "shadow_trunk", weights[0].device.type
    pack = getattr(implementation(*which), "pack", None) if has_kernel(*which) else None
    return None if pack is None else pack(weights)


def _refuse_gradients(op: str, *tensors: Tensor | None) -> None:
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        raise RuntimeError(f"{op}: not differentiable; call it under torch.no_grad() or inference_mode()")


class TrajectoryLoss(NamedTuple):
    """What ``trajectory_loss`` returns. The three parts: cross entropy, unmask entropy, re-mask entropy."""

    loss: Tensor
    """0-dim: the weighted loss, differentiable."""
    sums: Tensor
    """``(3,)``: each part summed over the rows it selects, in nats, differentiable."""
    counts: Tensor
    """``(3,)`` int64: number of rows each part selects."""


def trajectory_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    target_mask: Tensor,
    candidate_mask: Tensor,
    *,
    threshold: float | Tensor,
    threshold_back: float | Tensor,
    weights: Sequence[float] = (1.0, 0.1, 1.0),
    denominators: Tensor | Sequence[float] | None = None,
) -> TrajectoryLoss:
    """The WINO+ loss of one batch of unfolded trajectory samples, LM head fused in (docs/spec.md section 5).

    ``weights[0] * mean CE over targets + weights[1] * mean H over targets with argmax = label and max p <
    threshold_back - weights[2] * mean H over candidates with argmax != label and max p > threshold``; the selections
    carry no gradient.

    Args:
        hidden: ``(..., H)``, at least two dimensions, float32, bfloat16, float16 or float64, unit stride in H.
        weight: ``(V, H)``, dtype of ``hidden``, unit stride in H. Its gradient is computed only if it requires one.
        labels: ``(...)`` int64, the final token; read at targets and candidates. A target's label outside the
            vocabulary makes the loss NaN.
        target_mask: ``(...)`` bool: positions accepted at this sample's step.
        candidate_mask: ``(...)`` bool: the other masked positions of the same block.
        threshold, threshold_back: a number in [0, 1] or a 0-dim float32 tensor.
        weights: of cross entropy, unmask entropy, re-mask entropy.
        denominators: what each part's sum is divided by, three numbers or a ``(3,)`` tensor: the counts of the whole
            accumulated, all-reduced batch. None: this call's own counts. A part with denominator 0 counts as 0.

    Returns:
        ``TrajectoryLoss``: loss, sums and counts; float64 for float64 input, else float32.
    """
    op = "trajectory_loss"
    names = "hidden weight labels target_mask candidate_mask"
    _require_tensors(op, names, hidden, weight, labels, target_mask, candidate_mask)
    if len(weights) != 3:
        raise ValueError(f"{op}: weights must be three numbers, got {len(weights)}")
    if denominators is not None and len(denominators) != 3:
        raise ValueError(f"{op}: denominators must be three numbers, got {len(denominators)}")
    sums, counts, _ = _ops.trajectory_loss(
        hidden,
        weight,
        labels,
        target_mask,
        candidate_mask,
        _threshold(op, "threshold", threshold, None),
        _threshold(op, "threshold_back", threshold_back, None),
    )
    divisors = counts if denominators is None else denominators
    parts = [sums[part] / _at_least_something(divisors[part]) for part in range(3)]
    loss = weights[0] * parts[0] + weights[1] * parts[1] - weights[2] * parts[2]
    return TrajectoryLoss(loss, sums, counts)


def _at_least_something(divisor: float | Tensor) -> float | Tensor:
    """1 in place of 0: an empty selection's sum is 0, and so must its mean and gradient be."""
    if isinstance(divisor, Tensor):
        return torch.where(divisor == 0, 1, divisor)
    return divisor or 1.0


def _require_tensors(op: str, names: str, *arguments: Any) -> None:
    for index, argument in enumerate(arguments):
        if not isinstance(argument, Tensor):
            raise TypeError(f"{op}: {names.split()[index]} must be a torch.Tensor, got {type(argument).__name__}")


def _one_per_row(value: Tensor, shape: Sequence[int]) -> Tensor:
    """A device's own 0-dim tensor becomes one value per row; a host scalar stays one."""
    return value.expand(shape) if value.dim() == 0 and not value.is_cpu else value


def _threshold(op: str, name: str, value: float | Tensor, tokens: Tensor | None) -> Tensor:
    if isinstance(value, Tensor):
        return value if tokens is None else _one_per_row(value, tokens.shape[:1])
    if not isinstance(value, (float, int)):
        raise TypeError(f"{op}: {name} must be a number or a tensor, got {type(value).__name__}")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{op}: {name} must be in [0, 1], got {value}")
    return torch.scalar_tensor(value, dtype=torch.float32, device="cpu")


def _noise(
    op: str, temperature: float | Tensor, seed: int | Tensor, shape: torch.Size, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Temperature and row seeds as the operators take them: both None when nothing is drawn."""
    if isinstance(temperature, Tensor):
        temperature = _one_per_row(temperature, shape)
    elif not isinstance(temperature, (float, int)):
        raise TypeError(f"{op}: temperature must be a number or a tensor, got {type(temperature).__name__}")
    elif temperature == 0:
        return None, None
    elif not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"{op}: temperature must be finite and >= 0, got {temperature}")
    else:
        temperature = torch.scalar_tensor(temperature, dtype=torch.float32, device="cpu")
    if isinstance(seed, Tensor):
        return temperature, seed
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"{op}: seed must be an integer or a tensor, got {type(seed).__name__}")
    return temperature, seeds_of_rows(seed, shape, device)
