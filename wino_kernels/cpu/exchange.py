"""Tensors that the native module reads itself, through DLPack's C exchange API where Torch publishes it.

Looking at the tensors of a step from Python costs several times what small operators cost.
"""

from __future__ import annotations

import torch

from wino_kernels import _C

HAS_EXCHANGE: bool = _C.use_exchange_of(torch.Tensor)
