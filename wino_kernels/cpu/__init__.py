"""The native CPU kernels: one file per operator, which turns tensors into addresses, sizes and strides.

Importing this package loads ``wino_kernels._C``, puts it on Torch's OpenMP runtime and honours ``WINO_CPU_ISA``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from wino_kernels import _C
from wino_kernels._version import __version__
from wino_kernels.backends import CPU_ISAS, BackendUnavailableError
from wino_kernels.cpu.accept import accept_
from wino_kernels.cpu.accept_remask import accept_remask_
from wino_kernels.cpu.linear_score_tokens import linear_score_tokens
from wino_kernels.cpu.norm_qkv_rope import norm_qkv_rope
from wino_kernels.cpu.out_norm_swiglu import out_norm_swiglu
from wino_kernels.cpu.score_tokens import score_tokens
from wino_kernels.cpu.shadow_attention import shadow_attention
from wino_kernels.cpu.shadow_trunk import shadow_trunk
from wino_kernels.cpu.trajectory_loss import trajectory_loss, trajectory_loss_backward
from wino_kernels.cpu.wino_step import wino_step_

DEVICES: tuple[str, ...] = ("cpu",)

KERNELS: dict[str, Callable[..., Any]] = {
    "score_tokens": score_tokens,
    "linear_score_tokens": linear_score_tokens,
    "accept_remask_": accept_remask_,
    "accept_": accept_,
    "wino_step_": wino_step_,
    "shadow_attention": shadow_attention,
    "norm_qkv_rope": norm_qkv_rope,
    "out_norm_swiglu": out_norm_swiglu,
    "shadow_trunk": shadow_trunk,
    "trajectory_loss": trajectory_loss,
    "trajectory_loss_backward": trajectory_loss_backward,
}


def _share_openmp_with_torch() -> str:
    """A second OpenMP runtime would put twice as many threads on the cores. Returns the runtime's path or why none."""
    libraries = sorted(Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"))
    return str(_C.use_openmp_of(str(libraries[0]))) if libraries else "no libtorch_cpu beside torch"


def _use_requested_isa() -> None:
    name = os.environ.get("WINO_CPU_ISA", "")
    if not name:
        return
    if name not in CPU_ISAS:
        raise BackendUnavailableError(f"WINO_CPU_ISA: expected one of {', '.join(CPU_ISAS)}, got {name!r}")
    if reason := _C.why_not_isa(name):
        raise BackendUnavailableError(f"WINO_CPU_ISA={name}: {reason}")
    _C.set_isa(name)


if _C.version != __version__:
    raise ImportError(f"{_C.__file__} was built for version {_C.version}, this is {__version__}: install again")
OPENMP = _share_openmp_with_torch()
_use_requested_isa()
