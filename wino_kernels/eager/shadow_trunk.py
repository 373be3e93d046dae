"""shadow_trunk, the definition: one layer after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from wino_kernels.eager.norm_qkv_rope import norm_qkv_rope, rms_norm, rows_of
from wino_kernels.eager.out_norm_swiglu import out_norm_swiglu
from wino_kernels.eager.shadow_attention import shadow_attention

#: Weights of a layer, in the order in which they are given: norm, query, key, value, output projection, norm, gate, up,
#: down; and of those the linear layers, in the order of the biases.
WEIGHTS, BIASES = 9, 7


Operator = Callable[..., Any]


def by(before: Operator, attend: Operator, after: Operator, norm: Operator) -> Callable[..., Tensor]:
    """shadow_trunk by norm_qkv_rope, shadow_attention, out_norm_swiglu and an rms_norm that are given."""

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
        packed: Tensor | None = None,  # the weights once more, for a backend that reads them in its own order
    ) -> Tensor:
        number = len(weights) // WEIGHTS
        queries, answers = asking(rows, x.shape[1], num_shadow)
        for layer in range(number):
            norm_1, q, k, v, out, norm_2, *mlp = weights[WEIGHTS * layer : WEIGHTS * (layer + 1)]
            own = biases[BIASES * layer : BIASES * (layer + 1)] if biases else [None] * BIASES
            last = layer == number - 1
            asked = queries if last else None
            query, key, value = before(x, norm_1, q, k, v, cos, sin, eps, *own[:3], asked, full_precision)
            attended = attend(query, key, value, num_shadow, block_start, key_padding_mask)
            if last:
                x = rows_of(x, rows)
                _, heads, _, head_dim = attended.shape
                attended = attended.gather(2, answers[:, None, :, None].expand(-1, heads, -1, head_dim))
            x = after(x, attended, out, norm_2, *mlp, eps, *own[3:])
        return x if norm_weight is None else norm(x, norm_weight, eps)

    return shadow_trunk


def asking(rows: Tensor, length: int, num_shadow: int) -> tuple[Tensor, Tensor]:
    """The rows that ask in the last layer, and where among them each of ``rows`` finds its answer.

    Each row asks as a real one, then the whole shadow block does: attention knows the two by their place.
    """
    num_real, among = length - num_shadow, torch.arange(rows.shape[1], device=rows.device)
    shadow = torch.arange(num_real, length, device=rows.device).expand(len(rows), -1)
    answers = torch.where(rows < num_real, among, rows - num_real + rows.shape[1])
    return torch.cat((rows, shadow), dim=1), answers


shadow_trunk = by(norm_qkv_rope, shadow_attention, out_norm_swiglu, rms_norm)
