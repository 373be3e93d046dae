"""How well and how fast the bundled model decodes.

    python benchmarks/quality.py tune      chooses each family's settings on validation items: presets.json
    python benchmarks/quality.py report    measures held-out items: docs/quality.json, docs/quality.md, docs/quality.png
    python benchmarks/quality.py render    writes table and plot again from docs/quality.json

An interrupted run resumes: finished measurements are kept in build/quality, apart by version of Torch and package
and by instruction set; `--fresh` measures again. Exits 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tables import percent, settings_of, table

import wino
from wino.config import GenerationConfig
from wino.files import write_atomically
from wino.models.loading import bundled_folder
from wino.progress import ProgressReport
from wino.tasks import TASKS, Task
from wino.tasks.curve import Workbench, plot_curves
from wino.tasks.evaluation import Evaluation
from wino.tasks.presets import PRESETS_FILE, baseline_configs, decoder_configs, load_presets
from wino.tasks.statistics import paired_difference

DOCS = Path(__file__).parent.parent / "docs"
CACHE = Path(__file__).parent.parent / "build" / "quality"
ACCURACY_BAR = {"sudoku": 0.95, "countdown": 0.60, "sum": 0.80}
STEP_REDUCTION_BAR = {"sudoku": 3.0, "countdown": 4.0, "sum": 4.0}
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
WINO_GRID = [
    {"threshold": threshold, "threshold_back": 0.9, "verify_last": last}
    for threshold, last in itertools.product((0.5, 0.6, 0.7, 0.8, 0.9), (False, True))
]


class Bench(Workbench):
    """One model and its tokenizer; every measurement is stored by what decides it."""

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        super().__init__(name, model, tokenizer, CACHE)

    def first(self, task: Task, split: str, count: int, config: GenerationConfig) -> Evaluation:
        """The first ``count`` items of a split."""
        with ProgressReport(f"{task.name} {config.decoder}", count) as report:
            items = list(itertools.islice(task.items(split), count))
            return self.run(task, items, config, on_batch=report.advance)


def with_task(task: Task, decoder: str, **settings: Any) -> GenerationConfig:
    return GenerationConfig(decoder=decoder, max_new_tokens=task.max_new_tokens, **settings)


def tune(bench: Bench, folder: Path, tasks: Sequence[Task], count: int) -> None:
    """For each family and decoder, the fewest steps among the settings that are as good as LLaDA's own decoder; the
    best one where there is none."""
    grids: dict[str, list[dict[str, Any]]] = {
        "wino": WINO_GRID,
        "confidence_threshold": [{"threshold": threshold} for threshold in THRESHOLDS[2:]],
    }
    presets: dict[str, dict[str, Any]] = {}
    for task in tasks:
        reference = goodness(bench.first(task, "validation", count, baseline_configs(task)["low_confidence"]))
        print(f"{task.name} low_confidence: {reference:.3f}")
        presets[task.name] = {}
        for decoder, grid in grids.items():
            tried = []
            for settings in grid:
                result = bench.first(task, "validation", count, with_task(task, decoder, **settings))
                worse = goodness(result) < reference
                tried.append((worse, -goodness(result) if worse else result.mean_steps, settings))
                print(f"{task.name} {decoder} {settings}: {goodness(result):.3f} @ {result.mean_steps:.2f} steps")
            presets[task.name][decoder] = min(tried, key=lambda row: row[:2])[2]
            print(f"-> {task.name} {decoder}: {presets[task.name][decoder]}")
    write_atomically(folder / PRESETS_FILE, json.dumps({**load_presets(folder), **presets}, indent=2) + "\n")


def goodness(result: Evaluation) -> float:
    """CIDEr of captions, accuracy of answers."""
    return result.scores.get("cider", result.accuracy)


def sweep_configs(task: Task) -> Iterable[tuple[str, GenerationConfig]]:
    """The points of the accuracy against tokens-per-forward curve."""
    for steps in sorted({task.max_new_tokens // k for k in (1, 2, 3, 4, 6, 8)}, reverse=True):
        yield "low_confidence", with_task(task, "low_confidence", steps=steps)
    for threshold in THRESHOLDS:
        yield "confidence_threshold", with_task(task, "confidence_threshold", threshold=threshold)
        yield "wino", with_task(task, "wino", threshold=threshold)
        yield "wino, verify_last", with_task(task, "wino", threshold=threshold, verify_last=True)


def measure_task(
    bench: Bench, task: Task, presets: dict[str, dict[str, dict[str, Any]]], count: int, curve_count: int
) -> dict[str, Any]:
    """One family: the decoders side by side, WINO's rival at equal steps, and the curve."""
    results = {
        label: bench.first(task, "heldout", count, config) for label, config in decoder_configs(task, presets).items()
    }
    ours = results["wino"]
    rows = side_by_side(results, presets.get(task.name, {}))
    steps = math.ceil(ours.mean_steps)
    rival = bench.first(task, "heldout", count, with_task(task, "low_confidence", steps=steps))
    rival_row = {"steps": steps, "wino_minus": paired_difference(ours.correct, rival.correct), **rival.row()}
    curve = curve_of(bench, task, curve_count)
    return {"title": task.title, "rows": rows, "equal_steps": rival_row, "curve": curve}


