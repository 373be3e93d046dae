"""``wino eval --out``: models and decoders over thresholds, compared on the same items."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

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
    labelled = [_labelled(model) for model in models]
    labels = [label for label, _ in labelled]
    if len(set(labels)) < len(labels):
        raise BadInputError(f"--model: expected a label of its own for each, got {', '.join(labels)}")
    to_run = [task_to_run(name, allow_code_execution, allow_unsandboxed, asked) for name in dict.fromkeys(tasks)]
    skipped = Skipped(skip_invalid)
    chosen = {task.name: (task, select_items(task, data, split, item_seed, n, skipped)) for task in to_run}
    out.mkdir(parents=True, exist_ok=True)
    pictures = any(task.has_pictures for task in to_run)
    with kept_report(out):
        sessions = {label: open_session(name, device, pictures=pictures) for label, name in labelled}
        points: dict[str, list[Point]] = {name: [] for name in chosen}
        configs = {
            (label, name): list(_configs(session, task, settings, decoders, thresholds))
            for label, session in sessions.items()
            for name, (task, _) in chosen.items()
        }
        prompts: dict[tuple[str, str], dict[str, list[int]]] = {}
        for name, (task, items) in chosen.items():
            for label, session in sessions.items():  # an item that one model cannot decode is left out for all
                own = [config for _, config in configs[label, name]]
                items, ids = encode_checked(session.model, session.tokenizer, task, items, own, on_invalid=skipped)
                prompts[label, name] = dict(zip((item.key for item in items), ids, strict=True))
            if not items:
                raise skipped.none_left(name if data is None else str(data))
            chosen[name] = (task, items)
        skipped.tell()
        benches = {
            label: Workbench(label, session.model, session.tokenizer, out / "measured")
            for label, session in sessions.items()
        }
        names = {
            (label, name, number): benches[label].name_of(*chosen[name], config)
            for (label, name), own in configs.items()
            for number, (_, config) in enumerate(own)
        }
        check_replaces(out / "eval.json", names.values())
        total = sum(len(configs[label, name]) * len(chosen[name][1]) for label, name in configs)
        for session in sessions.values():
            session.announce()
        with ProgressReport("eval", total) as report:
            for label, bench in benches.items():
                for name, (task, items) in chosen.items():
                    ids = [prompts[label, name][item.key] for item in items]
                    for number, (decoder, config) in enumerate(configs[label, name]):
                        result = bench.run(
                            task, items, config, batch_size=batch_size, on_batch=report.advance, prompts=ids
                        )
                        measured = names[label, name, number]
                        points[name].append(Point(name, label, decoder, config, result, measured))
        _write(out, chosen, points, skipped)


def _labelled(model: str) -> tuple[str, str]:
    label, equals, name = model.partition("=")
    return (label, name) if equals else (model, model)


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


def _write(
    out: Path, chosen: dict[str, tuple[Task, list[Item]]], points: dict[str, list[Point]], skipped: Skipped
) -> None:
    console = Console(highlight=False)
    rows = [point.row() for group in points.values() for point in group]
    tests = [compare(point, group[0]) for group in points.values() for point in group[1:]]
    text = "# Accuracy under parallelism\n\nIntervals are 95 %: bootstrap; Wilson's where all answers agree. "
    text += "Differences and p-values (exact McNemar) are paired by item, against the first line of each table.\n"
    for name, group in points.items():
        text += f"\n## {chosen[name][0].title} (`{name}`), {len(chosen[name][1])} items\n\n"
        text += markdown_table(group, group[0])
    if skipped.about()["count"]:
        text += f"\n{skipped.summary()}; eval.json says why.\n"
    report = {"rows": rows, "tests": tests, "skipped": skipped.about()}
    write_atomically(out / "eval.json", json.dumps(report, indent=1) + "\n")
    write_atomically(out / "eval.md", text + "\n![Accuracy against tokens per forward](eval.png)\n")
    plot_curves(rows, out / "eval.png", {name: task.title for name, (task, _) in chosen.items()})
    console.print(text, markup=False, soft_wrap=True)
    console.print(f"written: {out / 'eval.json'}, {out / 'eval.md'}, {out / 'eval.png'}", markup=False, soft_wrap=True)
