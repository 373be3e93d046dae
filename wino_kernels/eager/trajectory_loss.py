"""trajectory_loss, the definition (SPEC section 5): sums and counts of its three parts, and their gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class _Rows(NamedTuple):
    log_p: Tensor  # [N, V]
    entropy: Tensor  # [N]
    parts: Tensor  # bool [3, N]: rows of the cross entropy, the unmask entropy, the re-mask entropy
    label: Tensor  # [N], 0 where the label is outside the vocabulary
    label_inside: Tensor  # bool [N]


def _rows(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    target: Tensor,
    candidate: Tensor,
    threshold: Tensor,
    threshold_back: Tensor,
) -> _Rows:
    logits = F.linear(hidden, weight)
    log_p = torch.log_softmax(logits.double() if logits.dtype == torch.float64 else logits.float(), dim=-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    top_log_p, top = log_p.max(-1)
    top_p = top_log_p.exp()
    sure = target & (top == labels) & (top_p < threshold_back)
    wrong = candidate & (top != labels) & (top_p > threshold)
    inside = (labels >= 0) & (labels < weight.shape[0])
    return _Rows(log_p, entropy, torch.stack((target, sure, wrong)), torch.where(inside, labels, 0), inside)


def trajectory_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    target_mask: Tensor,
    candidate_mask: Tensor,
    threshold: Tensor,
    threshold_back: Tensor,
) -> tuple[Tensor, Tensor]:
    """Sums (3,) and counts (3,) of cross entropy, unmask entropy and re-mask entropy."""
    target, candidate = target_mask.flatten(), candidate_mask.flatten()
    hidden = _used_rows(hidden, target, candidate)
    rows = _rows(hidden, weight, labels.flatten(), target, candidate, threshold, threshold_back)
    cross_entropy = -rows.log_p.gather(1, rows.label[:, None])[:, 0]
    cross_entropy = torch.where(rows.label_inside, cross_entropy, torch.nan)
    values = torch.stack((cross_entropy, rows.entropy, rows.entropy))  # [3, N]
    return torch.where(rows.parts, values, 0.0).sum(1), rows.parts.sum(1)


def trajectory_loss_backward(
    grad_sums: Tensor,
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    target_mask: Tensor,
    candidate_mask: Tensor,
    threshold: Tensor,
    threshold_back: Tensor,
    weight_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of ``(sums * grad_sums).sum()``: hidden's, and weight's if asked for (else an empty tensor)."""
    target, candidate = target_mask.flatten(), candidate_mask.flatten()
    used = _used_rows(hidden, target, candidate)
    rows = _rows(used, weight, labels.flatten(), target, candidate, threshold, threshold_back)
    p = rows.log_p.exp()

    # d CE / d logit_v = p_v - [v = label];  d H / d logit_v = -p_v (log p_v + H)
    of_parts = torch.where(rows.parts, grad_sums.to(p.dtype)[:, None], 0.0)  # [3, N]
    of_cross_entropy, of_entropy = of_parts[0][:, None], (of_parts[1] + of_parts[2])[:, None]
    minus_one = torch.full_like(rows.label[:, None], -1, dtype=p.dtype)
    d_cross_entropy = p.scatter_add(1, rows.label[:, None], minus_one)
    d_entropy = -p * (rows.log_p + rows.entropy[:, None])
    grad_logits = (of_cross_entropy * d_cross_entropy + of_entropy * d_entropy).to(hidden.dtype)  # [N, V]

    grad_hidden = (grad_logits @ weight).view(hidden.shape)
    return grad_hidden, grad_logits.T @ used if weight_gradient else weight.new_empty(0)


def _used_rows(hidden: Tensor, target: Tensor, candidate: Tensor) -> Tensor:
    """``(N, H)`` with zeros in the rows of neither kind, so that garbage there reaches neither value nor gradient."""
    return hidden.flatten(0, -2).masked_fill(~(target | candidate)[:, None], 0.0)
