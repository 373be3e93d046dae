"""The CUDA C++ kernels: one file per operator, which turns tensors into addresses, sizes and strides.

docs/spec.md section 6.

``KERNELS`` and ``DEVICES`` are there where the kernels can run; asking for them elsewhere raises ImportError with the
reason. ``compiled`` says what the kernels compile to and needs neither a driver nor the native module.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

KERNELS: dict[str, Callable[..., Any]]
#: Device types whose tensors the kernels accept here.
DEVICES: tuple[str, ...]

_OPERATORS = {
    "score_tokens": "score_tokens",
    "accept_remask_": "accept_remask",
    "accept_": "accept",
    "wino_step_": "wino_step",
}


def __getattr__(name: str) -> Any:
    if name not in ("KERNELS", "DEVICES"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    native = importlib.import_module("wino_kernels.cuda.native")
    kernels = {op: getattr(importlib.import_module(f"wino_kernels.cuda.{stem}"), op) for op, stem in _OPERATORS.items()}
    globals().update(KERNELS=kernels, DEVICES=native.DEVICES)
    return globals()[name]
