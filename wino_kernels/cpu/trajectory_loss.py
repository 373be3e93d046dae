"""trajectory_loss on the CPU (docs/spec.md section 5): Torch's matrix product a tile of V at a time, reduced natively.

Only the rows that matter are multiplied, and backward only those with a gradient. float64 is left to the definition.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wino_kernels import _C, eager
from wino_kernels.cpu.addresses import DTYPES
from wino_kernels.cpu.tiles import most_rows, tiles_of_logits
from wino_kernels.indices import check_indices


class _Found(NamedTuple):
    """Of the used rows; float64 but for the last two."""

    log_sum_exp: Tensor
    entropy: Tensor
    cross_entropy: Tensor  # NaN where the label is outside the vocabulary
    top_p: Tensor
    top: Tensor


def trajectory_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    target_mask: Tensor,
    candidate_mask: Tensor,
    threshold: Tensor,
    threshold_back: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    if hidden.dtype not in DTYPES:
        return eager.KERNELS["trajectory_loss"](
            hidden, weight, labels, target_mask, candidate_mask, threshold, threshold_back
        )
    target, candidate = target_mask.flatten(), candidate_mask.flatten()
    at = (target | candidate).nonzero().view(-1)
    labels, target, candidate = labels.flatten()[at], target[at], candidate[at]
    check_indices("trajectory_loss", "labels of targets", labels[target], weight.shape[0])
    with torch.no_grad():  # products go to a buffer
        found = _statistics(_gathered(hidden, at), weight, labels)
    sure = target & (found.top == labels) & (found.top_p < threshold_back)
    wrong = candidate & (found.top != labels) & (found.top_p > threshold)

    parts = torch.stack((target, sure, wrong))
    values = torch.stack((found.cross_entropy, found.entropy, found.entropy))
    statistics = torch.zeros(3, target_mask.numel(), dtype=torch.float32)
    selected = 1.0 * target + 2.0 * sure + 4.0 * wrong
    statistics[:, at] = torch.stack((found.log_sum_exp.float(), found.entropy.float(), selected))
    return torch.where(parts, values, 0.0).sum(1).float(), parts.sum(1), statistics


def trajectory_loss_backward(
    grad_sums: Tensor, hidden: Tensor, weight: Tensor, labels: Tensor, statistics: Tensor, weight_gradient: bool
) -> tuple[Tensor, Tensor]:
    if hidden.dtype not in DTYPES:
        return eager.KERNELS["trajectory_loss_backward"](grad_sums, hidden, weight, labels, statistics, weight_gradient)
    log_sum_exp, entropy, selected = statistics
    bits = selected.int()
    parts = torch.stack([bits >> part & 1 for part in range(3)]) != 0
    of_cross_entropy, of_unmask, of_remask = torch.where(parts, grad_sums.float()[:, None], 0.0)
    # What trajectory_loss.cpp calls LossGradient.
    coefficients = torch.stack((log_sum_exp, entropy, of_cross_entropy, of_unmask + of_remask), 1)
    some = coefficients[:, 2:].any(1).nonzero().view(-1)

    grad_hidden = torch.zeros(hidden.shape, dtype=hidden.dtype)
    grad_weight = torch.empty(weight.shape if weight_gradient else 0, dtype=weight.dtype)
    for number, at in enumerate(some.split(most_rows(hidden.dtype))):
        rows, chosen = _gathered(hidden, at), coefficients[at].contiguous()
        gradient = _gradient(rows, weight, labels.flatten()[at], chosen, grad_weight, add=number > 0)
        grad_hidden.view(-1, hidden.shape[-1])[at] = gradient.to(hidden.dtype)
    return grad_hidden, grad_weight


def _gathered(hidden: Tensor, at: Tensor) -> Tensor:
    """Rows of a hidden with leading dimensions: gathered before flattening, so that nothing else is copied."""
    return hidden[torch.unravel_index(at, hidden.shape[:-1])].contiguous()


def _statistics(hidden: Tensor, weight: Tensor, labels: Tensor) -> _Found:
    number = len(hidden)
    log_sum_exp, entropy, cross_entropy = (torch.empty(number, dtype=torch.float64) for _ in range(3))
    found = _Found(
        log_sum_exp,
        entropy,
        cross_entropy,
        torch.empty(number, dtype=torch.float32),
        torch.empty(number, dtype=torch.int64),
    )
    state = torch.empty(number * _C.loss_row_bytes // 8, dtype=torch.int64)
    _C.trajectory_loss_begin(number, state.data_ptr())
    threads, most = torch.get_num_threads(), most_rows(hidden.dtype)
    for start in range(0, number, most):
        some, theirs = hidden[start : start + most], labels[start : start + most]
        for first, logits in tiles_of_logits(some, weight):
            _C.trajectory_loss_tile(
                logits.data_ptr(),
                DTYPES[some.dtype],
                len(some),
                logits.shape[1],
                logits.stride(0),
                first,
                theirs.data_ptr(),
                state.data_ptr() + start * _C.loss_row_bytes,
                threads,
            )
    _C.trajectory_loss_end(number, state.data_ptr(), *(tensor.data_ptr() for tensor in found))
    return found


def _gradient(
    rows: Tensor, weight: Tensor, labels: Tensor, coefficients: Tensor, grad_weight: Tensor, add: bool
) -> Tensor:
    """Of ``rows``, float32; that of the weight is written, or added, to ``grad_weight`` unless it is empty."""
    gradient = torch.zeros(rows.shape, dtype=torch.float32)
    threads = torch.get_num_threads()
    for first, logits in tiles_of_logits(rows, weight):
        _C.trajectory_loss_gradient(
            logits.data_ptr(),
            DTYPES[rows.dtype],
            len(rows),
            logits.shape[1],
            logits.stride(0),
            first,
            labels.data_ptr(),
            coefficients.data_ptr(),
            threads,
        )
        tile = slice(first, first + logits.shape[1])  # its logits are gradients now
        gradient += logits @ weight[tile]
        if len(grad_weight):
            grad_weight[tile].addmm_(logits.t(), rows, beta=int(add))
    return gradient
