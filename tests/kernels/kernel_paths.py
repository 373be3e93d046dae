"""Every way an operator can run on the tests' device: each backend, and each instruction set of the cpu backend."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

from wino_kernels import backends

#: An interpreted kernel takes milliseconds per row or sequence where the others take microseconds. On such a path a
#: test of thousands goes through every 59th: 59 divides no length that an enumeration is made of.
INTERPRETED_SHARE = 59


def share(path: str) -> int:
    """The step at which a test on ``path`` goes through thousands of cases; 1 where kernels are compiled."""
    return INTERPRETED_SHARE if path == "triton" and torch.get_default_device().type == "cpu" else 1


def paths(operator: str) -> list[str]:
    """Names such as ``eager``, ``cpu-avx2``. An unavailable backend stays in the list: its tests then fail."""
    found = []
    on_gpu = torch.get_default_device().type != "cpu"
    for backend in backends.BACKENDS:
        if on_gpu and backend == "cpu":
            continue
        if backends.why_not(backend) is not None:
            found.append(backend)
        elif operator in backends._load(backend).kernels:
            found += _instruction_sets() if backend == "cpu" else [backend]
    return found


def _instruction_sets() -> list[str]:
    found = [f"cpu-{isa}" for isa in backends.CPU_ISAS if backends.why_not_cpu_isa(isa) is None]
    assert found, "the cpu backend runs on no instruction set"
    return found


def interpreted(path: str) -> bool:
    return share(path) > 1


def over_compiled_paths(operator: str) -> pytest.MarkDecorator:
    """Those on which a whole layer takes no seconds."""
    return pytest.mark.parametrize("path", [p for p in paths(operator) if not interpreted(p)], indirect=True)


#: A row that is not there: on a GPU Torch's own check ends the process.
ON_THE_CPU = pytest.mark.skipif(torch.get_default_device().type != "cpu", reason="would end the process")


def over_paths(operator: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths(operator), indirect=True)


@contextlib.contextmanager
def on_path(path: str) -> Iterator[None]:
    backend, _, isa = path.partition("-")
    with backends.use_backend(backend), backends.use_cpu_isa(isa) if isa else contextlib.nullcontext():
        yield
