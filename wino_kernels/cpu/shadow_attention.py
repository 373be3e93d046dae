"""shadow_attention on the CPU (SPEC sections 2, 6): two calls of the library's attention, no mask over all queries.

Real queries see plain attention over the real keys; only the shadow queries need a mask, (B, 1, K, Lk).
"""

from __future__ import annotations

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
    padding = None
    if key_padding_mask is not None and not bool(key_padding_mask.all()):
        padding = key_padding_mask[:, None, None, :]  # [B, 1, 1, Lk]
        absent = ~padding.transpose(2, 3)  # [B, 1, Lk, 1]
        key, value = key.masked_fill(absent, 0.0), value.masked_fill(absent, 0.0)  # 0 * garbage would be garbage
    num_real, real_keys = query.shape[2] - num_shadow, key.shape[2] - num_shadow
    real_padding = None if padding is None else padding[..., :real_keys]
    output = torch.empty_like(query)
    if num_real:
        real = _attend(query[:, :, :num_real], key[:, :, :real_keys], value[:, :, :real_keys], real_padding, scale)
        output[:, :, :num_real] = real
    if num_shadow:
        visible = _shadow_visibility(key.shape[2], num_shadow, block_start)
        visible = visible if padding is None else visible & padding
        output[:, :, num_real:] = _attend(query[:, :, num_real:], key, value, visible, scale)
    return output


def _shadow_visibility(num_keys: int, num_shadow: int, block_start: Tensor) -> Tensor:
    """Which keys the shadow queries see: bool (B, 1, K, Lk), all but the real token each one stands for."""
    offset = torch.arange(num_shadow)
    own = block_start[:, None] + offset  # [B, K]
    keys = torch.arange(num_keys)
    hidden = (keys == own[:, :, None]) & (keys < num_keys - num_shadow)
    return ~hidden[:, None]


def _attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, scale: float | None) -> Tensor:
    if not key.shape[2]:
        return torch.zeros_like(query)
    grouped = query.shape[1] != key.shape[1]
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scale, enable_gqa=grouped)
    if visible is None:
        return output
    blind = ~visible.any(-1, keepdim=True)  # a query that sees nothing: zeros
    return output.masked_fill(blind, 0.0) if bool(blind.any()) else output
