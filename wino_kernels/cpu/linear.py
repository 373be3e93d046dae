"""Linear layers as the native module takes them."""

from __future__ import annotations

import torch
from torch import Tensor

from wino_kernels.cpu.addresses import address

#: Bytes of a call's weights. The kernels read them once for some seventy to a hundred rows, so they should stay in
#: cache; and they are packed into memory of that size. Beyond it the library's product per layer is as fast.
MOST_WEIGHT_BYTES = 16 << 20

_DTYPES = (torch.float32, torch.bfloat16)


def is_fused(x: Tensor, *weights: Tensor) -> bool:
    """Whether the native kernel serves this call; the library's products do otherwise."""
    return x.dtype in _DTYPES and sum(w.numel() for w in weights) * x.itemsize <= MOST_WEIGHT_BYTES


def linear(weight: Tensor, bias: Tensor | None) -> tuple[int, int, int, int, int]:
    """``Linear`` of csrc/bindings.cpp."""
    return weight.data_ptr(), address(bias), weight.shape[0], weight.shape[1], weight.stride(0)
