"""Which backends exist on this machine, why the others do not, and which one serves an operator.

A backend is a package ``wino_kernels/<name>/`` whose ``__init__`` exports ``KERNELS``: operator name to function, and
``DEVICES``: the types of device whose tensors it accepts here (None: all of Torch's).
Selection, innermost first: ``with use_backend(name)``, the environment variable ``WINO_BACKEND``, ``"auto"``.
``auto`` takes the backend that was measured as the fastest (``tuned``), else the first of ``BACKENDS`` that is meant
for the device and has the operator, and warns once when one that was meant to serve it could not be loaded. An explicit
backend that cannot serve a call raises.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from wino_kernels import tuned

__all__ = [
    "BACKENDS",
    "CPU_ISAS",
    "BackendUnavailableError",
    "available",
    "cpu_isa",
    "current_backend",
    "has_kernel",
    "implementation",
    "serving",
    "use_backend",
    "use_cpu_isa",
    "why_not",
    "why_not_cpu_isa",
]

#: Every backend, in the order in which ``auto`` tries them.
BACKENDS: tuple[str, ...] = ("cpu", "triton", "cuda", "eager")

#: Instruction sets of the cpu backend, widest first.
CPU_ISAS: tuple[str, ...] = ("amx", "avx512bf16", "avx512", "avx2", "neon", "portable")

# Device types for which ``auto`` considers a backend; None: all. An interpreted backend accepts more on request.
_MEANT_FOR: dict[str, tuple[str, ...] | None] = {"cpu": ("cpu",), "triton": ("cuda",), "cuda": ("cuda",), "eager": None}

#: Attributes a kernel may have: ``if_valid``, the same call on arguments that nobody has checked (None, with nothing
#: done, where it does not find them valid), which an operator consults before its own checks where those cost more than
#: the kernel; ``pack``, see :func:`wino_kernels.pack_trunk`.
Kernel = Callable[..., Any]


class BackendUnavailableError(RuntimeError):
    """A backend or instruction set was asked for by name and cannot serve the call here."""


class _Loaded(NamedTuple):
    kernels: dict[str, Kernel]
    devices: tuple[str, ...] | None
    reason: str | None
    refused: bool  # the reason is a request (an environment variable) that cannot be met


_selected: contextvars.ContextVar[str | None] = contextvars.ContextVar("wino_backend", default=None)
_from_environment: str = os.environ.get("WINO_BACKEND", "") or "auto"
_resolved: dict[tuple[str, str, str], Kernel] = {}


@functools.cache
def _load(backend: str) -> _Loaded:
    try:
        module = importlib.import_module(f"wino_kernels.{backend}")
        return _Loaded(module.KERNELS, module.DEVICES, None, False)
    except BackendUnavailableError as error:
        return _Loaded({}, (), str(error), True)
    except Exception as error:  # a broken shared object may raise anything; the reason is reported, never swallowed
        return _Loaded({}, (), f"{type(error).__name__}: {error}", False)


def _known(name: str, source: str) -> None:
    if name != "auto" and name not in BACKENDS:
        choices = ", ".join(("auto", *BACKENDS))
        raise BackendUnavailableError(f"{source}: unknown backend {name!r}; expected one of {choices}")


def why_not(backend: str) -> str | None:
    """The reason why ``backend`` cannot be used in this process, or None when it can."""
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    return _load(backend).reason


def available() -> tuple[str, ...]:
    """The backends that can be used in this process, in the order in which ``auto`` tries them."""
    return tuple(name for name in BACKENDS if why_not(name) is None)


def current_backend() -> str:
    """The selected backend: that of the innermost ``use_backend``, else ``WINO_BACKEND``, else ``"auto"``."""
    return _selected.get() or _from_environment


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Select a backend (or ``"auto"``) for the calls made in the ``with`` block.

    The selection belongs to the current context (thread or task). It does not cover the backward pass on a device whose
    autograd runs in its own thread.

    Raises:
        BackendUnavailableError: ``name`` is unknown, or cannot be used here (the message says why).
    """
    _known(name, "use_backend")
    if name != "auto" and (reason := why_not(name)) is not None:
        raise BackendUnavailableError(f"backend {name!r} is unavailable: {reason}")
    token = _selected.set(name)
    try:
        yield
    finally:
        _selected.reset(token)


