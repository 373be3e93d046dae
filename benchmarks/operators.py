"""One operator at one shape, checked against float64 and then timed beside what else gives the same result."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from conftest import Limits, Table
from gpu_cases import Case, Contender
from roofline import Work

from wino.benchmark import interleaved
from wino_kernels.resources import LLADA, MMADA, Model

CPU = torch.device("cpu")
HIDDEN = 512
OURS = "ours"


def narrow(model: Model, hidden: int = HIDDEN) -> Model:
    """The checkpoint's vocabulary under a narrower trunk: 4096 columns would take this machine minutes."""
    return model._replace(name=f"{model.name}, hidden {hidden}", hidden=hidden)


NARROW = (narrow(LLADA), narrow(MMADA))


def bench(
    case: Case,
    table: Table,
    limits: Limits,
    *,
    rounds: int,
    more: Mapping[str, Callable[[], object]] | None = None,
    bars: Mapping[str, float] | None = None,
) -> None:
    """Rows of ``case``: its own contenders and ``more``; ``bars``: least ratio of a contender's time to ours."""
    case.restore()
    error = case.error(case.call())
    assert not error, f"{case.operator} {case.label}: {error}"

    contenders = dict(case.contenders()) | {name: Contender(call) for name, call in (more or {}).items()}
    calls: dict[str, Callable[[], object]] = {
        name: torch.compile(contender.call, dynamic=False) if contender.compiled else contender.call
        for name, contender in contenders.items()
    }

    def restore(name: str) -> None:
        case.restore()
        if name in contenders:
            contenders[name].before()

    machine = {"read": limits.read, "multiply": limits.multiply}
    seconds = interleaved({OURS: case.call, **calls, **machine}, table.rounds(rounds), restore)
    label = f"{case.operator} {case.label}"
    bandwidth, operations = limits.bandwidth(seconds.pop("read")), limits.operations(seconds.pop("multiply"))
    table.add("limit", label=label, bytes_s=bandwidth, operations_s=operations)
    for name, times in seconds.items():
        more_figures: dict[str, Any] = figures(case.work)
        if case.work.matrix:
            more_figures["of_matrix"] = case.work.matrix / statistics.median(times) / operations
        about = {"operator": case.operator, "contender": name, "label": label}
        table.time(f"{label}: {name}", times, case.work.moved, bandwidth, **about, **more_figures)
    for name, bar in (bars or {}).items():
        table.ratio(f"{label}: {name} / ours", seconds[name], seconds[OURS], bar)


def figures(work: Work) -> dict[str, Any]:
    return {"bytes": work.moved, "operations": work.matrix + work.vector + work.exponentials}
