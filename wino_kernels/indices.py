"""Indices that a caller gives: looked at where looking costs no wait."""

from __future__ import annotations

import torch
from torch import Tensor


def check_indices(op: str, name: str, indices: Tensor, size: int) -> None:
    """Raise ``ValueError`` for an index outside ``[0, size)``.

    On the CPU alone, for elsewhere reading them would wait; and not in a compiled graph, which a look would break.
    """
    if torch.compiler.is_compiling() or indices.device.type != "cpu" or not indices.numel():
        return
    low, high = (int(bound) for bound in indices.aminmax())
    if low < 0 or high >= size:
        raise ValueError(f"{op}: {name} must be in [0, {size}), got {low if low < 0 else high}")
