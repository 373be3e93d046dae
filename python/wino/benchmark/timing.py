"""Seconds: of functions called in turn, of the phases of one call, and ratios of both with their intervals."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

PHASES = ("trunk", "head", "scoring", "bookkeeping")
"""Of a step: tokens to hidden rows, the LM head's matrix product, one (token, confidence) per row, all else."""


class Clock:
    """Seconds by phase: :meth:`lap` gives the time since the lap before to a phase, so that the phases add up.

    On a GPU laps are events on the current stream: nothing waits for the device until :meth:`seconds`.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._cuda = torch.device(device).type == "cuda"
        self._laps: list[tuple[str, float | torch.cuda.Event]] = []
        self._began = self._now()

    def lap(self, phase: str) -> None:
        """The time since the last lap (at first: since the clock was made) was spent on ``phase``."""
        self._laps.append((phase, self._now()))

    def seconds(self) -> dict[str, float]:
        """Phase -> seconds, of the phases that were named."""
        if self._cuda:
            torch.cuda.synchronize()
        found: dict[str, float] = defaultdict(float)
        before = self._began
        for phase, at in self._laps:
            found[phase] += at - before if isinstance(at, float) else before.elapsed_time(at) / 1e3  # type: ignore
            before = at
        return dict(found)

    def _now(self) -> float | torch.cuda.Event:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def interleaved(
    functions: dict[str, Callable[[], object]],
    rounds: int,
    restore: Callable[[str], object] | None = None,
    *,
    untimed: int = 1,
    on_call: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds per call of each function, called in turn ``rounds`` times: a slow spell of the machine hits them all.

    Each timed call follows ``untimed`` others, so that nobody pays for the caches another one left. A function that
    changes its arguments has them put back by ``restore(name)`` before each call. ``on_call`` is told of timed calls.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            for _ in range(untimed + 1):
                if restore is not None:
                    restore(name)
                start = time.perf_counter()
                function()
                last = time.perf_counter() - start
            seconds[name].append(last)
            on_call()
    return seconds


class Ratio(NamedTuple):
    """A ratio of two interleaved timings: median over the rounds and the ends of its 95 % interval.

    With fewer than six rounds no two of them enclose the median with that certainty; the ends are then the extremes.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g}x [{self.low:.3g}, {self.high:.3g}]"


def ratio(baseline: Sequence[float], ours: Sequence[float]) -> Ratio:
    """How many times longer ``baseline`` took than ``ours``, round by round."""
    ratios = sorted(b / o for b, o in zip(baseline, ours, strict=True))
    outside = outside_interval(len(ratios))
    return Ratio(statistics.median(ratios), ratios[outside], ratios[len(ratios) - 1 - outside])


def outside_interval(count: int) -> int:
    """How many of ``count`` sorted values lie on either side of the median's 95 % interval (order statistics).

    The number of values below the median is binomial (count, 1/2): the median lies below the value with k others
    below it when at most k are, so that much may have 2.5 %.
    """
    outside, tail = -1, 0.0
    while (tail := tail + math.comb(count, outside + 1) / 2**count) <= 0.025:
        outside += 1
    return max(0, outside)
