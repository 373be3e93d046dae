"""Scratch memory of the GPU kernels: kept between calls, an operator allocates nothing but its outputs.

See docs/spec.md section 6. A buffer belongs to one thread, device and stream: calls on one stream run one after the
other and may share it. Under graph capture a fresh buffer comes out of the graph's own pool, since a graph
may be replayed on any stream.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

_GRANULE = 1 << 16  # elements
_MOST_KEPT = 1 << 24  # elements: what is larger (the loss of a large batch) goes back to Torch's allocator


_Key = tuple[torch.device, int, torch.dtype]


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.kept: dict[_Key, Tensor] = {}
        # How many buffers of that size were made, and not kept, since the last one that was.
        self.passed: dict[tuple[_Key, int], int] = {}


_buffers = _Buffers()


def scratch(like: Tensor, elements: int) -> Tensor:
    """At least ``elements`` float32 on the device of ``like``, contents undefined, valid until the next call."""
    return _kept(like, elements, torch.float32)


def counters(like: Tensor, number: int) -> Tensor:
    """At least ``number`` int32 on the device of ``like``: zero, provided every kernel leaves them zero again."""
    return _kept(like, number, torch.int32)


def _kept(like: Tensor, elements: int, dtype: torch.dtype) -> Tensor:
    device, stream = like.device, 0
    make = torch.zeros if dtype == torch.int32 else torch.empty
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            return make(elements, dtype=dtype, device=device)
        stream = torch.cuda.current_stream(device).cuda_stream
    key = (device, stream, dtype)
    buffer = _buffers.kept.get(key)
    if buffer is None or buffer.numel() < elements:
        rounded = -(-elements // _GRANULE) * _GRANULE
        buffer = make(rounded, dtype=dtype, device=device)
        if rounded <= _MOST_KEPT and _may_be_kept(buffer, (key, rounded)):
            _buffers.kept[key] = buffer
    return buffer


def _may_be_kept(buffer: Tensor, of: tuple[_Key, int]) -> bool:
    """Not if it is a private pool's. That is slow to find out: while it is so, ever fewer buffers are looked at."""
    if not buffer.is_cuda:
        return True
    passed = _buffers.passed.pop(of, 0)
    if passed & (passed - 1) == 0 and not _in_private_pool(buffer.data_ptr()):
        return True
    _buffers.passed[of] = passed + 1
    return False


def _in_private_pool(address: int) -> bool:
    """Whether it is memory of a graph's pool: what ``torch.compile`` warms a graph up in must not outlive the call."""
    try:
        segments = _segments()
    except RuntimeError:  # another allocator than Torch's own: it has no such pools
        return False
    for segment in segments:
        if segment["address"] <= address < segment["address"] + segment["total_size"]:
            return tuple(segment.get("segment_pool_id", (0, 0))) != (0, 0)
    return False


def _segments() -> list[dict[str, Any]]:
    try:
        return torch.cuda.memory_snapshot(include_traces=False)
    except TypeError:  # an older Torch
        return torch.cuda.memory_snapshot()
