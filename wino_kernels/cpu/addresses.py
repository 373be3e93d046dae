"""What the operators' wrappers share: how a tensor is described to the native module."""

from __future__ import annotations

import torch
from torch import Tensor

#: ``Dtype`` of csrc/cpu/kernels.h.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def per_row(value: Tensor | None) -> tuple[int, int]:
    """Address and stride of a value per row: stride 0 for a 0-dim tensor, address 0 for None."""
    if value is None:
        return 0, 0
    return value.data_ptr(), 1 if value.dim() else 0


def address(value: Tensor | None) -> int:
    """Address of a dense tensor, 0 for None."""
    return 0 if value is None else value.data_ptr()
