"""How every Triton kernel is started: on a GPU, under the interpreter, or only noted, to be compiled ahead of time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources

from wino_kernels.strides import collapse
from wino_kernels.tuned import chip_of

#: Whether kernels run under the interpreter, on CPU tensors (``TRITON_INTERPRET=1`` when Triton was imported).
INTERPRETED: bool = bool(triton.knobs.runtime.interpret)


class Options(NamedTuple):
    """Compiler options of a kernel, all of them stated: results must not hang on a default of some Triton version."""

    num_warps: int
    num_stages: int
    fp_fusion: bool
    """Whether ``a * b + c`` may be rounded once."""
    entry: tuple[str, str] | None = None
    """Operator and shape class in the table of configurations; None: not from there."""


class Launch(NamedTuple):
    """One kernel start, as ``recording`` notes it."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Tensor | int | float | None]
    constants: dict[str, Any]
    options: Options


class _Recorder:
    target: str | None = None
    launches: list[Launch] | None = None


_recorder = _Recorder()


@contextlib.contextmanager
def recording(target: str) -> Iterator[list[Launch]]:
    """Inside, kernels do not run: their launches, configured for ``target`` (``"sm_90"``), are appended to the list.

    Meant for ahead-of-time compilation; tensors may be on the meta device. One thread at a time.
    """
    before = _recorder.target, _recorder.launches
    launches: list[Launch] = []
    _recorder.target, _recorder.launches = target, launches
    try:
        yield launches
    finally:
        _recorder.target, _recorder.launches = before


def target_of(device: torch.device) -> str:
    """The chip that kernels on ``device`` are configured for, such as ``"sm_90"`` or ``"gfx942"``."""
    if _recorder.target is not None:
        return _recorder.target
    if device.type != "cuda":
        return "interpreter"
    return chip_of(device)


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: dict[str, Tensor | int | float | None],
    constants: dict[str, Any],
    options: Options,
) -> None:
    """Start ``kernel`` on the current stream of its tensors' device. An argument None stands for an absent pointer.

    Raises:
        RuntimeError: the kernel's configuration does not fit the GPU; the message says how to get one that does.
    """
    if _recorder.launches is not None:
        _recorder.launches.append(Launch(kernel, grid, arguments, constants, options))
        return
    device = next(value.device for value in arguments.values() if isinstance(value, Tensor))
    guard: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        guard = torch.cuda.device(device)
    with guard:
        try:
            kernel[grid](
                **arguments,
                **constants,
                num_warps=options.num_warps,
                num_stages=options.num_stages,
                enable_fp_fusion=options.fp_fusion,
            )
        except OutOfResources as error:
            operator, shape_class = options.entry or (kernel.__name__, "any shape")
            raise RuntimeError(
                f"{operator}, {shape_class}: no launch configuration is known that fits {target_of(device)}: "
                f"{kernel.__name__} wants {error.required} of {error.name}, there is {error.limit}. "
                "`python -m wino_kernels.triton.tune` looks for one on this machine"
            ) from error


def scalar_or_rows(value: Tensor | None) -> tuple[Tensor | int | float | None, int]:
    """A per-row argument for a kernel: (number, 0) for a host scalar, (tensor, 1) for one value per row."""
    if value is None:
        return None, 0
    if value.dim() == 0 and value.is_cpu:  # anywhere else the host would have to wait for it
        return value.item(), 0
    return value, 1


def rows_of(tensor: Tensor) -> tuple[Tensor, int, int, int]:
    """``(..., N)`` as ``(tensor, inner, outer_stride, inner_stride)`` for a kernel, as in ``collapse``.

    A tensor whose leading strides do not combine to two is copied.
    """
    walked = collapse(tensor)
    if walked is None:
        return rows_of(tensor.contiguous())
    return tensor, *walked[1:]
