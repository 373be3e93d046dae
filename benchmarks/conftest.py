"""Shared by the benchmarks: rows collected over the run, and one table of them at its end.

``pytest benchmarks/bench_<operator>.py`` measures one operator; ``--bars`` fails the run where a figure misses its bar;
``--rows FILE`` appends every row as a JSON line.
"""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Iterator
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import wino_kernels.backends
from wino.benchmark import Ratio, interleaved, ratio
from wino_kernels import _C

_ROWS: list[dict[str, Any]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bars", action="store_true", help="fail where a measured figure misses its bar")
    parser.addoption("--most-rounds", type=int, default=10**6, metavar="N", help="at most so many rounds: a dry run")
    parser.addoption("--threads", type=int, default=2, help="Torch's threads")
    parser.addoption("--rows", default=None, metavar="FILE", help="append the measured rows to FILE as JSON lines")


class Limits:
    """What this machine reaches, measured beside whatever else is: reading memory once, and multiplying matrices."""

    BYTES, SIZE = 256 << 20, 1024

    def __init__(self, threads: int) -> None:
        self._buffer = torch.zeros(self.BYTES // 4)
        self._threads = threads
        # Where the machine has no products of bfloat16, those of float32 are many times as fast.
        matrix = torch.randn(self.SIZE, self.SIZE)
        ways = {"float32": matrix, "bfloat16": matrix.bfloat16()}
        seconds = interleaved({name: partial(torch.mm, way, way) for name, way in ways.items()}, 3)
        self._matrix = ways[min(seconds, key=lambda name: min(seconds[name]))]

    def read(self) -> None:
        _C.read_once(self._buffer.data_ptr(), self._buffer.numel(), self._threads)

    def multiply(self) -> None:
        torch.mm(self._matrix, self._matrix)

    def bandwidth(self, seconds: list[float]) -> float:
        """Bytes a second, of timed calls of :meth:`read`."""
        return self.BYTES / statistics.median(seconds)

    def operations(self, seconds: list[float]) -> float:
        """Operations a second, of timed calls of :meth:`multiply`."""
        return 2 * self.SIZE**3 / statistics.median(seconds)


class Table:
    """Collects rows: ``kind`` says what a row is, ``table`` into which section of the documents a ratio goes."""

    def __init__(self, check: bool = False, most_rounds: int = 10**6) -> None:
        self._check, self._most_rounds = check, most_rounds

    def rounds(self, wanted: int) -> int:
        """``wanted``, or fewer in a dry run."""
        return min(wanted, self._most_rounds)

    def add(self, kind: str, **row: Any) -> None:
        _ROWS.append({"kind": kind, **row})

    def time(self, what: str, seconds: list[float], moved: int = 0, bandwidth: float = 0.0, **more: Any) -> None:
        """``moved``: bytes that the call has to read and write, reported as GB/s and beside ``bandwidth`` (bytes/s)."""
        median = statistics.median(seconds)
        row: dict[str, Any] = {"what": what, "ms": median * 1e3, "best_ms": min(seconds) * 1e3}
        if moved:
            row["gb_s"] = moved / median / 1e9
        if moved and bandwidth:
            row["of_bandwidth"] = moved / median / bandwidth
        self.add("time", **row, **more)

    def ratio(
        self, what: str, baseline: list[float], ours: list[float], bar: float, table: str = "kernels", note: str = ""
    ) -> None:
        """Median of the rounds' ratios, with its 95 % interval."""
        self.faster(what, ratio(baseline, ours), bar, table, note)

    def faster(self, what: str, found: Ratio, bar: float, table: str, note: str = "") -> None:
        row = {"table": table, "what": what, "ratio": found.median, "low": found.low, "high": found.high, "bar": bar}
        self.add("ratio", **row, note=note)
        assert not self._check or found.median >= bar, f"{what}: {found.median:.2f}x, the bar is {bar:g}x"

    def memory(self, what: str, peak: int | None, bar: int) -> None:
        """``peak`` and ``bar`` in bytes."""
        self.add("memory", table="kernels", what=what, mib=None if peak is None else peak / 2**20, bar=bar / 2**20)
        assert not self._check or peak is None or peak < bar, f"{what}: {peak} bytes, the bar is {bar}"


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Table:
    return Table(request.config.getoption("--bars"), request.config.getoption("--most-rounds"))


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before, wanted = torch.get_num_threads(), request.config.getoption("--threads")
    torch.set_num_threads(wanted)
    yield wanted
    torch.set_num_threads(before)


@pytest.fixture
def limits(threads: int) -> Limits:
    return Limits(threads)


def _line(row: dict[str, Any]) -> str | None:
    if row["kind"] == "ratio":
        interval = f"[{row['low']:.2f}, {row['high']:.2f}]"
        verdict = "reached" if row["ratio"] >= row["bar"] else "MISSED"
        return f"{row['what']:<88} {row['ratio']:>7.2f}x  {interval:<16} bar {row['bar']:g}x {verdict}"
    if row["kind"] == "memory":
        found = "not measured here" if row["mib"] is None else f"{row['mib']:.1f} MiB"
        return f"{row['what']:<88} {found}, bar {row['bar']:g} MiB"
    if row["kind"] == "time":
        rate = f"{row['gb_s']:.1f} GB/s" if "gb_s" in row else ""
        share = f", {row['of_bandwidth']:.0%} of what reading reaches" if "of_bandwidth" in row else ""
        product = f", {row['of_matrix']:.0%} of a matrix product's operations" if "of_matrix" in row else ""
        return f"{row['what']:<88} {row['ms']:>9.3f} ms (best {row['best_ms']:.3f})  {rate}{share}{product}"
    if row["kind"] == "decode":
        split = ", ".join(f"{phase} {value:.2f}" for phase, value in row["milliseconds"].items())
        rate = f"{row['tokens_per_second']:.1f} tokens/s, {row['accepted_per_forward']:.2f} tokens a forward"
        return f"{row['workload'] + ': ' + row['name']:<88} {rate}, ms a step: {split}"
    if row["kind"] == "fit":
        return f"{row['what']:<88} {row['slope']:.3g} ms, R^2 {row['r2']:.4f}"
    return None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not _ROWS:
        return
    isa, threads = wino_kernels.backends.cpu_isa(), config.getoption("--threads")
    terminalreporter.section(f"{platform.machine()} {isa}, torch {torch.__version__}, {threads} threads")
    for line in filter(None, map(_line, _ROWS)):
        terminalreporter.write_line(line)
    if path := config.getoption("--rows"):
        machine = {"isa": isa, "torch": torch.__version__, "threads": threads, "date": str(date.today())}
        with Path(path).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in ({"kind": "machine", **machine}, *_ROWS))
