"""Philox-4x32-10 (Salmon et al., SC 2011) in int64 tensor arithmetic, and Gumbel noise (docs/spec.md section 6)."""

from __future__ import annotations

import torch
from torch import Tensor

_LOW_32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
# The largest float32 below 1: keeps the smallest Gumbel value finite, so that a banned token can never win.
_LARGEST_UNIFORM = 1.0 - 2.0**-24


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of the 64-bit product; int64 wraps around, which keeps the bits."""
    product = b * a
    return (product >> 32) & _LOW_32, product & _LOW_32


def philox_4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """The four output words. Every tensor is int64 and holds values in [0, 2**32); shapes broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high_0, low_0 = _multiply(_MULTIPLIERS[0], c0)
        high_1, low_1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW_32, (k1 + _KEY_STEPS[1]) & _LOW_32
    return c0, c1, c2, c3


def random_words(seed: Tensor, vocabulary: int) -> Tensor:
    """One 32-bit word per row and vocabulary index.

    Args:
        seed: int64 ``(rows,)``, the 64 bits of each row's key (low word first).
        vocabulary: V. Index v reads output word ``v % 4`` of counter ``(v // 4, 0, 0, 0)``.

    Returns:
        int64 ``(rows, V)`` with values in [0, 2**32).
    """
    key = (seed[:, None] & _LOW_32, (seed[:, None] >> 32) & _LOW_32)  # [rows, 1]
    blocks = torch.arange((vocabulary + 3) // 4, dtype=torch.int64, device=seed.device)[None]  # [1, blocks]
    zero = torch.zeros_like(blocks)
    words = torch.stack(philox_4x32((blocks, zero, zero, zero), key), dim=-1)  # [rows, blocks, 4]
    return words.flatten(1)[:, :vocabulary]


def gumbel_noise(seed: Tensor, vocabulary: int) -> Tensor:
    """Standard Gumbel noise, float32 ``(rows, V)``: x = (word + 0.5) / 2**32, E = -log1p(-x), g = -log(E)."""
    uniform = (random_words(seed, vocabulary).float() + 0.5) * 2.0**-32
    uniform = uniform.clamp(max=_LARGEST_UNIFORM)
    # Logarithms in float64, rounded once: torch's float32 ones differ in the last bit between vector body and tail.
    return -torch.log(-torch.log1p(-uniform.double())).float()
