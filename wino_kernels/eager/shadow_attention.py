"""shadow_attention, the definition (docs/spec.md sections 2 and 6)."""

from __future__ import annotations

import torch
from torch import Tensor


def visibility(num_queries: int, num_keys: int, num_shadow: int, block_start: Tensor) -> Tensor:
    """Which key each query sees: bool ``(B, Lq, Lk)`` from ``block_start`` ``(B,)``."""
    first_shadow = num_keys - num_shadow
    key = torch.arange(num_keys, device=block_start.device)
    shadow = torch.arange(num_queries, device=block_start.device) - (num_queries - num_shadow)  # < 0: a real query
    is_real_key = key < first_shadow
    own_token = key[None, None, :] == block_start[:, None, None] + shadow[None, :, None]  # [B, Lq, Lk]
    return torch.where(shadow[:, None] < 0, is_real_key[None, :], ~(own_token & is_real_key))


def shadow_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_shadow: int,
    block_start: Tensor,
    key_padding_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    group = query.shape[1] // key.shape[1]
    visible = visibility(query.shape[2], key.shape[2], num_shadow, block_start)[:, None]  # [B, 1, Lq, Lk]
    if key_padding_mask is not None:
        visible = visible & key_padding_mask[:, None, None, :]
        value = value.masked_fill(~key_padding_mask[:, None, :, None], 0.0)  # 0 * garbage would be garbage

    precise = torch.float64 if query.dtype == torch.float64 else torch.float32
    query, scale = query.to(precise), query.shape[-1] ** -0.5 if scale is None else scale
    key, value, dtype = key.to(precise), value.to(precise), value.dtype
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = (query @ key.transpose(-1, -2)) * scale  # [B, Hq, Lq, Lk]
    weights = torch.softmax(scores.masked_fill(~visible, -torch.inf), dim=-1)
    weights = weights.masked_fill(~visible.any(-1, keepdim=True), 0.0)  # sees nothing: zeros, not NaN
    return (weights @ value).to(dtype)
