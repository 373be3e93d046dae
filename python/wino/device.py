"""Which device a model goes to, and what serves it there."""

from __future__ import annotations

import os
from typing import Any

import torch

from wino_kernels import backends


def choose_device(device: torch.device | str | None = "auto") -> torch.device:
    """The device meant: ``"auto"`` or None is a CUDA GPU where there is one, else the CPU.

    Of several processes on one machine (``torchrun``, ``accelerate launch``) each gets its own GPU.

    Raises:
        ValueError: Torch does not know it, or cannot use it here.
    """
    if device is None or device == "auto":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device: {device!r} cannot be used here ({str(error).strip().splitlines()[0]})") from error


def describe_placement(model: Any) -> str:
    """Device, dtype and kernels of ``model``, as in "cpu with 2 threads, bfloat16, kernels: cpu (avx512bf16)"."""
    parameter = next(model.parameters())
    device = parameter.device
    if device.type == "cuda":
        where = f"{device} ({torch.cuda.get_device_name(device)})"
    else:
        threads = torch.get_num_threads()
        where = f"{device} with {threads} thread{'' if threads == 1 else 's'}"
    backend = backends.serving(backends.current_backend(), "linear_score_tokens", device.type)
    kernels = f"cpu ({backends.cpu_isa()})" if backend == "cpu" else backend
    return f"{where}, {str(parameter.dtype).removeprefix('torch.')}, kernels: {kernels}"
