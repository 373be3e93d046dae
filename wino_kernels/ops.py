"""The operators as ``torch.library`` knows them: schemas, argument checks, fakes, dispatch to a backend.

Checks look at dtype, shape, device and stride only, never at data: they run before anything is touched, in the operator
and in its fake, so eager, compiled and direct ``torch.ops.wino`` calls refuse the same arguments with the same words.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from wino_kernels.backends import has_kernel, implementation

LOGITS_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_FLOAT_DTYPES = (*LOGITS_DTYPES, torch.float64)
_INT64 = (torch.int64,)
_INT32 = (torch.int32,)
_UINT8 = (torch.uint8,)
_BOOL = (torch.bool,)
_FLOAT32 = (torch.float32,)
_CONFIDENCE_DTYPES = (torch.float64, torch.float32)
_COUNT_DTYPES = (torch.int32, torch.int64)
_CPU = torch.device("cpu")
_LARGEST_VOCABULARY = 2**31 - 1


def _expect(op: str, name: str, tensor: Tensor, dtypes: Sequence[torch.dtype], shape: Any, device: Any) -> None:
    if tensor.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{op}: {name} must be {wanted}, got {str(tensor.dtype).removeprefix('torch.')}")
    if tensor.shape != shape:
        raise ValueError(f"{op}: {name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{op}: {name} must be on device {device}, got {tensor.device}")


def _expect_dims(op: str, name: str, tensor: Tensor, dims: int, described: str) -> None:
    if tensor.dim() != dims:
        raise ValueError(f"{op}: {name} must have shape {described}, got {tuple(tensor.shape)}")


def _expect_unit_stride(op: str, name: str, tensor: Tensor) -> None:
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        raise ValueError(f"{op}: {name} must have unit stride in its last dimension, got strides {tensor.stride()}")


def _expect_writable(op: str, name: str, tensor: Tensor) -> None:
    """An in-place ``(B, K)`` tensor: unit stride within a row, rows that do not share memory."""
    rows, columns = tensor.shape
    _expect_unit_stride(op, name, tensor)
    if tensor.stride(0) < columns and rows > 1:
        raise ValueError(f"{op}: rows of {name} must not overlap in memory, got strides {tensor.stride()}")


def _expect_per_row(op: str, name: str, value: Tensor, dtypes: Sequence[torch.dtype], rows: Any, device: Any) -> None:
    """A host scalar (0-dim on the CPU) or one value per row."""
    if value.dim() == 0 and value.is_cpu:
        if value.dtype in dtypes:
            return
        rows, device = (), _CPU
    _expect(op, name, value, dtypes, rows, device)


def _expect_noise(
    op: str, temperature: Tensor | None, seed: Tensor | None, shape: torch.Size, device: torch.device
) -> None:
    if (temperature is None) != (seed is None):
        present, absent = ("temperature", "seed") if seed is None else ("seed", "temperature")
        raise ValueError(f"{op}: temperature and seed must be given together, got {present} without {absent}")
    if temperature is not None and seed is not None:
        _expect_per_row(op, "temperature", temperature, _FLOAT32, shape, device)
        _expect(op, "seed", seed, _INT64, shape, device)


def _expect_vocabulary(op: str, name: str, size: int, described: str) -> None:
    if not 1 <= size <= _LARGEST_VOCABULARY:
        raise ValueError(f"{op}: {name} must have shape {described} with 1 <= V <= 2**31 - 1, got V = {size}")


def _check_logits(op: str, logits: Tensor) -> None:
    _expect(op, "logits", logits, LOGITS_DTYPES, logits.shape, logits.device)
    if logits.dim() < 1:
        raise ValueError(f"{op}: logits must have shape (..., V), got {tuple(logits.shape)}")
    _expect_vocabulary(op, "logits", logits.shape[-1], "(..., V)")
    _expect_unit_stride(op, "logits", logits)


def _check_score_tokens(
    logits: Tensor, candidate_ids: Tensor, *, temperature: Tensor | None = None, seed: Tensor | None = None
) -> None:
    _check_logits("score_tokens", logits)
    shape, device = logits.shape[:-1], logits.device
    _expect("score_tokens", "candidate_ids", candidate_ids, _INT64, shape, device)
    _expect_noise("score_tokens", temperature, seed, shape, device)


def _check_head(op: str, hidden: Tensor, weight: Tensor, dtypes: Sequence[torch.dtype]) -> None:
    if hidden.dim() < 1 or hidden.shape[-1] < 1:
        raise ValueError(f"{op}: hidden must have shape (..., H) with H >= 1, got {tuple(hidden.shape)}")
    _expect(op, "hidden", hidden, dtypes, hidden.shape, hidden.device)
    _expect_dims(op, "weight", weight, 2, f"(V, {hidden.shape[-1]})")
    _expect_vocabulary(op, "weight", weight.shape[0], "(V, H)")
    _expect(op, "weight", weight, (hidden.dtype,), (weight.shape[0], hidden.shape[-1]), hidden.device)
    _expect_unit_stride(op, "hidden", hidden)
    _expect_unit_stride(op, "weight", weight)


def _check_linear_score_tokens(
    hidden: Tensor,
    weight: Tensor,
    candidate_ids: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: Tensor | None = None,
    seed: Tensor | None = None,
    round_to: torch.dtype | None = None,
) -> None:
    op = "linear_score_tokens"
    _check_head(op, hidden, weight, LOGITS_DTYPES)
    shape, device = hidden.shape[:-1], hidden.device
    _expect(op, "candidate_ids", candidate_ids, _INT64, shape, device)
    if bias is not None:
        _expect(op, "bias", bias, (hidden.dtype,), (weight.shape[0],), device)
        _expect_unit_stride(op, "bias", bias)
    _expect_noise(op, temperature, seed, shape, device)
    if round_to is not None and round_to not in LOGITS_DTYPES:
        raise ValueError(f'{op}: round_to must be "input", float32, bfloat16 or float16, got {round_to}')


def _check_block(op: str, tokens: Tensor, masked: Tensor) -> None:
    _expect_dims(op, "tokens", tokens, 2, "(B, K)")
    _expect(op, "tokens", tokens, _INT64, tokens.shape, tokens.device)
    _expect(op, "masked", masked, _BOOL, tokens.shape, tokens.device)
    _expect_writable(op, "tokens", tokens)
    _expect_writable(op, "masked", masked)


def _check_revocable(op: str, tokens: Tensor, revocable: Tensor, last_accepted: Tensor) -> None:
    _expect(op, "revocable", revocable, _BOOL, tokens.shape, tokens.device)
    _expect_writable(op, "revocable", revocable)
    _expect(op, "last_accepted", last_accepted, _INT32, tokens.shape[:1], tokens.device)
    _expect_unit_stride(op, "last_accepted", last_accepted)


def _check_draft(op: str, tokens: Tensor, token_ids: Tensor, confidence: Tensor) -> None:
    _expect(op, "token_ids", token_ids, _INT64, tokens.shape, tokens.device)
    _expect(op, "confidence", confidence, _CONFIDENCE_DTYPES, tokens.shape, tokens.device)


def _check_distinct(op: str, masked: Tensor, revocable: Tensor) -> None:
    """Needs addresses, so it has no place in a fake."""
    if masked.data_ptr() == revocable.data_ptr() and masked.numel():
        raise ValueError(f"{op}: masked and revocable must not share memory, got the same address for both")


def _check_rule(
    op: str,
    tokens: Tensor,
    mask_id: int,
    threshold: Tensor,
    threshold_back: Tensor,
    accept_fraction: float = 0.7,
    min_accept: int = 5,
    max_accept: int = 20,
    verify_last: bool = False,
) -> None:
    rows, device = tokens.shape[:1], tokens.device
    _expect_per_row(op, "threshold", threshold, _FLOAT32, rows, device)
    _expect_per_row(op, "threshold_back", threshold_back, _FLOAT32, rows, device)
    if mask_id < 0:
        raise ValueError(f"{op}: mask_id must be >= 0, got {mask_id}")
    if not 0.0 <= accept_fraction <= 1.0:
        raise ValueError(f"{op}: accept_fraction must be in [0, 1], got {accept_fraction}")
    if min_accept < 0:
        raise ValueError(f"{op}: min_accept must be >= 0, got {min_accept}")
    if max_accept < 1:
        raise ValueError(f"{op}: max_accept must be >= 1, got {max_accept}")


def _check_either(tokens: Tensor, threshold: Tensor | None, count: Tensor | None) -> None:
    op = "accept_"
    if (threshold is None) == (count is None):
        given = "neither" if threshold is None else "both"
        raise ValueError(f"{op}: exactly one of threshold and count must be given, got {given}")
    rows, device = tokens.shape[:1], tokens.device
    if threshold is not None:
        _expect_per_row(op, "threshold", threshold, _FLOAT32, rows, device)
    if count is not None:
        _expect_per_row(op, "count", count, _COUNT_DTYPES, rows, device)


def _check_wino_step(
    logits: Tensor,
    tokens: Tensor,
    masked: Tensor,
    revocable: Tensor,
    last_accepted: Tensor,
    temperature: Tensor | None = None,
    seed: Tensor | None = None,
) -> None:
    op = "wino_step_"
    _check_block(op, tokens, masked)
    _check_revocable(op, tokens, revocable, last_accepted)
    shape, device = tokens.shape, tokens.device
    _check_logits(op, logits)
    _expect(op, "logits", logits, LOGITS_DTYPES, (*shape, logits.shape[-1]), device)
    if temperature is not None and temperature.dim() == 1:  # one per sequence
        _expect(op, "temperature", temperature, _FLOAT32, shape[:1], device)
        temperature = temperature[:, None].expand(shape)
    _expect_noise(op, temperature, seed, shape, device)


def _check_shadow_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_shadow: int,
    block_start: Tensor,
    key_padding_mask: Tensor | None = None,
    scale: float | None = None,
) -> None:
    op = "shadow_attention"
    _expect_dims(op, "query", query, 4, "(B, Hq, Lq, d)")
    _expect_dims(op, "key", key, 4, "(B, Hkv, Lk, d)")
    batch, heads, num_queries, width = query.shape
    key_heads, num_keys = key.shape[1], key.shape[2]
    device = query.device
    _expect(op, "query", query, _FLOAT_DTYPES, query.shape, device)
    if width < 1:
        raise ValueError(f"{op}: query must have shape (B, Hq, Lq, d) with d >= 1, got {tuple(query.shape)}")
    _expect(op, "key", key, (query.dtype,), (batch, key_heads, num_keys, width), device)
    if key_heads < 1 or heads % key_heads:
        raise ValueError(f"{op}: the heads of key must divide the {heads} heads of query, got {key_heads}")
    _expect(op, "value", value, (query.dtype,), key.shape, device)
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        _expect_unit_stride(op, name, tensor)
    most = min(num_queries, num_keys)
    if not 0 <= num_shadow <= most:
        raise ValueError(f"{op}: num_shadow must be in [0, min(Lq, Lk) = {most}], got {num_shadow}")
    _expect(op, "block_start", block_start, _INT64, (batch,), device)
    if key_padding_mask is not None:
        _expect(op, "key_padding_mask", key_padding_mask, _BOOL, (batch, num_keys), device)
    if scale is not None and not abs(scale) < float("inf"):
        raise ValueError(f"{op}: scale must be finite, got {scale}")


def _check_x(op: str, x: Tensor, norm_weight: Tensor) -> None:
    _expect_dims(op, "x", x, 3, "(B, L, D)")
    _expect(op, "x", x, _FLOAT_DTYPES, x.shape, x.device)
    if x.shape[2] < 1:
        raise ValueError(f"{op}: x must have shape (B, L, D) with D >= 1, got {tuple(x.shape)}")
    _expect_unit_stride(op, "x", x)
    _expect(op, "norm_weight", norm_weight, (x.dtype,), (x.shape[2],), x.device)
    _expect_unit_stride(op, "norm_weight", norm_weight)


def _check_layer(op: str, name: str, x: Tensor, weight: Tensor, bias: Tensor | None, shape: tuple[Any, Any]) -> None:
    """A linear layer ``weight`` of that shape, where None stands for any number."""
    rows = weight.shape[0] if shape[0] is None and weight.dim() == 2 else shape[0]
    if (  # a layer's step asks this seven times: the usual answer first
        bias is None
        and weight.shape == (rows, shape[1])
        and weight.dtype is x.dtype
        and weight.stride(1) == 1
        and weight.device == x.device
    ):
        return
    _expect_dims(op, f"{name}_weight", weight, 2, str(shape).replace("None", "N"))
    wanted = tuple(own if size is None else size for own, size in zip(weight.shape, shape, strict=True))
    _expect(op, f"{name}_weight", weight, (x.dtype,), wanted, x.device)
    _expect_unit_stride(op, f"{name}_weight", weight)
    if bias is not None:
        _expect(op, f"{name}_bias", bias, (x.dtype,), weight.shape[:1], x.device)
        _expect_unit_stride(op, f"{name}_bias", bias)


def _check_rotary(op: str, x: Tensor, cos: Tensor, sin: Tensor) -> int:
    """Rotary tables of x; returns d."""
    batch, length, _ = x.shape
    _expect_dims(op, "cos", cos, 4, "(B or 1, 1, L, d)")
    head_dim = cos.shape[3]
    if head_dim < 2 or head_dim % 2:
        raise ValueError(f"{op}: cos must have shape (B or 1, 1, L, d) with d even, got {tuple(cos.shape)}")
    tables = cos.shape[0] if cos.shape[0] == 1 else batch
    _expect(op, "cos", cos, _FLOAT32, (tables, 1, length, head_dim), x.device)
    _expect(op, "sin", sin, _FLOAT32, cos.shape, x.device)
    for name, table in (("cos", cos), ("sin", sin)):
        _expect_unit_stride(op, name, table)
    if sin.stride() != cos.stride():
        raise ValueError(f"{op}: sin must have the strides {cos.stride()} of cos, got {sin.stride()}")
    return head_dim


def _check_norm_qkv_rope(
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
) -> None:
    op = "norm_qkv_rope"
    _check_x(op, x, norm_weight)
    batch, _, width = x.shape
    head_dim = _check_rotary(op, x, cos, sin)
    for name, weight, bias in (("q", q_weight, q_bias), ("k", k_weight, k_bias), ("v", v_weight, v_bias)):
        _check_layer(op, name, x, weight, bias, (None, width))
        if weight.shape[0] % head_dim:
            raise ValueError(f"{op}: {name}_weight must have rows for heads of {head_dim}, got {weight.shape[0]}")
    if query_rows is not None:
        _expect_dims(op, "query_rows", query_rows, 2, f"({batch}, Q)")
        _expect(op, "query_rows", query_rows, _INT64, (batch, query_rows.shape[1]), x.device)


def _check_out_norm_swiglu(
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
) -> None:
    op = "out_norm_swiglu"
    _check_x(op, x, norm_weight)
    batch, length, width = x.shape
    _expect_dims(op, "attended", attended, 4, f"({batch}, H, {length}, d)")
    heads, head_dim = attended.shape[1], attended.shape[3]
    if heads < 1 or head_dim < 1:
        raise ValueError(f"{op}: attended must have shape (B, H, L, d) with H, d >= 1, got {tuple(attended.shape)}")
    _expect(op, "attended", attended, (x.dtype,), (batch, heads, length, head_dim), x.device)
    _expect_unit_stride(op, "attended", attended)
    _check_layer(op, "out", x, out_weight, out_bias, (width, heads * head_dim))
    _expect_dims(op, "gate_weight", gate_weight, 2, f"(M, {width})")
    inner = gate_weight.shape[0]
    _check_layer(op, "gate", x, gate_weight, gate_bias, (inner, width))
    _check_layer(op, "up", x, up_weight, up_bias, (inner, width))
    _check_layer(op, "down", x, down_weight, down_bias, (width, inner))


def _check_shadow_trunk(
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
) -> None:
    op = "shadow_trunk"
    number, rest = divmod(len(weights), 9)
    if rest or not number:
        raise ValueError(f"{op}: weights must be nine for each layer, got {len(weights)}")
    if len(biases) not in (0, 7 * number):
        raise ValueError(f"{op}: biases must be seven for each of {number} layers, or none, got {len(biases)}")
    _check_x(op, x, weights[0] if norm_weight is None else norm_weight)
    batch, length, width = x.shape
    head_dim = _check_rotary(op, x, cos, sin)
    if any(weights[i].dim() != 2 for i in (1, 2, 7)):
        raise ValueError(f"{op}: weights[1], [2] and [7] must have two dimensions")
    queries, keys, inner = (weights[i].shape[0] for i in (1, 2, 7))
    if queries < 1 or keys < 1 or queries % head_dim or keys % head_dim or queries % keys:
        raise ValueError(
            f"{op}: weights[1] and [2] must have rows for heads of {head_dim}, the keys' heads dividing the queries', "
            f"got {queries} and {keys}"
        )
    linears = ((queries, width), (keys, width), (keys, width), (width, queries))
    shapes = ((width,), *linears, (width,), (inner, width), (inner, width), (width, inner))
    for i, weight in enumerate(weights):
        shape = shapes[i % 9]
        if weight.dtype is x.dtype and weight.shape == shape and weight.stride(-1) == 1 and weight.device == x.device:
            continue
        _expect(op, f"weights[{i}]", weight, (x.dtype,), shape, x.device)
        _expect_unit_stride(op, f"weights[{i}]", weight)
    for i, bias in enumerate(biases):
        if bias is not None:
            outputs = (queries, keys, keys, width, inner, inner, width)[i % 7]
            _expect(op, f"biases[{i}]", bias, (x.dtype,), (outputs,), x.device)
            _expect_unit_stride(op, f"biases[{i}]", bias)
    _expect_dims(op, "rows", rows, 2, f"({batch}, R)")
    _expect(op, "rows", rows, _INT64, (batch, rows.shape[1]), x.device)
    if not 0 <= num_shadow <= length:
        raise ValueError(f"{op}: num_shadow must be in [0, L = {length}], got {num_shadow}")
    _expect(op, "block_start", block_start, _INT64, (batch,), x.device)
    if key_padding_mask is not None:
        _expect(op, "key_padding_mask", key_padding_mask, _BOOL, (batch, length), x.device)
    if packed is not None:
        _expect(op, "packed", packed, _UINT8, (packed.numel(),), x.device)


def _check_trajectory_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    target_mask: Tensor,
    candidate_mask: Tensor,
    threshold: Tensor,
    threshold_back: Tensor,
) -> None:
    op = "trajectory_loss"
    _check_head(op, hidden, weight, _FLOAT_DTYPES)
    if hidden.dim() < 2:
        raise ValueError(f"{op}: hidden must have shape (..., H) with at least 2 dimensions, got {tuple(hidden.shape)}")
    shape, device = hidden.shape[:-1], hidden.device
    _expect(op, "labels", labels, _INT64, shape, device)
    _expect(op, "target_mask", target_mask, _BOOL, shape, device)
    _expect(op, "candidate_mask", candidate_mask, _BOOL, shape, device)
    _expect_per_row(op, "threshold", threshold, _FLOAT32, (), device)
    _expect_per_row(op, "threshold_back", threshold_back, _FLOAT32, (), device)


def _dense(tensor: Tensor) -> Tensor:
    """Kernels read small per-row inputs as dense arrays; logits and in-place tensors keep their strides."""
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def _dense_or_none(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else _dense(tensor)


def _given_dtype(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Inside, matrix products keep the dtype they are given, whatever the ambient autocast."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def _ordinarily(op: str, *inputs: Any, **options: Any) -> Any:
    """What ``if_valid`` (``backends.Kernel``) of the operator's kernel returns; None: it has none, or declines."""
    which = op, inputs[0].device.type
    if_valid = getattr(implementation(*which), "if_valid", None) if has_kernel(*which) else None
    if if_valid is None:
        return None
    try:
        return if_valid(*inputs, **options)
    except TypeError:  # a number of a wrong type: others say which
        return None


