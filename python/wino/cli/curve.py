"""``wino eval --out``: models and decoders over thresholds, compared on the same items."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from rich.console import Console

from ..config import USED_BY, GenerationConfig
from ..files import write_atomically
from ..progress import ProgressReport
from ..tasks import Item, Task
from ..tasks.curve import Point, Workbench, compare, markdown_table, plot_curves
from ..tasks.evaluation import encode_checked
from .errors import BadInputError
from .evaluate import select_configs, select_items, task_to_run
from .outcome import Skipped, check_replaces, kept_report
from .session import Session, open_session, require

_SWEPT = ("wino", "confidence_threshold")


def run_curve(
    tasks: list[str],
    settings: dict[str, Any],
    *,
    models: list[str],
    decoders: list[str],
    thresholds: list[float],
    out: Path,
    data: Path | None,
    n: int | None,
    split: str,
    item_seed: int,
    device: str,
    batch_size: int,
    skip_invalid: bool = False,
    allow_code_execution: bool = False,
    allow_unsandboxed: bool = False,
    asked: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Measure every combination, print a table a task, write ``eval.json``, ``eval.md`` and ``eval.png`` into ``out``.

    What was measured is kept in ``out/measured``: an interrupted run goes on, and the same point is never decoded
    twice. A report that is there is replaced only by one that has all its points.
    """
    require("eval", "scipy", "matplotlib")
    if data is not None and len(tasks) > 1:
        raise BadInputError(f"--data: one file holds items of one task, got {len(tasks)} tasks")
    labelled = _labelled(models)
    to_run = [task_to_run(name, allow_code_execution, allow_unsandboxed, asked) for name in dict.fromkeys(tasks)]
    skipped = Skipped(skip_invalid)
    chosen = [(task, select_items(task, data, split, item_seed, n, skipped)) for task in to_run]
    out.mkdir(parents=True, exist_ok=True)
    pictures = any(task.has_pictures for task in to_run)
    with kept_report(out):
        sessions = {label: open_session(name, device, pictures=pictures) for label, name in labelled.items()}
        swept = partial(_configs, settings=settings, decoders=decoders, thresholds=thresholds)
        configs = [{label: list(swept(one, task)) for label, one in sessions.items()} for task in to_run]
        runs: list[_Run] = []
        for (task, items), own in zip(chosen, configs, strict=True):
            runs += _checked(task, items, sessions, own, out / "measured", skipped)
            if not runs[-1].items:
                raise skipped.none_left(task.name if data is None else str(data))
        skipped.tell()
        check_replaces(out / "eval.json", [name for run in runs for name in run.measured])
        for session in sessions.values():
            session.announce()
        _write(out, _measured(runs, batch_size), skipped)


class _Run(NamedTuple):
    """A task on a model: the items that every model can decode, and the settings to decode them with."""

    bench: Workbench
    task: Task
    items: list[Item]
    prompts: list[list[int]]
    configs: list[tuple[str, GenerationConfig]]

    @property
    def measured(self) -> list[str]:
        """The measurements' names."""
        return [self.bench.name_of(self.task, self.items, config) for _, config in self.configs]


def _checked(
    task: Task,
    items: list[Item],
    sessions: dict[str, Session],
    configs: dict[str, list[tuple[str, GenerationConfig]]],
    kept: Path,
    skipped: Skipped,
) -> list[_Run]:
    """The runs of ``task``, one a model; an item that one model cannot decode is left out for all."""
    prompts: dict[str, dict[str, list[int]]] = {}
    for label, session in sessions.items():
        own = [config for _, config in configs[label]]
        items, ids = encode_checked(session.model, session.tokenizer, task, items, own, on_invalid=skipped)
        prompts[label] = dict(zip((item.key for item in items), ids, strict=True))
    return [
        _Run(
            Workbench(label, session.model, session.tokenizer, kept),
            task,
            items,
            [prompts[label][item.key] for item in items],
            configs[label],
        )
        for label, session in sessions.items()
    ]


def _measured(runs: list[_Run], batch_size: int) -> list[tuple[_Run, list[Point]]]:
    """Every run with its points."""
    total = sum(len(run.configs) * len(run.items) for run in runs)
    found = []
    with ProgressReport("eval", total) as report:
        for run in runs:
            points = []
            for (decoder, config), name in zip(run.configs, run.measured, strict=True):
                result = run.bench.run(
                    run.task, run.items, config, batch_size=batch_size, on_batch=report.advance, prompts=run.prompts
                )
                points.append(Point(run.task.name, run.bench.label, decoder, config, result, name))
            found.append((run, points))
    return found


def _labelled(models: list[str]) -> dict[str, str]:
    """Label -> model, of "label=model"; a model without a label is its own."""
    pairs = [(label, name if equals else label) for label, equals, name in (model.partition("=") for model in models)]
    labels = [label for label, _ in pairs]
    if len(set(labels)) < len(labels):
        raise BadInputError(f"--model: expected a label of its own for each, got {', '.join(labels)}")
    return dict(pairs)


def _configs(
    session: Session, task: Task, settings: dict[str, Any], decoders: list[str], thresholds: list[float]
) -> Iterator[tuple[str, GenerationConfig]]:
    """Decoder and settings of every point: over the thresholds where the decoder has one, else its preset.

    Of ``settings``, each decoder takes those that it goes by.
    """
    for name in [*settings, *(["threshold"] if thresholds else [])]:
        if not set(decoders) & set(USED_BY.get(name, decoders)):
            raise BadInputError(f"--{name.replace('_', '-')}: none of {', '.join(decoders)} goes by it")
    for decoder in decoders:
        own_settings = {n: value for n, value in settings.items() if decoder in USED_BY.get(n, (decoder,))}
        swept: list[dict[str, Any]] = [{"threshold": t} for t in thresholds] if decoder in _SWEPT else []
        for own in swept or [{}]:
            yield from select_configs(task, {**own_settings, **own, "decoder": decoder}, session.presets).items()


def _write(out: Path, measured: list[tuple[_Run, list[Point]]], skipped: Skipped) -> None:
    console = Console(highlight=False)
    groups: dict[str, list[Point]] = {}
    tasks: dict[str, tuple[Task, int]] = {}
    for run, points in measured:
        groups.setdefault(run.task.name, []).extend(points)
        tasks[run.task.name] = (run.task, len(run.items))
    rows = [point.row() for group in groups.values() for point in group]
    tests = [compare(point, group[0]) for group in groups.values() for point in group[1:]]
    text = "# Accuracy under parallelism\n\nIntervals are 95 %: bootstrap; Wilson's where all answers agree. "
    text += "Differences and p-values (exact McNemar) are paired by item, against the first line of each table.\n"
    for name, group in groups.items():
        task, n = tasks[name]
        text += f"\n## {task.title} (`{name}`), {n} items\n\n" + markdown_table(group, group[0])
    if skipped.about()["count"]:
        text += f"\n{skipped.summary()}; eval.json says why.\n"
    report = {"rows": rows, "tests": tests, "skipped": skipped.about()}
    write_atomically(out / "eval.json", json.dumps(report, indent=1) + "\n")
    write_atomically(out / "eval.md", text + "\n![Accuracy against tokens per forward](eval.png)\n")
    plot_curves(rows, out / "eval.png", {name: task.title for name, (task, _) in tasks.items()})
    console.print(text, markup=False, soft_wrap=True)
    console.print(f"written: {out / 'eval.json'}, {out / 'eval.md'}, {out / 'eval.png'}", markup=False, soft_wrap=True)
