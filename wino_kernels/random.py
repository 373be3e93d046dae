"""Row seeds: which 64-bit seed each row of a draw gets (docs/spec.md section 6, "Random draws").

Everything is integer arithmetic modulo 2**64 in int64 tensors, so it runs on any device without a host read.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["row_seeds", "splitmix64"]


_GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _bits(value: int, device: torch.device) -> Tensor:
    """0-dim int64 with the bits of ``value`` modulo 2**64, by halves: no step leaves the range of a traced integer."""
    low = torch.full((), value % (1 << 32), dtype=torch.int64, device=device)
    high = torch.full((), value // (1 << 32) % (1 << 32), dtype=torch.int64, device=device)
    return (high << 32) + low


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's ``>>`` on int64 copies the sign bit."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def splitmix64(value: Tensor) -> Tensor:
    """The SplitMix64 finaliser of ``value + 0x9E3779B97F4A7C15``, element by element.

    Args:
        value: int64, any shape; read as 64 unsigned bits.

    Returns:
        int64 of the same shape and device, the 64 result bits.
    """
    if value.dtype != torch.int64:
        raise TypeError(f"splitmix64: value must be int64, got {value.dtype}")
    mixed = value + _GOLDEN_GAMMA
    mixed = (mixed ^ _shift_right(mixed, 30)) * _MIX_1
    mixed = (mixed ^ _shift_right(mixed, 27)) * _MIX_2
    return mixed ^ _shift_right(mixed, 31)


def row_seeds(request_seed: int | Tensor, step: int | Tensor, positions: Tensor) -> Tensor:
    """``splitmix64(splitmix64(splitmix64(request seed) + step) + position)``: a decoder's row seeds.

    docs/spec.md section 6.

    A request's draws then depend on its own seed, step and position only, never on what it is batched with.

    Args:
        request_seed: one integer for all requests, or int64 ``(B,)``.
        step: global step (forward pass) of the decode: one integer, or an int64 tensor, 0-dim or ``(B,)``.
        positions: int64 ``(B, K)`` (or ``(K,)`` with integer seed and step), counted from the request's first real
            token.

    Returns:
        int64 of the shape of ``positions``, on its device: the ``seed`` of ``score_tokens`` and ``wino_step_``.
    """

    def column(value: int | Tensor) -> Tensor:
        if not isinstance(value, Tensor):
            return _bits(value, positions.device)
        return value[..., None] if value.dim() else value

    return splitmix64(splitmix64(splitmix64(column(request_seed)) + column(step)) + positions)


def seeds_of_rows(seed: int, shape: torch.Size, device: torch.device) -> Tensor:
    """What an integer ``seed`` means to an operator: row r gets ``splitmix64(seed + r)``."""
    rows = torch.arange(shape.numel(), dtype=torch.int64, device=device)
    return splitmix64(rows + _bits(seed, device)).view(shape)
