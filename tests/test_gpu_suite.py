"""The GPU suite where there is no GPU: its cases, checks and tables; a wrong kernel is not let through."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from wino_kernels import backends, env_report

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu_cases  # noqa: E402
import gpu_suite  # noqa: E402
import roofline  # noqa: E402
import tables  # noqa: E402

CPU = torch.device("cpu")
OPERATORS = [*env_report.OPERATORS, "trajectory_loss_backward"]


def tiny(operator: str) -> list[gpu_cases.Case]:
    return [case for case in gpu_cases.cases(gpu_cases.TINY, CPU) if case.operator == operator]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would be measured")
def test_without_a_gpu_everything_but_the_time(tmp_path: Path) -> None:
    """`make gpu-suite` on this machine: every operator is checked, nothing is timed, nothing is written."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(BENCHMARKS / "gpu_suite.py"), f"--docs={tmp_path}"]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "No GPU here: nothing is timed and nothing is written" in finished.stdout
    assert not list(tmp_path.iterdir())
    lines = [line for line in finished.stdout.splitlines() if line.startswith("| `")]
    checked = {line.split("`")[1]: [cell.strip() for cell in line.strip("|").split("|")] for line in lines}
    assert set(checked) == set(OPERATORS)
    backend = "triton" if env_report.report()["gpu"]["triton"]["found"] else "eager"
    for cells in checked.values():
        assert cells[2:4] == [backend, "ok"]
        assert not any(cells[4:])


@pytest.mark.parametrize("operator", OPERATORS)
def test_full_run_has_the_models_shapes(operator: str) -> None:
    full = gpu_cases.FULL
    assert [model.vocabulary for model in full.models] == [126464, 134656]
    assert full.block == 128 and full.batches == (1, 16)
    assert tiny(operator)


@pytest.mark.parametrize("operator", OPERATORS)
def test_right_results_pass_and_wrong_ones_do_not(operator: str) -> None:
    """Every element of every result matters: one that is wrong is found."""
    with backends.use_backend("eager"):
        for case in tiny(operator):
            assert gpu_suite.check(case) == ""
            case.restore()
            results = case.call()
            assert case.error(results) == ""
            for number, result in enumerate(results):
                wrong = [tensor.clone(memory_format=torch.contiguous_format) for tensor in results]
                wrong[number].view(-1)[-1 if result.numel() > 1 else 0] += _noticeable(result)
                assert case.error(tuple(wrong)) != "", (case.label, number)
            for tensor in case.state[: 2 if operator == "accept_" else None]:
                before = tensor.clone()
                tensor.view(-1)[-1] = not tensor.view(-1)[-1] if tensor.dtype == torch.bool else 77
                assert case.error(results) != "", case.label
                tensor.copy_(before)


def _noticeable(result: torch.Tensor) -> Any:
    return 1000 if result.is_floating_point() else 7


@pytest.mark.parametrize("operator", OPERATORS)
def test_other_data_lies_in_the_same_memory(operator: str) -> None:
    """What a captured graph needs: ``vary`` changes values, never addresses."""
    for case in tiny(operator):
        tensors = _tensors(case)
        before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in tensors.items()}
        case.vary(5)
        case.restore()
        assert {name: tensor.data_ptr() for name, tensor in _tensors(case).items()} == {
            name: address for name, (address, _) in before.items()
        }
        assert any(not torch.equal(before[name][1], tensor) for name, tensor in tensors.items())


def _tensors(case: gpu_cases.Case) -> dict[str, torch.Tensor]:
    owners = [vars(case), vars(getattr(case, "rule", None)) if hasattr(case, "rule") else {}]
    return {name: value for owner in owners for name, value in owner.items() if isinstance(value, torch.Tensor)}


def test_kernel_that_raises_is_a_failed_check() -> None:
    def broken() -> str:
        raise RuntimeError("too many\nresources requested")

    assert gpu_suite.verdict(broken) == "RuntimeError: too many resources requested"