def implementation(op: str, device_type: str) -> Kernel:
    """The function that serves operator ``op`` on ``device_type`` (``"cpu"``, ``"cuda"``, ...) now.

    Raises:
        BackendUnavailableError: nothing can serve it; the message names operator, backend and reason.
    """
    key = (_selected.get() or _from_environment, op, device_type)
    kernel = _resolved.get(key)
    if kernel is None:
        kernel = _resolved[key] = _resolve(*key)
    return kernel


def _resolve(backend: str, op: str, device_type: str) -> Kernel:
    name = serving(backend, op, device_type)
    if backend == "auto":
        for skipped in BACKENDS[: BACKENDS.index(name)]:
            if _meant_for(skipped, device_type) and why_not(skipped) is not None:
                _warn_unloadable(skipped)
    return _load(name).kernels[op]


def serving(backend: str, op: str, device_type: str) -> str:
    """The name of the backend that serves ``op`` on ``device_type`` when ``backend`` (or ``"auto"``) is selected.

    Raises:
        BackendUnavailableError: nothing can serve it; the message names operator, backend and reason.
    """
    _known(backend, "WINO_BACKEND")
    refusals = []
    for name in _in_order(op, device_type) if backend == "auto" else [backend]:
        reason = _refusal(name, op, device_type)
        if reason is None:
            return name
        if backend == "auto" and _load(name).refused:
            raise BackendUnavailableError(reason)
        refusals.append(f"{name}: {reason}")
    raise BackendUnavailableError(
        f"operator {op!r} on device {device_type!r}: backend {backend!r} cannot serve it ({'; '.join(refusals)})"
    )


def has_kernel(op: str, device_type: str) -> bool:
    """Whether more than the eager definition serves ``op`` on ``device_type`` now; False too where nothing does."""
    return _has_kernel(_selected.get() or _from_environment, op, device_type)


@functools.cache
def _has_kernel(backend: str, op: str, device_type: str) -> bool:
    try:
        return serving(backend, op, device_type) != "eager"
    except BackendUnavailableError:
        return False


def _in_order(op: str, device_type: str) -> list[str]:
    """The backends meant for the device; the one that was measured as the fastest on it comes first."""
    names = [name for name in BACKENDS if _meant_for(name, device_type)]
    measured = tuned.fastest_backend(op) if device_type == "cuda" else None
    return sorted(names, key=lambda name: name != measured)


def _meant_for(backend: str, device_type: str) -> bool:
    devices = _MEANT_FOR[backend]
    return devices is None or device_type in devices


def _refusal(backend: str, op: str, device_type: str) -> str | None:
    loaded = _load(backend)
    if loaded.reason is not None:
        return loaded.reason if _meant_for(backend, device_type) else _runs_elsewhere(backend, device_type)
    if loaded.devices is not None and device_type not in loaded.devices:
        return _runs_elsewhere(backend, device_type)
    return None if op in loaded.kernels else "has no kernel for this operator"


def _runs_elsewhere(backend: str, device_type: str) -> str:
    hint = " unless TRITON_INTERPRET=1 was set before Triton was imported" if backend == "triton" else ""
    return f"does not run on {device_type} tensors{hint}"


@functools.cache
def _warn_unloadable(backend: str) -> None:
    warnings.warn(
        f"wino_kernels: backend {backend!r} is unavailable ({why_not(backend)}); others are used instead. "
        "`python -m wino_kernels.env_report` says what to do.",
        RuntimeWarning,
        stacklevel=5,
    )


def _native() -> Any:
    if (reason := why_not("cpu")) is not None:
        raise BackendUnavailableError(f"backend 'cpu' is unavailable: {reason}")
    return importlib.import_module("wino_kernels._C")


def cpu_isa() -> str:
    """The instruction set the cpu backend runs on now: one of ``CPU_ISAS``."""
    return str(_native().isa())


def why_not_cpu_isa(name: str) -> str | None:
    """The reason why the cpu backend cannot run on instruction set ``name`` here, or None when it can."""
    if name not in CPU_ISAS:
        return f"unknown instruction set; expected one of {', '.join(CPU_ISAS)}"
    return _native().why_not_isa(name) or None


@contextlib.contextmanager
def use_cpu_isa(name: str) -> Iterator[None]:
    """Run the cpu backend on instruction set ``name`` inside the ``with`` block (the whole process; meant for tests).

    Raises:
        BackendUnavailableError: this machine or this build does not have it (the message says which).
    """
    if (reason := why_not_cpu_isa(name)) is not None:
        raise BackendUnavailableError(f"instruction set {name!r} is unavailable: {reason}")
    native = _native()
    before = native.isa()
    native.set_isa(name)
    try:
        yield
    finally:
        native.set_isa(before)
