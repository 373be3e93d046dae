"""The native module's own tensors, where the framework that is to take them fails."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from wino_kernels import _C
from wino_kernels.cpu import accept_remask

STATM = Path("/proc/self/statm")
WORD = ctypes.c_void_p
DELETER, TO_OBJECT, WORDS = 2, 4, 7  # words of csrc/dlpack.h's ManagedTensor and ExchangeApi
NAME = b"dlpack_exchange_api"


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
def _fail(tensor: int, _object: int) -> int:
    """Takes the tensor, as the exchange API says, and makes no object of it."""
    deleter = (WORD * 3).from_address(tensor)[DELETER]
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(deleter)(tensor)
    return -1


@pytest.fixture
def _failing_exchange() -> Iterator[None]:
    ctypes.pythonapi.PyCapsule_GetPointer.restype = ctypes.c_void_p
    ctypes.pythonapi.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    ctypes.pythonapi.PyCapsule_New.restype = ctypes.py_object
    ctypes.pythonapi.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    published = ctypes.pythonapi.PyCapsule_GetPointer(torch.Tensor.__dlpack_c_exchange_api__, NAME)
    api = (WORD * WORDS)(*(WORD * WORDS).from_address(published))
    api[TO_OBJECT] = ctypes.cast(_fail, WORD).value
    capsule = ctypes.pythonapi.PyCapsule_New(ctypes.addressof(api), NAME, None)
    assert _C.use_exchange_of(type("Failing", (), {"__dlpack_c_exchange_api__": capsule}))
    yield
    assert _C.use_exchange_of(torch.Tensor)


@pytest.mark.skipif(not accept_remask.HAS_EXCHANGE, reason="this torch publishes no exchange API")
@pytest.mark.skipif(not STATM.exists(), reason="needs /proc/self/statm")
@pytest.mark.usefixtures("_failing_exchange")
def test_results_that_nobody_takes_are_freed() -> None:
    rows, calls = 1 << 20, 20
    flags = torch.zeros(2, rows, 1, dtype=torch.bool)
    tokens, confidence = (torch.zeros(rows, 1, dtype=dtype) for dtype in (torch.int64, torch.float64))
    last, threshold = torch.zeros(rows, dtype=torch.int32), torch.tensor(0.5)

    def call() -> None:
        with pytest.raises(Exception):  # noqa: B017 - whatever stands for a failure without a Python error
            accept_remask.accept_remask_ordinary(
                tokens, flags[0], flags[1], tokens, confidence, last, 0, threshold, threshold
            )

    def resident_bytes() -> int:
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    call()
    before = resident_bytes()
    for _ in range(calls):
        call()
    assert resident_bytes() - before < 4 * (4 * rows)  # a call makes three tensors of 4 * rows bytes
