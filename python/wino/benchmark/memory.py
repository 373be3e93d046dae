"""Peak memory of one call, beyond what was there before it."""

from __future__ import annotations

import contextvars
import ctypes
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5), clear_refs: reset the peak resident set size


def peak_extra(function: Callable[[], object], device: torch.device | str = "cpu") -> int | None:
    """Bytes that ``function()`` needed at once beyond what was in memory before; None where that cannot be measured.

    On the CPU it is the peak of the process' resident set, as Linux counts it, so scratch space of matrix libraries
    and of native code is in it; memory that Torch had freed is first given back to the system, and ``function`` runs on
    a fresh thread, which keeps no scratch of an earlier call. Call it once before, or what is made once for all calls
    is counted too. On a GPU it is what Torch allocated.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        _give_back_freed_memory()
        _CLEAR.write_text(_RESET_PEAK)
        before = _resident("VmRSS")
    except OSError:
        return None
    context, grad = contextvars.copy_context(), torch.is_grad_enabled()

    def call() -> None:
        with torch.set_grad_enabled(grad):
            context.run(function)

    with ThreadPoolExecutor(1) as fresh:
        fresh.submit(call).result()
    return max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise OSError(f"{_STATUS} has no {field}")


def _give_back_freed_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; others give back by themselves or not at all
    if trim is not None:
        trim(0)
