"""The native module of the CUDA kernels, and how its functions are called: on the tensors' device, on its stream."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wino_kernels._version import __version__

try:
    from wino_kernels import _C_cuda
except ImportError as error:
    raise ImportError(
        "the CUDA C++ kernels are not in this build: install from source where nvcc is found "
        f"(`pip install --force-reinstall --no-deps .`) [{error}]"
    ) from error

if _C_cuda.version != __version__:
    raise ImportError(
        f"{_C_cuda.__file__} was built for version {_C_cuda.version}, this is {__version__}: install again"
    )
if _reason := _C_cuda.why_not():
    raise ImportError(_reason)

DEVICES: tuple[str, ...] = _C_cuda.device_types

#: ``Dtype`` of csrc/cuda/operators.h.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

Argument = int | float


def launch(function: Callable[..., None], like: Tensor, *arguments: Argument) -> None:
    """``function(*arguments, stream)`` with the current stream of the device that ``like`` is on."""
    if not like.is_cuda:
        function(*arguments, 0)
        return
    stream = torch.cuda.current_stream(like.device).cuda_stream
    if like.device.index == torch.cuda.current_device():
        function(*arguments, stream)
        return
    with torch.cuda.device(like.device):
        function(*arguments, stream)


def per_row(value: Tensor | None) -> tuple[int, Argument]:
    """A value per row as the kernels take it: an address, or address 0 and the number that serves every row."""
    if value is None:
        return 0, 0
    if value.dim() == 0 and value.is_cpu:
        return 0, value.item()
    return value.data_ptr(), 0


def address(value: Tensor | None) -> int:
    """Address of a dense tensor, 0 for None."""
    return 0 if value is None else value.data_ptr()