def side_by_side(results: dict[str, Evaluation], settings: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a decoder, paired with one token a step and with WINO."""
    reference, ours = results["low_confidence"], results["wino"]
    return [
        {
            "decoder": label,
            "settings": settings.get(label, {}),
            "difference": paired_difference(result.correct, reference.correct),
            "wino_minus": paired_difference(ours.correct, result.correct),
            **result.row(),
        }
        for label, result in results.items()
    ]


def curve_of(bench: Bench, task: Task, count: int) -> list[dict[str, Any]]:
    """The points of :func:`sweep_configs` on held-out items."""
    return [
        {
            "decoder": label,
            "threshold": config.threshold,
            "steps": config.steps,
            **bench.first(task, "heldout", count, config).row(),
        }
        for label, config in sweep_configs(task)
    ]


def report(bench: Bench, folder: Path, tasks: Sequence[Task], count: int, curve_count: int) -> dict[str, Any]:
    """Every decoder on the held-out items of every family."""
    presets = load_presets(folder)
    measured = {task.name: measure_task(bench, task, presets, count, curve_count) for task in tasks}
    return {**provenance(bench, count, curve_count), "tasks": measured}


def provenance(bench: Bench, count: int, curve_count: int) -> dict[str, Any]:
    """What a report was made of."""
    return {
        "items": count,
        "curve_items": curve_count,
        "weights": bench.fingerprint,
        "torch": torch.__version__,
    }


def markdown(figures: dict[str, Any]) -> str:
    """docs/quality.md."""
    text = f"""# Quality of the bundled model

Made by `python benchmarks/quality.py report`; settings chosen on validation items by `quality.py tune`. Figures from
{figures["items"]} held-out items a family, the curve from {figures["curve_items"]}. Intervals: 95 %; differences are
paired by item. Step reduction counts an answer up to its end token, never padding.
"""
    columns = ["decoder", "settings", "accuracy %", "against low_confidence, points", "steps", "step reduction"]
    for name, task in figures["tasks"].items():
        body = [
            [
                row["decoder"],
                settings_of(row) or "-",
                f"{percent(row['accuracy'])} [{percent(row['ci_low'])}, {percent(row['ci_high'])}]",
                points(row["difference"]),
                f"{row['mean_steps']:.2f}",
                f"{row['step_reduction']:.2f}x",
            ]
            for row in task["rows"]
        ]
        rival = task["equal_steps"]
        text += f"\n## {task['title']} (`{name}`)\n\n{table(columns, body)}\n\n"
        text += f"A fixed number of tokens a step, in {rival['steps']} steps, reaches {percent(rival['accuracy'])} %: "
        text += f"WINO is {points(rival['wino_minus'])} points beside it.\n"
    return text + "\n![Accuracy against tokens per forward](quality.png)\n"


def points(difference: Sequence[float]) -> str:
    mean, low, high = (100 * value for value in difference)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def plot(figures: dict[str, Any], path: Path) -> None:
    tasks = figures["tasks"]
    rows = [{"task": name, "model": "wino-tiny", **point} for name, task in tasks.items() for point in task["curve"]]
    plot_curves(rows, path, {name: task["title"] for name, task in tasks.items()})


def check_bars(figures: dict[str, Any]) -> list[str]:
    """One line for each bar the figures miss."""
    missed = []
    for name, task in figures["tasks"].items():
        rows = {row["decoder"]: row for row in task["rows"]}
        reference, ours = rows["low_confidence"], rows["wino"]
        if reference["accuracy"] < ACCURACY_BAR[name]:
            missed.append(f"{name}: low_confidence accuracy {reference['accuracy']:.3f} < {ACCURACY_BAR[name]}")
        if ours["difference"][1] < -0.02:
            missed.append(f"{name}: WINO's paired difference may be as low as {ours['difference'][1]:.3f}")
        if ours["step_reduction"] < STEP_REDUCTION_BAR[name]:
            missed.append(f"{name}: step reduction {ours['step_reduction']:.2f} < {STEP_REDUCTION_BAR[name]}")
        for rival in (task["equal_steps"], *(row for label, row in rows.items() if label.endswith("a step"))):
            if rival["mean_steps"] >= ours["mean_steps"] and rival["accuracy"] >= ours["accuracy"]:
                missed.append(f"{name}: {rival['mean_steps']:.0f} fixed steps are as accurate as WINO")
    return missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("tune", "report", "render"))
    parser.add_argument("--model", default="wino-tiny")
    parser.add_argument(
        "--task", choices=tuple(TASKS), help="only this family; a report of one is measured and kept, not written"
    )
    parser.add_argument("--items", type=int, help="items per family (tune: 1000, report: 2000)")
    parser.add_argument("--curve-items", type=int, default=300, help="items per family for each point of the curve")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs measured")
    arguments = parser.parse_args()
    if arguments.fresh:
        shutil.rmtree(CACHE, ignore_errors=True)
    tasks = [TASKS[arguments.task]] if arguments.task else list(TASKS.values())
    folder = bundled_folder() if arguments.model == "wino-tiny" else Path(arguments.model)
    figures_file = DOCS / "quality.json"
    if arguments.command == "tune":
        tune(Bench(arguments.model, *wino.load(arguments.model)), folder, tasks, arguments.items or 1000)
        return
    if arguments.command == "report":
        bench = Bench(arguments.model, *wino.load(arguments.model))
        figures = report(bench, folder, tasks, arguments.items or 2000, arguments.curve_items)
        if arguments.task:
            return
        write_atomically(figures_file, json.dumps(figures, indent=1) + "\n")
    figures = json.loads(figures_file.read_text())
    write_atomically(DOCS / "quality.md", markdown(figures))
    plot(figures, DOCS / "quality.png")
    missed = check_bars(figures)
    print("\n".join(missed) if missed else "every bar is met")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
