"""Every way an operator can run on this machine: each backend, and each instruction set of the cpu backend."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from wino_kernels import backends


def paths(operator: str) -> list[str]:
    """Names such as ``eager``, ``cpu-avx2``. An unavailable cpu backend stays in the list: its tests then fail."""
    if backends.why_not("cpu") is not None:
        return ["cpu", "eager"]
    native = [f"cpu-{isa}" for isa in backends.CPU_ISAS if backends.why_not_cpu_isa(isa) is None]
    assert native, "the cpu backend runs on no instruction set"
    return [*(native if operator in backends._load("cpu").kernels else []), "eager"]


def over_paths(operator: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths(operator), indirect=True)


@contextlib.contextmanager
def on_path(path: str) -> Iterator[None]:
    backend, _, isa = path.partition("-")
    with backends.use_backend(backend), backends.use_cpu_isa(isa) if isa else contextlib.nullcontext():
        yield
