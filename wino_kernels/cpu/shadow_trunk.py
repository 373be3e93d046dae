"""shadow_trunk on the CPU: one native call; where the weights are large, the operators one by one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wino_kernels import _C
from wino_kernels.cpu import linear as layers
from wino_kernels.cpu.addresses import DTYPES, address
from wino_kernels.cpu.exchange import HAS_EXCHANGE
from wino_kernels.cpu.norm_qkv_rope import norm_qkv_rope
from wino_kernels.cpu.out_norm_swiglu import out_norm_swiglu
from wino_kernels.cpu.shadow_attention import shadow_attention
from wino_kernels.eager.norm_qkv_rope import rms_norm
from wino_kernels.eager.shadow_trunk import BIASES, WEIGHTS, by

#: Bytes of a trunk's weights that are worth being held once more.
MOST_PACKED_BYTES = 64 << 20

_one_by_one = by(norm_qkv_rope, shadow_attention, out_norm_swiglu, rms_norm)


def shadow_trunk(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    cos: Tensor,
    sin: Tensor,
    rows: Tensor,
    num_shadow: int,
    block_start: Tensor,
    eps: float,
    key_padding_mask: Tensor | None = None,
    norm_weight: Tensor | None = None,
    full_precision: bool = True,
    packed: Tensor | None = None,
) -> Tensor:
    if not layers.is_fused(x, *weights[:WEIGHTS]):
        given = x, weights, biases, cos, sin, rows, num_shadow, block_start, eps
        return _one_by_one(*given, key_padding_mask, norm_weight, full_precision)
    batch, length, width = x.shape
    out = x.new_empty(batch, rows.shape[1], width)
    if not out.numel():
        return out
    _C.shadow_trunk(
        DTYPES[x.dtype],
        batch,
        length,
        width,
        cos.shape[-1],
        [_layer(weights[i * WEIGHTS :], biases[i * BIASES :]) for i in range(len(weights) // WEIGHTS)],
        x.data_ptr(),
        x.stride(0),
        x.stride(1),
        cos.data_ptr(),
        sin.data_ptr(),
        cos.stride(0) if cos.shape[0] > 1 else 0,
        cos.stride(2),
        rows.data_ptr(),
        rows.shape[1],
        num_shadow,
        block_start.data_ptr(),
        address(key_padding_mask),
        address(norm_weight),
        eps,
        full_precision,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def shadow_trunk_ordinary(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    cos: Tensor,
    sin: Tensor,
    rows: Tensor,
    num_shadow: int,
    block_start: Tensor,
    eps: float,
    key_padding_mask: Tensor | None = None,
    norm_weight: Tensor | None = None,
    full_precision: bool = True,
    packed: Tensor | None = None,
) -> Tensor | None:
    """``shadow_trunk`` where the native module finds every argument valid and its kernel serves them; else None."""
    if not HAS_EXCHANGE or x.dim() != 3 or rows.dim() != 2:
        return None
    out = x.new_empty(x.shape[0], rows.shape[1], x.shape[2])
    # As the checks behind would hand them on; a pass without its shadow block cuts the mask's rows short.
    padding = key_padding_mask.contiguous() if isinstance(key_padding_mask, Tensor) else key_padding_mask
    given = x, weights, biases, cos, sin, rows.contiguous(), num_shadow, block_start.contiguous(), eps
    options = padding, norm_weight, full_precision, packed
    done = _C.shadow_trunk_ordinary(*given, *options, out, layers.MOST_WEIGHT_BYTES, torch.get_num_threads())
    return out if done else None


def pack_trunk(weights: Sequence[Tensor]) -> Tensor | None:
    """``packed`` of ``shadow_trunk``: (bytes,) uint8; None where its kernel would not read it."""
    if not HAS_EXCHANGE:
        return None
    size = _C.packed_trunk_bytes(weights, layers.MOST_WEIGHT_BYTES, MOST_PACKED_BYTES)
    if not size:
        return None
    packed = torch.empty(size, dtype=torch.uint8, device="cpu")
    _C.pack_trunk(weights, packed, torch.get_num_threads())
    return packed


shadow_trunk.if_valid = shadow_trunk_ordinary  # type: ignore[attr-defined]
shadow_trunk.pack = pack_trunk  # type: ignore[attr-defined]


def _layer(
    weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> tuple[int, int, list[tuple[int, int, int, int, int]]]:
    """``Layer`` of csrc/bindings.cpp, from lists that begin with that layer's."""
    norm, q, k, v, out, inner_norm, gate, up, down = weights[:WEIGHTS]
    own = biases[:BIASES] or [None] * BIASES
    linears = [layers.linear(weight, bias) for weight, bias in zip((q, k, v, out, gate, up, down), own, strict=True)]
    return norm.data_ptr(), inner_norm.data_ptr(), linears
