"""Every kernel on the GPU at hand: checked against float64, then timed beside what a user would run instead.

    python benchmarks/gpu_suite.py                       all operators, backends triton and cuda
    python benchmarks/gpu_suite.py --operator score_tokens --backend triton

A whole run writes docs/gpu_<chip>.json and docs/gpu_<chip>.md, a part is only printed; ``--rows`` keeps what an
interrupted run has measured. A call that fails its check is not timed, and the exit code is 1. Without a GPU nothing is
timed or written: the same checks run on small CPU tensors, with Triton interpreted.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gpu_cases import FULL, TINY, Case, Contender, Sizes, cases
from roofline import CHIPS, H200, Chip
from tables import table
from torch import Tensor

from wino_kernels import backends, env_report

DOCS = Path(__file__).parent.parent / "docs"
GPU_BACKENDS = ("triton", "cuda")
OURS = "ours"
#: Name of a device as its driver gives it -> its data sheet's peaks.
DATA_SHEETS = {
    "NVIDIA A100-SXM4-80GB": CHIPS[0],
    "NVIDIA H100 80GB HBM3": CHIPS[1],
    "NVIDIA H200": H200,
    "NVIDIA B200": CHIPS[2],
}
WARM_UP = 3
COPIED = 1 << 30  # bytes copied to measure the memory
#: Bytes written before each timed call, if that is more than twice the L2 cache: about 100 microseconds of an H200, in
#: which the host has enqueued what comes next.
FLUSHED = 1 << 29
VERSIONS = 256  # a contender is compiled for every shape; torch.compile allows 8


class Timing(NamedTuple):
    """Median of the rounds in microseconds, its 95 % interval, and how a round was started."""

    median: float
    low: float
    high: float
    how: str


def interval(values: Sequence[float], how: str) -> Timing:
    """The order statistics that hold the median of 95 % of such samples."""
    ordered, half = sorted(values), round(0.98 * len(values) ** 0.5)
    middle = len(ordered) // 2
    low, high = ordered[max(0, middle - half)], ordered[min(len(ordered) - 1, middle + half)]
    return Timing(statistics.median(ordered), low, high, how)


def copies(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Bit for bit, NaN where NaN is."""
    return all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(one, other, strict=True))


def check(case: Case) -> str:
    """Two calls on other data, each against float64; what is wrong, or an empty string."""
    for seed in (1, 2):
        case.vary(seed)
        case.restore()
        addresses = [tensor.data_ptr() for tensor in case.state]
        results = case.call()
        if addresses != [tensor.data_ptr() for tensor in case.state]:
            return "an in-place tensor moved"
        if wrong := case.error(results):
            return wrong
        first = copies((*results, *case.state))
        case.restore()
        if not same(first, (*case.call(), *case.state)):
            return "two calls on the same data differ"
    return ""


def check_graph(case: Case) -> str:
    """One captured call, replayed on other data, thresholds and seeds in the same tensors: what a plain call gives."""
    graph, results = captured(case.call, case.restore)
    watched = (*results, *case.state)
    addresses = [tensor.data_ptr() for tensor in watched]
    for seed in (3, 4):
        case.vary(seed)
        case.restore()
        graph.replay()
        replayed = copies(watched)
        if wrong := case.error(results):
            return f"replayed graph: {wrong}"
        case.restore()
        if not same(replayed, (*case.call(), *case.state)):
            return "a replayed graph and a plain call differ"
        if addresses != [tensor.data_ptr() for tensor in watched]:
            return "a tensor of a replayed graph moved"
    return ""


