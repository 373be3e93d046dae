"""trajectory_loss, the definition (docs/spec.md section 5): sums and counts of its three parts, and their gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wino_kernels.indices import check_indices


def trajectory_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    target_mask: Tensor,
    candidate_mask: Tensor,
    threshold: Tensor,
    threshold_back: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums (3,) and counts (3,) of cross entropy, unmask entropy and re-mask entropy; what the gradient needs of rows.

    The last, (3, N) over the flattened rows: log-sum-exp of the logits, entropy, and the parts that select the row, a
    sum of 1, 2 and 4. A row of no part has no gradient, whatever it holds; its first two numbers may be anything.
    """
    target, candidate, labels = target_mask.flatten(), candidate_mask.flatten(), labels.flatten()
    used = target | candidate
    log_p, log_sum_exp = _log_probabilities(_only(used, hidden), weight)
    entropy = -(log_p.exp() * log_p).sum(-1)
    top_log_p, top = log_p.max(-1)
    top_p = top_log_p.exp()
    sure = target & (top == labels) & (top_p < threshold_back)
    wrong = candidate & (top != labels) & (top_p > threshold)

    check_indices("trajectory_loss", "labels of targets", torch.where(target, labels, 0), weight.shape[0])
    inside = (labels >= 0) & (labels < weight.shape[0])
    log_sum_exp = torch.where(target & ~inside, torch.nan, log_sum_exp)  # no gradient without a loss
    cross_entropy = -log_p.gather(1, torch.where(inside, labels, 0)[:, None])[:, 0]
    cross_entropy = torch.where(inside, cross_entropy, torch.nan)
    parts = torch.stack((target, sure, wrong))  # [3, N]
    values = torch.stack((cross_entropy, entropy, entropy))
    selected = 1.0 * target + 2.0 * sure + 4.0 * wrong
    statistics = torch.stack((log_sum_exp, entropy, selected.to(entropy.dtype)))
    return torch.where(parts, values, 0.0).sum(1), parts.sum(1), statistics


def trajectory_loss_backward(
    grad_sums: Tensor, hidden: Tensor, weight: Tensor, labels: Tensor, statistics: Tensor, weight_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of ``(sums * grad_sums).sum()``: hidden's, and weight's if asked for (else an empty tensor)."""
    some = statistics[2] != 0
    log_sum_exp, entropy, selected = statistics.masked_fill(~some, 0.0)[:, :, None]  # [N, 1] each
    bits = selected.long()
    rows = _only(some, hidden)
    log_p = _logits(rows, weight) - log_sum_exp
    p = log_p.exp()

    # d CE / d logit_v = p_v - [v = label];  d H / d logit_v = -p_v (log p_v + H)
    parts = torch.stack([bits >> part & 1 for part in range(3)])  # [3, N, 1]
    of_cross_entropy, of_unmask, of_remask = torch.where(parts != 0, grad_sums.to(p.dtype)[:, None, None], 0.0)
    label = labels.flatten()[:, None]
    label = torch.where((label >= 0) & (label < weight.shape[0]), label, 0)
    d_cross_entropy = p.scatter_add(1, label, torch.full_like(p[:, :1], -1))
    d_entropy = -p * (log_p + entropy)
    grad_logits = of_cross_entropy * d_cross_entropy + (of_unmask + of_remask) * d_entropy
    grad_logits = grad_logits.to(hidden.dtype)  # [N, V]

    grad_hidden = (grad_logits @ weight).view(hidden.shape)
    return grad_hidden, grad_logits.T @ rows if weight_gradient else weight.new_empty(0)


def _only(used: Tensor, hidden: Tensor) -> Tensor:
    """``(N, H)`` with zeros in the other rows, so that garbage there reaches neither value nor gradient."""
    return hidden.flatten(0, -2).masked_fill(~used[:, None], 0.0)


def _logits(rows: Tensor, weight: Tensor) -> Tensor:
    logits = F.linear(rows, weight)
    return logits if logits.dtype == torch.float64 else logits.float()


def _log_probabilities(rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """``(N, V)`` and what was subtracted from the logits, ``(N,)``."""
    logits = _logits(rows, weight)
    return torch.log_softmax(logits, dim=-1), torch.logsumexp(logits, dim=-1)
