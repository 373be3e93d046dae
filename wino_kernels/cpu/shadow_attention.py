"""shadow_attention on the CPU (SPEC sections 2, 6): two calls of the library's attention, no mask over all queries.

Real queries see plain attention over the real keys; only the shadow queries need a mask, (B, 1, K, Lk), or one for all
sequences where that is the same.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def shadow_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_shadow: int,
    block_start: Tensor,
    key_padding_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    if not query.numel() or not key.shape[2]:
        return query.new_zeros(query.shape)
    starts = block_start.tolist()
    if key_padding_mask is not None and not bool(key_padding_mask.all()):
        padded = int(key_padding_mask.any(0).byte().argmax())  # keys in front of every sequence, cut off
        padded = min(padded, key.shape[2] - num_shadow)
        key, value, key_padding_mask = key[:, :, padded:], value[:, :, padded:], key_padding_mask[:, padded:]
        starts = [start - padded for start in starts]

    mask = _shadow_mask(query, key.shape[2], num_shadow, starts)
    if key_padding_mask is None or bool(key_padding_mask.all()):
        return _attend(query, key, value, num_shadow, mask, None, scale)
    absent = ~key_padding_mask[:, None, None]
    padding = query.new_zeros(absent.shape).masked_fill_(absent, -torch.inf)  # [B, 1, 1, Lk]
    mask = mask + padding
    output = _attend(query, key, value, num_shadow, mask, padding, scale)
    if math.isnan(output.sum()):
        # Weight 0 times garbage is garbage. Rare, so padded keys are cleared only when it shows, not in every call.
        absent = absent.transpose(2, 3)
        key, value = key.masked_fill(absent, 0.0), value.masked_fill(absent, 0.0)
        output = _attend(query, key, value, num_shadow, mask, padding, scale)
    return output


def _shadow_mask(query: Tensor, num_keys: int, num_shadow: int, starts: list[int]) -> Tensor:
    """What is added to the scores of the last M queries: ``(1 or B, 1, M, Lk)``.

    M is K; or Lq where real queries are as few as shadow queries: in one call, keys and values are read once.
    """
    num_masked = query.shape[2] if query.shape[2] <= 2 * num_shadow else num_shadow
    real_keys = num_keys - num_shadow
    if len(set(starts)) == 1:
        starts = starts[:1]
    mask = query.new_zeros(len(starts), 1, num_masked, num_keys)
    for own, start in zip(mask[:, 0, num_masked - num_shadow :, :real_keys], starts, strict=True):
        own.diagonal(max(-num_shadow, min(start, num_keys))).fill_(-torch.inf)  # empty if no such key is real
    if num_masked > num_shadow:
        mask[:, :, : num_masked - num_shadow, real_keys:] = -torch.inf
    return mask


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_shadow: int,
    mask: Tensor,
    padding: Tensor | None,
    scale: float | None,
) -> Tensor:
    """Contiguous whatever the query's strides, as the fake promises. The library gives zeros where nothing is seen."""
    masked, real_keys = mask.shape[2], key.shape[2] - num_shadow
    plain = query.shape[2] - masked
    grouped = query.shape[1] != key.shape[1]
    parts = []
    if plain:
        seen = None if padding is None else padding[..., :real_keys]
        real, keys, values = query[:, :, :plain], key[:, :, :real_keys], value[:, :, :real_keys]
        parts.append(F.scaled_dot_product_attention(real, keys, values, seen, scale=scale, enable_gqa=grouped))
    if masked:
        shadow = query[:, :, plain:]
        parts.append(F.scaled_dot_product_attention(shadow, key, value, mask, scale=scale, enable_gqa=grouped))
    return torch.cat(parts, 2)
