"""How well and how fast the bundled model decodes: thresholds from the validation split, figures from the held-out
split.

    python benchmarks/quality.py tune      chooses each family's settings on validation items, writes presets.json
    beside the weights python benchmarks/quality.py report    measures held-out items, writes docs/quality.json,
    docs/quality.md and docs/quality.png python benchmarks/quality.py render    writes the table and the plot again
    from docs/quality.json

An interrupted run resumes: every finished measurement is kept in build/quality.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

import wino
from wino.config import GenerationConfig
from wino.models.loading import bundled_folder
from wino.tasks import TASKS, Item, Task
from wino.tasks.evaluation import Evaluation, evaluate, paired_difference
from wino.tasks.presets import PRESETS_FILE, baseline_configs, decoder_configs, load_presets

DOCS = Path(__file__).parent.parent / "docs"
CACHE = Path(__file__).parent.parent / "build" / "quality"
STEP_REDUCTION_BAR = {"sudoku": 3.0, "countdown": 4.0, "sum": 4.0}
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
COLUMNS = (
    "decoder",
    "settings",
    "accuracy %",
    "against low_confidence, points",
    "mean steps",
    "step reduction",
    "tokens per forward",
)
WINO_GRID = [
    {"threshold": low, "threshold_back": back, "verify_last": last}
    for low, back, last in itertools.product((0.5, 0.6, 0.7, 0.8, 0.9), (0.9, 0.95), (False, True))
]


def first_items(task: Task, split: str, count: int) -> list[Item]:
    return list(itertools.islice(task.items(split), count))


class Bench:
    """One model; every measurement is stored by what decides it."""

    def __init__(self, name: str) -> None:
        self.model, self.tokenizer = wino.load(name)
        weights = b"".join(p.detach().float().numpy().tobytes() for p in self.model.parameters())
        self.fingerprint = hashlib.sha256(weights).hexdigest()[:12]

    def run(self, task: Task, split: str, count: int, config: GenerationConfig) -> Evaluation:
        """Evaluate, or read what an earlier run measured."""
        key = json.dumps(
            [self.fingerprint, task.name, split, count, config.to_diff_dict()], sort_keys=True, default=str
        )
        path = CACHE / f"{task.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        if path.exists():
            return Evaluation(**json.loads(path.read_text()))
        with Progress(transient=True) as progress:
            bar = progress.add_task(f"{task.name} {config.decoder}", total=count)
            items = first_items(task, split, count)
            result = evaluate(
                self.model, self.tokenizer, task, items, config, on_batch=lambda n: progress.advance(bar, n)
            )
        CACHE.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(result), default=str))
        return result


def write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def with_task(task: Task, decoder: str, **settings: Any) -> GenerationConfig:
    return GenerationConfig(decoder=decoder, max_new_tokens=task.max_new_tokens, **settings)


def tune(bench: Bench, folder: Path, count: int) -> None:
    """For each family and decoder, the fewest steps among the settings that are not more than 1 point worse than
    LLaDA's own decoder."""
    grids: dict[str, list[dict[str, Any]]] = {
        "wino": WINO_GRID,
        "confidence_threshold": [{"threshold": threshold} for threshold in THRESHOLDS[2:]],
    }
    presets: dict[str, dict[str, Any]] = {}
    for task in TASKS.values():
        reference = bench.run(task, "validation", count, baseline_configs(task)["low_confidence"])
        presets[task.name] = {}
        for decoder, grid in grids.items():
            tried = []
            for settings in grid:
                result = bench.run(task, "validation", count, with_task(task, decoder, **settings))
                mean, low, _ = paired_difference(result.correct, reference.correct)
                too_bad = low < -0.01
                tried.append((too_bad, -result.accuracy if too_bad else result.mean_steps, settings))
                print(
                    f"{task.name} {decoder} {settings}: {result.accuracy:.3f} ({mean:+.3f}) @ {result.mean_steps:.2f}"
                )
            presets[task.name][decoder] = min(tried, key=lambda row: row[:2])[2]
            print(f"-> {task.name} {decoder}: {presets[task.name][decoder]}")
    write_atomically(folder / PRESETS_FILE, json.dumps(presets, indent=2) + "\n")