def _ordinary_first(op: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A backend that looks at tensors faster than Python does takes an ordinary call as it comes; else ``function``."""

    def call(*inputs: Any, **options: Any) -> Any:
        result = _ordinarily(op, *inputs, **options)
        return function(*inputs, **options) if result is None else result

    return call


def _score_tokens(
    logits: Tensor, candidate_ids: Tensor, *, temperature: Tensor | None = None, seed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    _check_score_tokens(logits, candidate_ids, temperature=temperature, seed=seed)
    kernel = implementation("score_tokens", logits.device.type)
    return kernel(logits, _dense(candidate_ids), _dense_or_none(temperature), _dense_or_none(seed))


def _linear_score_tokens(
    hidden: Tensor,
    weight: Tensor,
    candidate_ids: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: Tensor | None = None,
    seed: Tensor | None = None,
    round_to: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    _check_linear_score_tokens(
        hidden, weight, candidate_ids, bias=bias, temperature=temperature, seed=seed, round_to=round_to
    )
    kernel = implementation("linear_score_tokens", hidden.device.type)
    ids, temperature, seed = _dense(candidate_ids), _dense_or_none(temperature), _dense_or_none(seed)
    with _given_dtype(hidden.device):
        return kernel(hidden, weight, ids, bias, temperature, seed, round_to)


def _accept_remask_(
    tokens: Tensor,
    masked: Tensor,
    revocable: Tensor,
    token_ids: Tensor,
    confidence: Tensor,
    last_accepted: Tensor,
    *,
    mask_id: int,
    threshold: Tensor,
    threshold_back: Tensor,
    accept_fraction: float = 0.7,
    min_accept: int = 5,
    max_accept: int = 20,
    verify_last: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    rule = mask_id, threshold, threshold_back, accept_fraction, min_accept, max_accept, verify_last
    op = "accept_remask_"
    _check_block(op, tokens, masked)
    _check_revocable(op, tokens, revocable, last_accepted)
    _check_draft(op, tokens, token_ids, confidence)
    _check_rule(op, tokens, *rule)
    _check_distinct(op, masked, revocable)
    return implementation(op, tokens.device.type)(
        tokens,
        masked,
        revocable,
        _dense(token_ids),
        _dense(confidence.double()),
        last_accepted,
        mask_id,
        _dense(threshold),
        _dense(threshold_back),
        accept_fraction,
        min_accept,
        max_accept,
        verify_last,
    )


def _accept_(
    tokens: Tensor,
    masked: Tensor,
    token_ids: Tensor,
    confidence: Tensor,
    *,
    threshold: Tensor | None = None,
    count: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    _check_block("accept_", tokens, masked)
    _check_draft("accept_", tokens, token_ids, confidence)
    _check_either(tokens, threshold, count)
    kernel = implementation("accept_", tokens.device.type)
    return kernel(
        tokens, masked, _dense(token_ids), _dense(confidence.double()), _dense_or_none(threshold), _dense_or_none(count)
    )


def _wino_step_(
    logits: Tensor,
    tokens: Tensor,
    masked: Tensor,
    revocable: Tensor,
    last_accepted: Tensor,
    *,
    temperature: Tensor | None = None,
    seed: Tensor | None = None,
    mask_id: int,
    threshold: Tensor,
    threshold_back: Tensor,
    accept_fraction: float = 0.7,
    min_accept: int = 5,
    max_accept: int = 20,
    verify_last: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    op = "wino_step_"
    _check_wino_step(logits, tokens, masked, revocable, last_accepted, temperature, seed)
    _check_rule(op, tokens, mask_id, threshold, threshold_back, accept_fraction, min_accept, max_accept)
    _check_distinct(op, masked, revocable)
    if temperature is not None and temperature.dim() == 1:
        temperature = temperature[:, None].expand(tokens.shape)
    return implementation("wino_step_", tokens.device.type)(
        logits,
        tokens,
        masked,
        revocable,
        last_accepted,
        _dense_or_none(temperature),
        _dense_or_none(seed),
        mask_id,
        _dense(threshold),
        _dense(threshold_back),
        accept_fraction,
        min_accept,
        max_accept,
        verify_last,
    )


def _shadow_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_shadow: int,
    block_start: Tensor,
    key_padding_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    _check_shadow_attention(
        query,
        key,
        value,
        num_shadow=num_shadow,
        block_start=block_start,
        key_padding_mask=key_padding_mask,
        scale=scale,
    )
    kernel = implementation("shadow_attention", query.device.type)
    with _given_dtype(query.device):
        return kernel(query, key, value, num_shadow, _dense(block_start), _dense_or_none(key_padding_mask), scale)


def _norm_qkv_rope(*inputs: Tensor, eps: float, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    _check_norm_qkv_rope(*inputs, eps=eps, **options)
    x = inputs[0]
    with _given_dtype(x.device):
        return implementation("norm_qkv_rope", x.device.type)(*inputs, eps, **options)


def _out_norm_swiglu(*inputs: Tensor, eps: float, **options: Any) -> Tensor:
    _check_out_norm_swiglu(*inputs, eps=eps, **options)
    x = inputs[0]
    with _given_dtype(x.device):
        return implementation("out_norm_swiglu", x.device.type)(*inputs, eps, **options)


def _shadow_trunk(
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
    given = x, weights, biases, cos, sin, _dense(rows)
    _check_shadow_trunk(
        *given,
        num_shadow=num_shadow,
        block_start=block_start,
        eps=eps,
        key_padding_mask=key_padding_mask,
        norm_weight=norm_weight,
        full_precision=full_precision,
        packed=packed,
    )
    kernel = implementation("shadow_trunk", x.device.type)
    start, padding = _dense(block_start), _dense_or_none(key_padding_mask)
    with _given_dtype(x.device):
        return kernel(*given, num_shadow, start, eps, padding, norm_weight, full_precision, packed)


def _trajectory_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    target_mask: Tensor,
    candidate_mask: Tensor,
    threshold: Tensor,
    threshold_back: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_trajectory_loss(hidden, weight, labels, target_mask, candidate_mask, threshold, threshold_back)
    kernel = implementation("trajectory_loss", hidden.device.type)
    with _given_dtype(hidden.device):
        return kernel(hidden, weight, labels, target_mask, candidate_mask, threshold, threshold_back)


def _trajectory_loss_backward(
    grad_sums: Tensor, hidden: Tensor, weight: Tensor, labels: Tensor, statistics: Tensor, weight_gradient: bool
) -> tuple[Tensor, Tensor]:
    kernel = implementation("trajectory_loss_backward", hidden.device.type)
    with _given_dtype(hidden.device):
        return kernel(grad_sums, hidden, weight, labels, statistics, weight_gradient)


def _scores_like(candidate_ids: Tensor) -> tuple[Tensor, Tensor]:
    shape = candidate_ids.shape
    return candidate_ids.new_empty(shape), candidate_ids.new_empty(shape, dtype=torch.float64)


def _counters_like(tokens: Tensor, number: int) -> tuple[Tensor, ...]:
    return tuple(tokens.new_empty(tokens.shape[:1], dtype=torch.int32) for _ in range(number))


def _score_tokens_fake(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    _check_score_tokens(*args, **kwargs)
    return _scores_like(args[1])


def _linear_score_tokens_fake(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    _check_linear_score_tokens(*args, **kwargs)
    return _scores_like(args[2])


def _accept_remask_fake(
    tokens: Tensor,
    masked: Tensor,
    revocable: Tensor,
    token_ids: Tensor,
    confidence: Tensor,
    last_accepted: Tensor,
    **rule: Any,
) -> tuple[Tensor, ...]:
    op = "accept_remask_"
    _check_block(op, tokens, masked)
    _check_revocable(op, tokens, revocable, last_accepted)
    _check_draft(op, tokens, token_ids, confidence)
    _check_rule(op, tokens, **rule)
    return _counters_like(tokens, 3)


def _accept_fake(
    tokens: Tensor,
    masked: Tensor,
    token_ids: Tensor,
    confidence: Tensor,
    *,
    threshold: Tensor | None = None,
    count: Tensor | None = None,
) -> tuple[Tensor, ...]:
    _check_block("accept_", tokens, masked)
    _check_draft("accept_", tokens, token_ids, confidence)
    _check_either(tokens, threshold, count)
    return _counters_like(tokens, 2)


def _wino_step_fake(
    logits: Tensor,
    tokens: Tensor,
    masked: Tensor,
    revocable: Tensor,
    last_accepted: Tensor,
    *,
    temperature: Tensor | None = None,
    seed: Tensor | None = None,
    **rule: Any,
) -> tuple[Tensor, ...]:
    _check_wino_step(logits, tokens, masked, revocable, last_accepted, temperature, seed)
    _check_rule("wino_step_", tokens, **rule)
    return _counters_like(tokens, 3)


def _shadow_attention_fake(*args: Any, **kwargs: Any) -> Tensor:
    _check_shadow_attention(*args, **kwargs)
    return args[0].new_empty(args[0].shape)


def _norm_qkv_rope_fake(*inputs: Tensor, **options: Any) -> tuple[Tensor, ...]:
    _check_norm_qkv_rope(*inputs, **options)
    x, _, *weights, cos, _ = inputs
    rows, head_dim = options.get("query_rows"), cos.shape[3]
    lengths = (x.shape[1] if rows is None else rows.shape[1], x.shape[1], x.shape[1])
    return tuple(
        x.new_empty(x.shape[0], length, weight.shape[0] // head_dim, head_dim).transpose(1, 2)
        for length, weight in zip(lengths, weights, strict=True)
    )


def _out_norm_swiglu_fake(*inputs: Tensor, **options: Any) -> Tensor:
    _check_out_norm_swiglu(*inputs, **options)
    return inputs[0].new_empty(inputs[0].shape)


def _shadow_trunk_fake(x: Tensor, *inputs: Any, **options: Any) -> Tensor:
    _check_shadow_trunk(x, *inputs, **options)
    return x.new_empty(x.shape[0], inputs[-1].shape[1], x.shape[2])


def _trajectory_loss_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    _check_trajectory_loss(*args)
    hidden, labels = args[0], args[2]
    sums = hidden.new_empty(3, dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32)
    return sums, hidden.new_empty(3, dtype=torch.int64), sums.new_empty(3, labels.numel())


def _trajectory_loss_backward_fake(
    grad_sums: Tensor, hidden: Tensor, weight: Tensor, labels: Tensor, statistics: Tensor, weight_gradient: bool
) -> tuple[Tensor, Tensor]:
    return hidden.new_empty(hidden.shape), weight.new_empty(weight.shape if weight_gradient else 0)


_RULE = (
    "int mask_id, Tensor threshold, Tensor threshold_back, float accept_fraction=0.7, int min_accept=5, "
    "int max_accept=20, bool verify_last=False"
)
_NOISE = "Tensor? temperature=None, Tensor? seed=None"

#: The order of these arguments is the positional order of a backend's function.
SCHEMAS = (
    f"score_tokens(Tensor logits, Tensor candidate_ids, *, {_NOISE}) -> (Tensor token_ids, Tensor confidence)",
    f"linear_score_tokens(Tensor hidden, Tensor weight, Tensor candidate_ids, *, Tensor? bias=None, {_NOISE}, "
    + "ScalarType? round_to=None) -> (Tensor token_ids, Tensor confidence)",
    "accept_remask_(Tensor(a!) tokens, Tensor(b!) masked, Tensor(c!) revocable, Tensor token_ids, Tensor confidence, "
    + f"Tensor(d!) last_accepted, *, {_RULE}) -> (Tensor num_accepted, Tensor num_remasked, Tensor status)",
    "accept_(Tensor(a!) tokens, Tensor(b!) masked, Tensor token_ids, Tensor confidence, *, Tensor? threshold=None, "
    + "Tensor? count=None) -> (Tensor num_accepted, Tensor status)",
    "wino_step_(Tensor logits, Tensor(a!) tokens, Tensor(b!) masked, Tensor(c!) revocable, Tensor(d!) last_accepted, "
    + f"*, {_NOISE}, {_RULE}) -> (Tensor num_accepted, Tensor num_remasked, Tensor status)",
    "shadow_attention(Tensor query, Tensor key, Tensor value, *, int num_shadow, Tensor block_start, "
    + "Tensor? key_padding_mask=None, float? scale=None) -> Tensor",
    "norm_qkv_rope(Tensor x, Tensor norm_weight, Tensor q_weight, Tensor k_weight, Tensor v_weight, Tensor cos, "
    + "Tensor sin, *, float eps, Tensor? q_bias=None, Tensor? k_bias=None, Tensor? v_bias=None, "
    + "Tensor? query_rows=None, bool full_precision=True) -> (Tensor query, Tensor key, Tensor value)",
    "out_norm_swiglu(Tensor x, Tensor attended, Tensor out_weight, Tensor norm_weight, Tensor gate_weight, "
    + "Tensor up_weight, Tensor down_weight, *, float eps, Tensor? out_bias=None, Tensor? gate_bias=None, "
    + "Tensor? up_bias=None, Tensor? down_bias=None) -> Tensor",
    "shadow_trunk(Tensor x, Tensor[] weights, Tensor?[] biases, Tensor cos, Tensor sin, Tensor rows, *, "
    + "int num_shadow, Tensor block_start, float eps, Tensor? key_padding_mask=None, Tensor? norm_weight=None, "
    + "bool full_precision=True, Tensor? packed=None) -> Tensor",
    "trajectory_loss(Tensor hidden, Tensor weight, Tensor labels, Tensor target_mask, Tensor candidate_mask, "
    + "Tensor threshold, Tensor threshold_back) -> (Tensor sums, Tensor counts, Tensor statistics)",
    "trajectory_loss_backward(Tensor grad_sums, Tensor hidden, Tensor weight, Tensor labels, Tensor statistics, "
    + "bool weight_gradient) -> (Tensor grad_hidden, Tensor grad_weight)",
)
_OPERATORS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "score_tokens": (_score_tokens, _score_tokens_fake),
    "linear_score_tokens": (_ordinary_first("linear_score_tokens", _linear_score_tokens), _linear_score_tokens_fake),
    "accept_remask_": (_ordinary_first("accept_remask_", _accept_remask_), _accept_remask_fake),
    "accept_": (_accept_, _accept_fake),
    "wino_step_": (_wino_step_, _wino_step_fake),
    "shadow_attention": (_shadow_attention, _shadow_attention_fake),
    "norm_qkv_rope": (_norm_qkv_rope, _norm_qkv_rope_fake),
    "out_norm_swiglu": (_out_norm_swiglu, _out_norm_swiglu_fake),
    "shadow_trunk": (_ordinary_first("shadow_trunk", _shadow_trunk), _shadow_trunk_fake),
    "trajectory_loss": (_trajectory_loss, _trajectory_loss_fake),
    "trajectory_loss_backward": (_trajectory_loss_backward, _trajectory_loss_backward_fake),
}

# Library rather than custom_op: the latter costs more per call than a whole accept step.
_library = torch.library.Library("wino", "DEF")
for _schema in SCHEMAS:
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
for _name, (_operator, _fake) in _OPERATORS.items():
    _library.impl(_name, _operator, "CompositeExplicitAutograd")
    torch.library.register_fake(f"wino::{_name}", _fake, lib=_library)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    hidden, weight, labels = inputs[:3]
    statistics = output[2]
    ctx.mark_non_differentiable(statistics)
    ctx.save_for_backward(hidden, weight, labels, statistics)


def _backward(ctx: Any, grad_sums: Tensor, *_no_gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    weight_gradient = ctx.needs_input_grad[1]
    grad_hidden, grad_weight = torch.ops.wino.trajectory_loss_backward(grad_sums, *ctx.saved_tensors, weight_gradient)
    return grad_hidden, grad_weight if weight_gradient else None, None, None, None, None, None


torch.library.register_autograd("wino::trajectory_loss", _backward, setup_context=_save_for_backward, lib=_library)

_TENSORS = frozenset((Tensor, torch.nn.Parameter))
_PLAIN = _TENSORS | {torch.dtype, int, float, bool, type(None), list, tuple}


def _are_plain(values: Sequence[Any]) -> bool:
    """Whether the dispatcher has nothing to do for any of the arguments: no subclass of a tensor, no lazy negation."""
    kinds = set(map(type, values))
    if kinds <= _TENSORS:
        return not any(map(Tensor.is_neg, values))
    if not kinds <= _PLAIN:
        return False
    tensors = [value for value in values if isinstance(value, Tensor)]
    return _are_plain(tensors) and all(_are_plain(v) for v in values if isinstance(v, (list, tuple)))


def _is_heard() -> bool:
    """Whether anything may see or change a call on its way through Torch's dispatcher."""
    try:
        return bool(
            torch.is_grad_enabled()
            or torch._C._len_torch_dispatch_stack()
            or torch._C._len_torch_function_stack()
            or torch._C._functorch.peek_interpreter_stack()
            or torch._C._autograd._profiler_enabled()
            or torch._C._get_tracing_state()
        )
    except AttributeError:  # private names, which another Torch may have changed: then nothing goes past it
        return True


def _past_the_dispatcher(op: str) -> Callable[..., Any]:
    """The operator; ordinary calls go straight to the kernel's ``if_valid`` where the dispatcher would do no more.

    To take sixty tensors through it costs several times what it costs to look at them.
    """
    overload = getattr(torch.ops.wino, op).default

    def call(*inputs: Any, **options: Any) -> Any:
        # A compiler stops reading at the first of these.
        through = torch.compiler.is_compiling() or not inputs[0].is_cpu or _is_heard()
        if through or not _are_plain((*inputs, *options.values())):
            return overload(*inputs, **options)
        result = _ordinarily(op, *inputs, **options)
        return overload(*inputs, **options) if result is None else result

    return call


# A public function calls these without looking them up again. Past the dispatcher go those of a decode's step whose
# kernels check ordinary arguments themselves.
score_tokens = torch.ops.wino.score_tokens.default
linear_score_tokens = _past_the_dispatcher("linear_score_tokens")
accept_remask_ = _past_the_dispatcher("accept_remask_")
accept_ = torch.ops.wino.accept_.default
wino_step_ = torch.ops.wino.wino_step_.default
shadow_attention = torch.ops.wino.shadow_attention.default
norm_qkv_rope = torch.ops.wino.norm_qkv_rope.default
out_norm_swiglu = torch.ops.wino.out_norm_swiglu.default
shadow_trunk = _past_the_dispatcher("shadow_trunk")
trajectory_loss = torch.ops.wino.trajectory_loss.default