def test_kernel_that_differs_from_call_to_call_is_a_failed_check() -> None:
    (case,) = tiny("accept_")
    calls: list[Any] = []

    def unsteady() -> tuple[torch.Tensor, ...]:
        results = type(case).call(case)
        calls.append(results)
        return (results[0] + len(calls) // 2, *results[1:])

    case.call, case.error = unsteady, lambda results: ""  # type: ignore[method-assign]
    with backends.use_backend("eager"):
        assert gpu_suite.check(case) == "two calls on the same data differ"


def test_interval_holds_the_median() -> None:
    timing = gpu_suite.interval([float(value) for value in range(31)], "graph")
    assert timing == (15.0, 10.0, 20.0, "graph")
    assert gpu_suite.interval([2.0], "call") == (2.0, 2.0, 2.0, "call")


def test_report(tmp_path: Path) -> None:
    """Rates and shares follow from time and work; JSON and table are written together."""
    (case,) = tiny("linear_score_tokens")
    row = gpu_suite.row_of(case, "triton", "")
    failed = gpu_suite.row_of(case, "cuda", "a draft is not the largest logit")
    chip = roofline.Chip("chip", bandwidth=case.work.moved / 5e-6, matrix=math.inf, vector=math.inf, lanes=64)
    timings = {
        "ours": gpu_suite.Timing(10.0, 9.0, 11.0, "graph"),
        "published": gpu_suite.Timing(40.0, 39.0, 41.0, "call"),
    }
    gpu_suite.judge(row, case, timings, copied=case.work.moved / 8e-6, chip=chip)
    assert row["of_roofline"] == pytest.approx(0.5) and row["bound_by"] == "memory"
    assert row["of_copy_bandwidth"] == pytest.approx(0.8)
    assert row["bytes_per_second"] == pytest.approx(case.work.moved / 10e-6)

    found = {"device": "A made-up chip", "copy_bytes_per_second": 1e12, "rounds": 31, "rows": [row, failed]}
    gpu_suite.write(found, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu_a_made_up_chip.json", "gpu_a_made_up_chip.md"]
    assert json.loads((tmp_path / "gpu_a_made_up_chip.json").read_text()) == found
    text = (tmp_path / "gpu_a_made_up_chip.md").read_text()
    assert "10.0 [9.0, 11.0]" in text and "50% (memory)" in text and "published 40.0 µs (call), 4.0x" in text
    last = text.rstrip().splitlines()[-1]
    assert "a draft is not the largest logit" in last and "µs" not in last


class Replay:
    """Stands for a CUDA graph on the CPU: the results keep their addresses, each replay computes them again."""

    def __init__(self, call: Callable[[], Any], before: Callable[[], object]) -> None:
        before()
        self.call, self.results = call, call()

    def replay(self) -> None:
        results = self.call()
        if isinstance(self.results, tuple) and all(isinstance(result, torch.Tensor) for result in self.results):
            for kept, result in zip(self.results, results, strict=True):
                kept.copy_(result)


class Ticks:
    """Stands for a CUDA event: time is how many were recorded before."""

    recorded = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Ticks.recorded += 1
        self.tick = Ticks.recorded

    def elapsed_time(self, end: Ticks) -> float:
        return float(end.tick - self.tick)


@pytest.fixture
def no_gpu_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def captured(call: Callable[[], Any], before: Callable[[], object]) -> tuple[Replay, Any]:
        graph = Replay(call, before)
        return graph, graph.results

    monkeypatch.setattr(gpu_suite, "captured", captured)
    monkeypatch.setattr(torch.cuda, "Event", Ticks)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch, "compile", lambda call, **_: call)


def gpu_run(docs: Path | None, operators: list[str], names: tuple[str, ...] = ("eager",)) -> int:
    gpu = gpu_suite.Gpu(CPU, "A made-up chip", 1e12, roofline.H200, torch.empty(64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_suite, "serves", lambda name, operator, device: name in names)
        disk = None if docs is None else docs / "rows.jsonl"
        return gpu_suite.timed(operators, names, 3, gpu, gpu_cases.TINY, docs, disk)


@pytest.mark.usefixtures("no_gpu_needed")
def test_timed_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole of a run on a GPU, but for the GPU: all cases, contenders, the report."""
    assert gpu_run(tmp_path, []) == 0
    found = json.loads((tmp_path / "gpu_a_made_up_chip.json").read_text())
    assert {row["operator"] for row in found["rows"]} == set(OPERATORS)
    for row in found["rows"]:
        assert row["check"] == "ok" and not row["not_timed"]
        assert row["microseconds"]["ours"]["how"] == "graph" and len(row["microseconds"]) > 1
        assert all(timing["median"] == 1000.0 for timing in row["microseconds"].values())
        assert row["of_roofline"] > 0 and row["of_copy_bandwidth"] > 0
    assert "published" in capsys.readouterr().out
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == found["rows"]


@pytest.mark.usefixtures("no_gpu_needed")
def test_backends_are_timed_in_the_same_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each beside the others and the contenders; one that is wrong is left out of all of it."""
    assert gpu_run(tmp_path, ["accept_"], ("eager", "cpu")) == 0
    found = json.loads((tmp_path / "gpu_a_made_up_chip.json").read_text())["rows"]
    for row, other in zip(found, ("cpu", "eager"), strict=True):
        assert list(row["microseconds"])[:2] == ["ours", other] and len(row["microseconds"]) > 2
    monkeypatch.setattr(
        gpu_cases.Accept, "error", lambda case, results: "" if backends.current_backend() == "cpu" else "wrong"
    )
    assert gpu_run(tmp_path, ["accept_"], ("eager", "cpu")) == 1
    wrong, fine = json.loads((tmp_path / "gpu_a_made_up_chip.json").read_text())["rows"]
    assert wrong["microseconds"] == {} and "eager" not in fine["microseconds"] and fine["check"] == "ok"


@pytest.mark.usefixtures("no_gpu_needed")
def test_wrong_kernel_is_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = gpu_cases.Accept.call
    monkeypatch.setattr(gpu_cases.Accept, "call", lambda case: (right(case)[0] + 1, case.state[0][:, 0]))
    assert gpu_run(tmp_path, ["accept_"]) == 1
    (row,) = json.loads((tmp_path / "gpu_a_made_up_chip.json").read_text())["rows"]
    assert row["check"] == "num_accepted, status differ from the oracle" and row["microseconds"] == {}


@pytest.mark.usefixtures("no_gpu_needed")
def test_threshold_frozen_into_a_graph_is_found() -> None:
    """A kernel that reads a threshold on the host replays with the one it was captured with."""
    (case,) = tiny("accept_")
    frozen = case.rule.threshold.clone()
    capturing = True

    def call() -> tuple[torch.Tensor, ...]:
        rule = case.rule
        threshold = frozen if capturing else rule.threshold
        return torch.ops.wino.accept_(rule.tokens, rule.masked, rule.token_ids, rule.confidence, threshold=threshold)

    case.call = call  # type: ignore[method-assign]
    with backends.use_backend("eager"):
        case.vary(9)
        assert gpu_suite.check_graph(case).startswith("replayed graph: ")
        capturing = False
        assert gpu_suite.check_graph(case) == ""


@pytest.mark.usefixtures("no_gpu_needed")
def test_contender_that_does_not_run_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken() -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu_cases.Accept, "contenders", lambda case: {"slow one": gpu_cases.Contender(broken)})
    assert gpu_run(tmp_path, ["accept_"]) == 0
    assert "slow one not timed (RuntimeError: out of memory)" in (tmp_path / "gpu_a_made_up_chip.md").read_text()


@pytest.mark.parametrize("operator", OPERATORS)
def test_compiled_contenders_are_whole_graphs(operator: str) -> None:
    """A graph break would be an error on the GPU; tracing alone shows it."""
    for case in tiny(operator)[:1]:
        for name, contender in case.contenders().items():
            if contender.compiled:
                case.restore()
                torch.compile(contender.call, fullgraph=True, dynamic=False, backend="eager")()
                assert name.startswith("torch.compile")


def test_chips_with_a_data_sheet() -> None:
    assert {chip.name for chip in gpu_suite.DATA_SHEETS.values()} == {*(c.name for c in roofline.CHIPS), "H200-SXM"}


def test_table_of_the_documents() -> None:
    """By the faster backend, beside the fastest of each kind of contender."""
    times = {"ours": 10.0, "published": 3000.0, "torch.compile, a": 40.0, "torch.compile, b": 20.0}
    rows = [
        {"operator": "accept_", "case": "B=1", "backend": backend, "of_roofline": 0.25, "microseconds": {}}
        for backend in ("triton", "cuda", "eager")
    ]
    for row, ours in zip(rows[:2], (20.0, 10.0), strict=True):
        row["microseconds"] = {name: {"median": time} for name, time in (times | {"ours": ours}).items()}
    lines = tables.gpu({"device": "A chip", "rows": rows}).splitlines()
    assert lines[0].startswith("| A chip | ours, µs | of the roofline | published / ours |")
    assert lines[2:] == ["| `accept_` B=1 | 10.0 (cuda) | 25% | 300x | 2x |  |"]