def sweep_configs(task: Task) -> Iterable[tuple[str, GenerationConfig]]:
    """The points of the accuracy against tokens-per-forward curve."""
    for steps in sorted({task.max_new_tokens // k for k in (1, 2, 3, 4, 6, 8)}, reverse=True):
        yield "low_confidence", with_task(task, "low_confidence", steps=steps)
    for threshold in THRESHOLDS:
        yield "confidence_threshold", with_task(task, "confidence_threshold", threshold=threshold)
        yield "wino", with_task(task, "wino", threshold=threshold)
        yield "wino, verify_last", with_task(task, "wino", threshold=threshold, verify_last=True)


def report(bench: Bench, folder: Path, count: int) -> dict[str, Any]:
    """Every decoder on the held-out items, the bars, and the curve."""
    presets = load_presets(folder)
    tasks: dict[str, Any] = {}
    for task in TASKS.values():
        configs = decoder_configs(task, presets)
        results = {label: bench.run(task, "heldout", count, config) for label, config in configs.items()}
        reference = results["low_confidence"]
        rows = []
        for label, result in results.items():
            difference = paired_difference(result.correct, reference.correct)
            rows.append(
                {
                    "decoder": label,
                    "settings": presets[task.name].get(label, {}),
                    "difference": difference,
                    **result.row(),
                }
            )
        steps = int(results["wino"].mean_steps)  # rounded down: the rival may take at least as many steps
        rivals = [
            bench.run(task, "heldout", count, with_task(task, "low_confidence", steps=n))
            for n in sorted({max(steps, 1), steps + 1})
        ]
        rows_rival = [
            {"steps": r.mean_steps, "wino_minus": paired_difference(results["wino"].correct, r.correct), **r.row()}
            for r in rivals
        ]
        curve = [
            {
                "decoder": label,
                "threshold": config.threshold,
                "steps": config.steps,
                **bench.run(task, "heldout", count, config).row(),
            }
            for label, config in sweep_configs(task)
        ]
        tasks[task.name] = {"title": task.title, "rows": rows, "equal_steps": rows_rival, "curve": curve}
    return {"items": count, "weights": bench.fingerprint, "torch": torch.__version__, "tasks": tasks}


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def markdown(figures: dict[str, Any]) -> str:
    lines = [
        "# Quality of the bundled model",
        "",
        "Made by `python benchmarks/quality.py report`; settings chosen on the validation split",
    ]
    lines[-1] += f" (`quality.py tune`), figures from {figures['items']} held-out items a family. Intervals: 95 %."
    for name, task in figures["tasks"].items():
        lines += ["", f"## {task['title']} (`{name}`)", ""]
        lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
        for row in task["rows"]:
            settings = ", ".join(f"{k} {v}" for k, v in row["settings"].items()) or "-"
            mean, low, high = (100 * v for v in row["difference"])
            lines.append(
                f"| {row['decoder']} | {settings} "
                f"| {percent(row['accuracy'])} [{percent(row['ci_low'])}, {percent(row['ci_high'])}] "
                f"| {mean:+.1f} [{low:+.1f}, {high:+.1f}] | {row['mean_steps']:.2f} | {row['step_reduction']:.2f}x "
                f"| {row['tokens_per_forward']:.2f} |"
            )
        for rival in task["equal_steps"]:
            mean, low, high = (100 * v for v in rival["wino_minus"])
            lines += [
                "",
                f"A fixed number of tokens a step, {rival['steps']:.0f} steps: {percent(rival['accuracy'])} %;",
            ]
            lines[-1] += f" WINO is {mean:+.1f} points [{low:+.1f}, {high:+.1f}] beside it."
    lines += ["", "![Accuracy against tokens per forward](quality.png)", ""]
    return "\n".join(lines)


def plot(figures: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = figures["tasks"]
    figure, axes = pyplot.subplots(1, len(tasks), figsize=(5 * len(tasks), 4.2), constrained_layout=True)
    styles = {"low_confidence": "o", "confidence_threshold": "s", "wino": "^", "wino, verify_last": "v"}
    for axis, task in zip(axes, tasks.values(), strict=True):
        for label, marker in styles.items():
            points = sorted((p for p in task["curve"] if p["decoder"] == label), key=lambda p: p["tokens_per_forward"])
            x = [p["tokens_per_forward"] for p in points]
            y = [100 * p["accuracy"] for p in points]
            below = [100 * (p["accuracy"] - p["ci_low"]) for p in points]
            above = [100 * (p["ci_high"] - p["accuracy"]) for p in points]
            axis.errorbar(x, y, yerr=[below, above], marker=marker, markersize=4, linewidth=1, capsize=2, label=label)
        axis.set(title=task["title"], xlabel="tokens per forward", ylabel="accuracy %")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=130)


def check_bars(figures: dict[str, Any]) -> list[str]:
    """One line for each bar the figures miss."""
    missed = []
    floors = {"sudoku": 0.95, "countdown": 0.60, "sum": 0.80}
    for name, task in figures["tasks"].items():
        rows = {row["decoder"]: row for row in task["rows"]}
        if rows["low_confidence"]["accuracy"] < floors[name]:
            missed.append(f"{name}: low_confidence accuracy {rows['low_confidence']['accuracy']:.3f} < {floors[name]}")
        if rows["wino"]["difference"][1] < -0.02:
            missed.append(f"{name}: WINO's paired difference may be as low as {rows['wino']['difference'][1]:.3f}")
        if rows["wino"]["step_reduction"] < STEP_REDUCTION_BAR[name]:
            missed.append(f"{name}: step reduction {rows['wino']['step_reduction']:.2f} < {STEP_REDUCTION_BAR[name]}")
        for rival in task["equal_steps"]:
            if rival["steps"] >= rows["wino"]["mean_steps"] and rival["accuracy"] >= rows["wino"]["accuracy"]:
                missed.append(f"{name}: {rival['steps']:.0f} steps of low_confidence are as accurate as WINO")
    return missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("tune", "report", "render"))
    parser.add_argument("--model", default="wino-tiny")
    parser.add_argument("--items", type=int, default=2000, help="items per family")
    arguments = parser.parse_args()
    folder = bundled_folder() if arguments.model == "wino-tiny" else Path(arguments.model)
    figures_file = DOCS / "quality.json"
    if arguments.command == "tune":
        tune(Bench(arguments.model), folder, arguments.items)
        return
    if arguments.command == "report":
        write_atomically(
            figures_file, json.dumps(report(Bench(arguments.model), folder, arguments.items), indent=1) + "\n"
        )
    figures = json.loads(figures_file.read_text())
    write_atomically(DOCS / "quality.md", markdown(figures))
    plot(figures, DOCS / "quality.png")
    missed = check_bars(figures)
    print("\n".join(missed) if missed else "every bar is met")


if __name__ == "__main__":
    main()