def captured(call: Callable[[], Any], before: Callable[[], object]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A graph of one ``call`` and its results; ``before`` is not part of it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            before()
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph, results


class Runner(NamedTuple):
    """A contender made ready: started by ``run`` after ``before``."""

    run: Callable[[], object]
    before: Callable[[], object]
    how: str


def ready(contender: Contender, restore: Callable[[], object]) -> Runner:
    """Compiled if it is to be, as a graph if it can be captured."""
    call = contender.call
    if contender.compiled:
        patient = torch._dynamo.config.patch(recompile_limit=VERSIONS)
        call = patient(torch.compile(call, fullgraph=True, dynamic=False))

    def before() -> None:
        restore()
        contender.before()

    if contender.graph:
        return Runner(captured(call, before)[0].replay, before, "graph")
    for _ in range(WARM_UP):
        before()
        call()
    return Runner(call, before, "call")


def measure(runners: dict[str, Runner], rounds: int, flush: Tensor) -> dict[str, Timing]:
    """Called in turn, so that a slow spell hits them all, each with a cold L2 cache.

    The flush also keeps the device busy while the host enqueues what comes behind it: a graph starts without a gap.
    """
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            runner.before()
            flush.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            runner.run()
            end.record()
            events[name].append((start, end))
        torch.cuda.synchronize()
    return {
        name: interval([1e3 * start.elapsed_time(end) for start, end in events[name]], runners[name].how)
        for name in runners
    }


def cache_flush(device: torch.device) -> Tensor:
    """At least twice the L2 cache: writing it leaves nothing else there."""
    size = max(2 * torch.cuda.get_device_properties(device).L2_cache_size, FLUSHED)
    return torch.empty(size, dtype=torch.uint8, device=device)


def copy_bandwidth(device: torch.device, rounds: int, flush: Tensor) -> float:
    """Bytes per second, read and written, of a large copy: by a kernel, as copy engines can be slower."""
    source, target = torch.randn(2, COPIED // 4, device=device)
    runner = ready(Contender(lambda: torch.neg(source, out=target)), lambda: None)
    return 2 * COPIED / (measure({"copy": runner}, rounds, flush)["copy"].median * 1e-6)


def row_of(case: Case, backend: str, wrong: str) -> dict[str, Any]:
    return {
        "operator": case.operator,
        "case": case.label,
        "backend": backend,
        "check": wrong or "ok",
        "bytes": case.work.moved,
        "matrix_operations": case.work.matrix,
        "microseconds": {},
        "not_timed": {},
    }


def judge(row: dict[str, Any], case: Case, timings: dict[str, Timing], copied: float, chip: Chip | None) -> None:
    """Adds to ``row`` what was measured, and what it is of the chip's limits."""
    row["microseconds"] = {name: timing._asdict() for name, timing in timings.items()}
    seconds = timings[OURS].median * 1e-6
    row["bytes_per_second"] = case.work.moved / seconds
    row["matrix_operations_per_second"] = case.work.matrix / seconds
    row["of_copy_bandwidth"] = row["bytes_per_second"] / copied
    if chip is not None:
        limit, row["bound_by"] = case.work.roofline(chip)
        row["of_roofline"] = limit / seconds


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """One line a call; columns of time stay empty where nothing was timed."""
    columns = ["operator", "case", "backend", "check", "µs [95 %]", "achieved", "of roofline", "of copy", "contenders"]
    return table(columns, [[*_names(row), *_figures(row)] for row in rows])


def _names(row: dict[str, Any]) -> list[str]:
    return [f"`{row['operator']}`", row["case"], row["backend"], row["check"]]


def _figures(row: dict[str, Any]) -> list[str]:
    times = {name: Timing(**timing) for name, timing in row["microseconds"].items()}
    if not times:
        return [""] * 5
    ours = times.pop(OURS)
    rate = f"{row['bytes_per_second'] / 1e9:,.0f} GB/s"
    if row["matrix_operations"]:
        rate += f", {row['matrix_operations_per_second'] / 1e12:,.0f} TFLOPS"
    of_roofline = f"{row['of_roofline']:.0%} ({row['bound_by']})" if "of_roofline" in row else ""
    others = [
        f"{name} {other.median:,.1f} µs ({other.how}), {other.median / ours.median:.1f}x"
        for name, other in times.items()
    ]
    others += [f"{name} not timed ({reason})" for name, reason in row["not_timed"].items()]
    interval_ = f"{ours.median:,.1f} [{ours.low:,.1f}, {ours.high:,.1f}]"
    return [interval_, rate, of_roofline, f"{row['of_copy_bandwidth']:.0%}", "; ".join(others)]


class Suite:
    """What a run does to each case; rows are kept in the order in which they were made, and on ``disk``."""

    def __init__(
        self,
        sizes: Sizes,
        device: torch.device,
        operators: Sequence[str],
        names: Sequence[str],
        disk: Path | None = None,
    ) -> None:
        self.sizes, self.device, self.operators, self.names, self.disk = sizes, device, operators, names, disk
        self.rows: list[dict[str, Any]] = []

    def cases(self) -> Iterable[tuple[Case, list[str]]]:
        """Each chosen case with the backends that serve it here; on the CPU with the definition if none does."""
        for case in cases(self.sizes, self.device):
            if not self.operators or case.operator in self.operators:
                served = [name for name in self.names if serves(name, case.operator, self.device)]
                yield case, served or ["eager"] * (self.device.type == "cpu")

    def run(self, examine: Callable[[Case, list[str]], Iterable[dict[str, Any]]]) -> bool:
        """Whether every check passed, of at least one."""
        for case, names in self.cases():
            for row in examine(case, names):
                self._keep(row)
        return bool(self.rows) and all(row["check"] == "ok" for row in self.rows)

    def _keep(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self.disk is not None:
            with self.disk.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        ours = row["microseconds"].get(OURS)
        time = "" if ours is None else f"{ours['median']:,.1f} us"
        print(f"{row['operator']:<24} {row['case']:<40} {row['backend']:<7} {row['check']} {time}", file=sys.stderr)


def serves(backend: str, operator: str, device: torch.device) -> bool:
    try:
        return backends.serving(backend, operator, device.type) == backend
    except backends.BackendUnavailableError:
        return False


def dry(operators: Sequence[str], names: Sequence[str]) -> int:
    """Everything but the timing, on small CPU tensors."""
    if importlib.util.find_spec("triton") and os.environ.get("TRITON_INTERPRET") != "1":
        return subprocess.run([sys.executable, *sys.argv], env={**os.environ, "TRITON_INTERPRET": "1"}).returncode
    print("No GPU here: nothing is timed and nothing is written. Checks on small CPU tensors instead:\n", flush=True)
    suite = Suite(TINY, torch.device("cpu"), operators, names)
    passed = suite.run(dry_rows)
    print(markdown(suite.rows))
    print_absent(names)
    return 0 if passed else 1


def dry_rows(case: Case, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for backend in names:
        with backends.use_backend(backend):
            yield row_of(case, backend, verdict(lambda: check(case)))
    for contender in case.contenders().values():
        case.restore()
        contender.before()
        contender.call()


def verdict(examine: Callable[[], str]) -> str:
    """What is wrong; a kernel that raises is wrong too, and the run goes on."""
    try:
        return examine()
    except Exception as error:
        return one_line(error)


def one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).replace("|", "/")[:200]


def print_absent(names: Sequence[str]) -> None:
    for name in names:
        if (reason := backends.why_not(name)) is not None:
            print(f"\nBackend {name} was not checked: {reason}")


class Gpu(NamedTuple):
    """What a timed run needs to know of the machine."""

    device: torch.device
    name: str
    copied: float  # bytes per second, measured
    chip: Chip | None
    flush: Tensor

    @classmethod
    def at_hand(cls, device: torch.device, rounds: int) -> Gpu:
        name, flush = torch.cuda.get_device_name(device), cache_flush(device)
        return cls(device, name, copy_bandwidth(device, rounds, flush), DATA_SHEETS.get(name), flush)


def timed(
    operators: Sequence[str],
    names: Sequence[str],
    rounds: int,
    gpu: Gpu,
    sizes: Sizes,
    docs: Path | None,
    disk: Path | None = None,
) -> int:
    sheet = "" if gpu.chip else "; no data sheet known, so no share of the roofline"
    print(f"{gpu.name}: {gpu.copied / 1e9:,.0f} GB/s copied{sheet}", flush=True)
    suite = Suite(sizes, gpu.device, operators, names, disk)
    passed = suite.run(lambda case, served: timed_rows(case, served, rounds, gpu))
    if docs is not None:
        found = {"device": gpu.name, "copy_bytes_per_second": gpu.copied, "rounds": rounds, "rows": suite.rows}
        write(found | {"environment": environment()}, docs)
    print(markdown(suite.rows))
    print_absent(names)
    return 0 if passed else 1


def timed_rows(case: Case, names: Sequence[str], rounds: int, gpu: Gpu) -> list[dict[str, Any]]:
    """Each backend checked and, if that is passed, timed in the same rounds as the others and the contenders.

    A contender that does not run is named; ours must.
    """
    rows, ours, others, absent = {}, {}, {}, {}
    for backend in names:
        with backends.use_backend(backend):
            rows[backend] = row_of(case, backend, verdict(lambda: check(case) or check_graph(case)))
            if rows[backend]["check"] == "ok":
                ours[backend] = ready(Contender(case.call), case.restore)
    if not ours:
        return list(rows.values())
    for label, contender in case.contenders().items():
        try:
            others[label] = ready(contender, case.restore)
        except Exception as error:
            absent[label] = one_line(error)
    timings = measure(ours | others, rounds, gpu.flush)
    for backend in ours:
        rows[backend]["not_timed"] = absent
        compared = {name: timing for name, timing in timings.items() if name != backend}
        judge(rows[backend], case, {OURS: timings[backend]} | compared, gpu.copied, gpu.chip)
    return list(rows.values())


def environment() -> dict[str, Any]:
    report = env_report.report()
    gpu = {name: part["found"] for name, part in report["gpu"].items()}
    return {"torch": report["torch"], "package": report["package"]["version"], "gpu": gpu}


def write(found: dict[str, Any], docs: Path) -> None:
    """docs/gpu_<chip>.json and the same as a table, each all or nothing. ``note``: what else a reader must know."""
    stem = "gpu_" + re.sub(r"\W+", "_", found["device"].lower())
    copied = found["copy_bytes_per_second"] / 1e9
    text = f"""# {found["device"]}

Measured by `python benchmarks/gpu_suite.py`, which writes this page. Every call is checked against float64, then timed
in {found["rounds"]} interleaved rounds with a cold L2 cache: medians and their 95 % intervals. "graph" is the replay of
a CUDA graph, "call" a plain call of code that waits for the device. A large copy ran at {copied:,.0f} GB/s.
{found.get("note", "")}
{markdown(found["rows"])}
"""
    for path, content in ((f"{stem}.json", json.dumps(found, indent=1) + "\n"), (f"{stem}.md", text)):
        with tempfile.NamedTemporaryFile("w", dir=docs, encoding="utf-8", delete=False) as file:
            file.write(content)
        os.chmod(file.name, 0o644)
        os.replace(file.name, docs / path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*env_report.OPERATORS, "trajectory_loss_backward"]
    parser.add_argument("--operator", action="append", default=[], choices=known, help="default: all")
    parser.add_argument("--backend", action="append", choices=GPU_BACKENDS, help="default: all")
    parser.add_argument("--rounds", type=int, default=31, help="timed rounds, default 31")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="append each row to it as soon as it is measured")
    parser.add_argument("--docs", type=Path, default=DOCS, metavar="FOLDER", help="where the report goes")
    chosen = parser.parse_args()
    names = chosen.backend or list(GPU_BACKENDS)
    if not torch.cuda.is_available():
        return dry(chosen.operator, names)
    os.environ.pop("TRITON_INTERPRET", None)  # kernels are to run on the GPU
    gpu = Gpu.at_hand(torch.device("cuda", torch.cuda.current_device()), chosen.rounds)
    whole = not (chosen.operator or chosen.backend)
    return timed(chosen.operator, names, chosen.rounds, gpu, FULL, chosen.docs if whole else None, chosen.rows)


if __name__ == "__main__":
    sys.exit(main())
