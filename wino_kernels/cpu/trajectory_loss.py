"""trajectory_loss on the CPU (SPEC section 5): Torch's matrix product a tile of V at a time, reduced natively.

Only the rows that matter are multiplied, and backward only those with a gradient. float64 is left to the definition.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wino_kernels import _C, eager
from wino_kernels.cpu.addresses import DTYPES
from wino_kernels.cpu.tiles import most_rows, tiles_of_logits


class _Statistics(NamedTuple):
    log_sum_exp: Tensor  # float64 [rows], like the next two
    entropy: Tensor
    cross_entropy: Tensor  # NaN where the label is outside the vocabulary
    parts: Tensor  # bool [3, rows]: rows of the cross entropy, the unmask entropy, the re-mask entropy


class _Rows(NamedTuple):
    """The used rows of a call: targets and candidates."""

    hidden: Tensor  # [rows, H]
    labels: Tensor
    target: Tensor
    candidate: Tensor
    at: Tensor  # where they stand among all rows


def trajectory_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    target_mask: Tensor,
    candidate_mask: Tensor,
    threshold: Tensor,
    threshold_back: Tensor,
) -> tuple[Tensor, Tensor]:
    if hidden.dtype not in DTYPES:
        return eager.KERNELS["trajectory_loss"](
            hidden, weight, labels, target_mask, candidate_mask, threshold, threshold_back
        )
    rows = _used_rows(hidden, labels, target_mask, candidate_mask)
    with torch.no_grad():  # products go to a buffer
        found = _statistics(rows, weight, threshold, threshold_back)
    values = torch.stack((found.cross_entropy, found.entropy, found.entropy))
    return torch.where(found.parts, values, 0.0).sum(1).float(), found.parts.sum(1)


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
    inputs = hidden, weight, labels, target_mask, candidate_mask, threshold, threshold_back
    if hidden.dtype not in DTYPES:
        return eager.KERNELS["trajectory_loss_backward"](grad_sums, *inputs, weight_gradient)
    rows = _used_rows(hidden, labels, target_mask, candidate_mask)
    found = _statistics(rows, weight, threshold, threshold_back)
    of_parts = torch.where(found.parts, grad_sums.float()[:, None], 0.0)
    of_cross_entropy, of_entropy = of_parts[0], of_parts[1] + of_parts[2]
    # What trajectory_loss.cpp calls LossGradient.
    coefficients = torch.stack(
        (found.log_sum_exp.float(), found.entropy.float(), of_cross_entropy, of_entropy), 1
    ).contiguous()
    some = ((of_cross_entropy != 0) | (of_entropy != 0)).nonzero().view(-1)

    grad_hidden = torch.zeros(hidden.shape, dtype=hidden.dtype)
    grad_weight = torch.zeros(weight.shape, dtype=weight.dtype) if weight_gradient else weight.new_empty(0)
    for part in some.split(most_rows(hidden.dtype)):
        gradient = _gradient(rows.hidden[part], weight, rows.labels[part], coefficients[part], grad_weight)
        grad_hidden.view(-1, hidden.shape[-1])[rows.at[part]] = gradient.to(hidden.dtype)
    return grad_hidden, grad_weight


def _used_rows(hidden: Tensor, labels: Tensor, target_mask: Tensor, candidate_mask: Tensor) -> _Rows:
    target, candidate = target_mask.flatten(), candidate_mask.flatten()
    at = (target | candidate).nonzero().view(-1)
    # Which rows of a hidden with leading dimensions: gathered before flattening, so that nothing else is copied.
    chosen = hidden[torch.unravel_index(at, hidden.shape[:-1])]
    return _Rows(chosen.contiguous(), labels.flatten()[at], target[at], candidate[at], at)


def _statistics(rows: _Rows, weight: Tensor, threshold: Tensor, threshold_back: Tensor) -> _Statistics:
    number = len(rows.at)
    log_sum_exp, entropy, cross_entropy = (torch.empty(number, dtype=torch.float64) for _ in range(3))
    top_p, top = torch.empty(number, dtype=torch.float32), torch.empty(number, dtype=torch.int64)
    state = torch.empty(number * _C.loss_row_bytes // 8, dtype=torch.int64)
    _C.trajectory_loss_begin(number, state.data_ptr())
    threads, most = torch.get_num_threads(), most_rows(rows.hidden.dtype)
    for start in range(0, number, most):
        some, labels = rows.hidden[start : start + most], rows.labels[start : start + most]
        for first, logits in tiles_of_logits(some, weight):
            _C.trajectory_loss_tile(
                logits.data_ptr(),
                DTYPES[some.dtype],
                len(some),
                logits.shape[1],
                logits.stride(0),
                first,
                labels.data_ptr(),
                state.data_ptr() + start * _C.loss_row_bytes,
                threads,
            )
    addresses = (tensor.data_ptr() for tensor in (log_sum_exp, entropy, cross_entropy, top_p, top))
    _C.trajectory_loss_end(number, state.data_ptr(), *addresses)
    sure = rows.target & (top == rows.labels) & (top_p < threshold_back)
    wrong = rows.candidate & (top != rows.labels) & (top_p > threshold)
    return _Statistics(log_sum_exp, entropy, cross_entropy, torch.stack((rows.target, sure, wrong)))


def _gradient(rows: Tensor, weight: Tensor, labels: Tensor, coefficients: Tensor, grad_weight: Tensor) -> Tensor:
    """Of ``rows``, float32; that of the weight is added to ``grad_weight`` unless it is empty."""
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
            grad_weight[tile] += logits.t() @ rows
    return gradient
