"""Shared by the benchmarks: interleaved timing, and one table of ratios at the end of the run.

``pytest benchmarks/bench_<operator>.py`` measures one operator; ``--bars`` fails the run where a ratio misses its bar;
``--rows FILE`` appends every row as a JSON line.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import wino_kernels.backends

_ROWS: list[dict[str, Any]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bars", action="store_true", help="fail where a measured ratio is below its bar")
    parser.addoption("--rows", default=None, metavar="FILE", help="append the measured rows to FILE as JSON lines")


def interleaved(
    functions: dict[str, Callable[[], object]], rounds: int, restore: Callable[[str], object] | None = None
) -> dict[str, list[float]]:
    """Seconds per call of each function, called in turn ``rounds`` times: a slow spell of the machine hits them all.

    Each timed call follows an untimed one, so that nobody pays for the caches another one left. A function that changes
    its arguments has them put back by ``restore(name)`` before each call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            for _ in range(2):
                if restore is not None:
                    restore(name)
                start = time.perf_counter()
                function()
                last = time.perf_counter() - start
            seconds[name].append(last)
    return seconds


class Table:
    """Collects rows; a row is a ratio of two interleaved timings, or one timing."""

    def __init__(self, check: bool) -> None:
        self._check = check

    def time(self, what: str, seconds: list[float], moved: int = 0) -> None:
        """``moved``: bytes that the call has to read, reported as GB/s."""
        median = statistics.median(seconds)
        rate = f"{moved / median / 1e9:.1f} GB/s" if moved else ""
        _ROWS.append({"what": what, "ms": median * 1e3, "best_ms": min(seconds) * 1e3, "note": rate})

    def ratio(self, what: str, baseline: list[float], ours: list[float], bar: float) -> None:
        """Median of the rounds' ratios, with its 95 % interval (order statistics of the median)."""
        ratios = sorted(b / o for b, o in zip(baseline, ours, strict=True))
        median = statistics.median(ratios)
        half = round(0.98 * len(ratios) ** 0.5)
        low, high = ratios[max(0, len(ratios) // 2 - half)], ratios[min(len(ratios) - 1, len(ratios) // 2 + half)]
        _ROWS.append({"what": what, "ratio": median, "low": low, "high": high, "bar": bar})
        assert not self._check or median >= bar, f"{what}: {median:.1f}x, the bar is {bar:g}x"


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Table:
    return Table(request.config.getoption("--bars"))


@pytest.fixture
def two_threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


def _line(row: dict[str, Any]) -> str:
    if "ratio" in row:
        interval = f"[{row['low']:.1f}, {row['high']:.1f}]"
        verdict = "reached" if row["ratio"] >= row["bar"] else "MISSED"
        return f"{row['what']:<64} {row['ratio']:>8.1f}x  {interval:<18} bar {row['bar']:g}x {verdict}"
    return f"{row['what']:<64} {row['ms']:>8.3f} ms (best {row['best_ms']:.3f})  {row['note']}"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not _ROWS:
        return
    isa = wino_kernels.backends.cpu_isa()
    terminalreporter.section(
        f"{platform.machine()} {isa}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    for row in _ROWS:
        terminalreporter.write_line(_line(row))
    if path := config.getoption("--rows"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in _ROWS)
