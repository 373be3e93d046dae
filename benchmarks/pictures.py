"""How well and how fast the bundled MMaDA captions, answers and draws.

    python benchmarks/pictures.py tune      chooses settings on validation scenes: presets.json
    python benchmarks/pictures.py report    measures held-out scenes: docs/pictures.json, .md and .png
    python benchmarks/pictures.py render    writes table and plot again from docs/pictures.json

Interrupted runs resume, as those of quality.py. Exits 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from quality import DOCS, Bench, curve_of, points, provenance, side_by_side, tune, with_task
from rich.progress import track
from tables import percent, settings_of, table

from wino.config import GenerationConfig
from wino.files import write_atomically
from wino.models.loading import bundled_folder
from wino.multimodal import draw, drawing_config, from_pixels, load
from wino.tasks import PICTURE_TASKS, Item, Task
from wino.tasks.cider import cider
from wino.tasks.curve import plot_curves
from wino.tasks.evaluation import Evaluation
from wino.tasks.presets import PRESETS_FILE, decoder_configs, load_presets
from wino.tasks.scenes import DRAWING, read_scene, scene_of
from wino.tasks.statistics import bootstrap_interval

NAME = "wino-tiny-mmada"
FEWER_STEPS_BAR = 5.0  # than one token a step, with or without the padding behind an answer
DRAWING_GRID = [
    {"steps": steps, "cfg_scale": scale, "temperature": heat, "choice_temperature": choice}
    for steps, scale, heat, choice in itertools.product((12, 24), (0.0, 1.5, 3.5), (0.5, 1.0), (1.0,))
]
WINO_ON_CODES = [
    {"threshold": threshold, "accept_fraction": fraction, "cfg_scale": scale}
    for threshold, fraction, scale in itertools.product((0.3, 0.6), (0.3, 0.7), (0.0, 1.5, 3.5))
]
_BATCH = 50


def references(items: Sequence[Item]) -> list[list[str]]:
    return [item.metadata["references"] for item in items]


def held_out(task: Task, count: int) -> list[Item]:
    return list(itertools.islice(task.items("heldout"), count))


def cider_difference(items: Sequence[Item], ours: Evaluation, theirs: Evaluation) -> tuple[float, float, float]:
    """Mean over pictures of ours - theirs, and its 95 % bootstrap interval."""
    wanted = references(items)
    pairs = zip(cider(ours.texts, wanted)[1], cider(theirs.texts, wanted)[1], strict=True)
    differences = [a - b for a, b in pairs]
    return sum(differences) / len(differences), *bootstrap_interval(differences)


def threshold_at_steps(bench: Bench, task: Task, steps: float, count: int) -> float:
    """The threshold with which confidence_threshold takes at least ``steps`` a validation item, hardly more."""
    low, high = 0.2, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        config = with_task(task, "confidence_threshold", threshold=middle)
        low, high = (
            (middle, high) if bench.first(task, "validation", count, config).mean_steps < steps else (low, middle)
        )
    return high


def measure_task(bench: Bench, task: Task, presets: Any, count: int, curve_count: int) -> dict[str, Any]:
    """One task: the decoders side by side, the confidence threshold at WINO's steps, and the curve."""
    configs = decoder_configs(task, presets)
    results = {label: bench.first(task, "heldout", count, config) for label, config in configs.items()}
    on_validation = bench.first(task, "validation", count, configs["wino"]).mean_steps
    equal = {"threshold": round(threshold_at_steps(bench, task, on_validation, count), 4)}
    label = "confidence_threshold at WINO's steps"
    results[label] = bench.first(task, "heldout", count, with_task(task, "confidence_threshold", **equal))
    rows = side_by_side(results, {**presets.get(task.name, {}), label: equal})
    if "cider" in results["wino"].scores:
        items = held_out(task, count)
        for row, result in zip(rows, results.values(), strict=True):
            row["cider_difference"] = cider_difference(items, result, results["low_confidence"])
            row["wino_minus_cider"] = cider_difference(items, results["wino"], result)
    return {"title": task.title, "rows": rows, "curve": curve_of(bench, task, curve_count)}


@dataclass(frozen=True)
class Drawings:
    """What :func:`wino.tasks.scenes.read_scene` finds in pictures: of each, the share of the objects asked for, and
    whether they are there and nothing else."""

    objects: list[float]
    exact: list[bool]
    steps: int | None = None  # forward passes of all of them
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def share(self) -> float:
        return sum(self.objects) / len(self.objects)

    def row(self, reference: Drawings) -> dict[str, Any]:
        """The figures; the difference from ``reference`` is paired by picture, its interval 95 %."""
        apart = [a - b for a, b in zip(self.objects, reference.objects, strict=True)]
        count = len(self.exact)
        return {
            "n": count,
            "objects": self.share,
            "exact": sum(self.exact) / count,
            "objects_difference": (sum(apart) / count, *bootstrap_interval(apart)),
            "settings": self.settings,
            **({} if self.steps is None else {"mean_steps": self.steps / count}),
        }


def drawn_as_asked(bench: Bench, items: Sequence[Item], decoder: str, settings: dict[str, Any]) -> Drawings:
    """Draw every caption and read the pictures."""
    config = config_of(bench, decoder, settings)
    steps, codes = 0, []
    batches = [items[first : first + _BATCH] for first in range(0, len(items), _BATCH)]
    for batch in track(batches, f"{DRAWING} {config.decoder}", transient=True):
        drawn, out = draw(bench.model, bench.tokenizer.layout, [item.answer for item in batch], config)
        codes.append(drawn)
        steps += int(out.steps.sum())
    return Drawings(*as_asked(bench, items, torch.cat(codes)), steps, settings)


def reconstructed(bench: Bench, items: Sequence[Item]) -> Drawings:
    """The same of pictures that only went through the image tokenizer: no drawing can be better."""
    pictures = [PICTURE_TASKS["caption"].picture(item) for item in items]
    return Drawings(*as_asked(bench, items, bench.tokenizer.codes(pictures)))


def as_asked(bench: Bench, items: Sequence[Item], codes: torch.Tensor) -> tuple[list[float], list[bool]]:
    """Of each picture: the share of the objects that its item asks for, whether it shows them and nothing else."""
    objects, exact = [], []
    for item, picture in zip(items, from_pixels(bench.tokenizer.magvit.decode_code(codes)), strict=True):
        wanted, seen = set(scene_of(item)), set(read_scene(picture))
        objects.append(len(wanted & seen) / len(wanted))
        exact.append(wanted == seen)
    return objects, exact


def config_of(bench: Bench, decoder: str, settings: dict[str, Any]) -> GenerationConfig:
    """``settings`` of a decoder of codes. WINO takes the likeliest code, without MaskGIT's noise and steps, and may
    accept any number of them."""
    layout = bench.tokenizer.layout
    if decoder == "wino":
        greedy = {"steps": None, "temperature": 0.0, "choice_temperature": 0.0, "max_accept": layout.num_codes}
        settings = {**greedy, "min_accept": 1, **settings}
    return drawing_config(layout, decoder=decoder, **settings)


def tune_drawing(bench: Bench, folder: Path, count: int) -> None:
    """Settings with the most objects drawn as asked; WINO's beside MaskGIT's."""
    items = list(itertools.islice(PICTURE_TASKS["caption"].items("validation"), count))
    chosen = {}
    for decoder, grid in (("maskgit", DRAWING_GRID), ("wino", WINO_ON_CODES)):
        tried = []
        for settings in grid:
            result = drawn_as_asked(bench, items, decoder, settings)
            tried.append((result.share, settings))
            print(f"{DRAWING} {decoder} {settings}: {result.row(result)}")
        chosen[decoder] = max(tried, key=lambda row: row[0])[1]
    presets = {**load_presets(folder), DRAWING: chosen}
    write_atomically(folder / PRESETS_FILE, json.dumps(presets, indent=2) + "\n")


def report(bench: Bench, folder: Path, count: int, curve_count: int) -> dict[str, Any]:
    """Every decoder on held-out scenes."""
    presets = load_presets(folder)
    if DRAWING not in presets:
        sys.exit(f"{folder / PRESETS_FILE}: no settings of {DRAWING!r}; run `pictures.py tune` first")
    measured = {task.name: measure_task(bench, task, presets, count, curve_count) for task in PICTURE_TASKS.values()}
    items = held_out(PICTURE_TASKS["caption"], count)
    maskgit, wino = (drawn_as_asked(bench, items, name, presets[DRAWING][name]) for name in ("maskgit", "wino"))
    steps = max(1, round((wino.steps or 0) / len(items)))
    drawings = {
        "image tokenizer alone": reconstructed(bench, items),
        "maskgit": maskgit,
        "wino": wino,
        "maskgit at WINO's steps": drawn_as_asked(bench, items, "maskgit", {**maskgit.settings, "steps": steps}),
    }
    rows = {name: drawn.row(maskgit) for name, drawn in drawings.items()}
    return {**provenance(bench, count, curve_count), "model": bench.label, "tasks": measured, "drawings": rows}


def markdown(figures: dict[str, Any]) -> str:
    """docs/pictures.md."""
    text = f"""# Quality of {figures["model"]}

Made by `python benchmarks/pictures.py report`; settings chosen on validation scenes by `pictures.py tune`. Figures from
{figures["items"]} held-out scenes a task, the curve from {figures["curve_items"]}. Intervals: 95 %; differences are
paired by item. Step reduction counts an answer up to its end token, never padding.
"""
    for name, task in figures["tasks"].items():
        has_cider = "cider" in task["rows"][0]
        columns = ["decoder", "settings", *(["CIDEr", "against low_confidence"] if has_cider else []), "accuracy %"]
        columns += ["against low_confidence, points", "steps", "step reduction"]
        body = []
        for row in task["rows"]:
            cells = [row["decoder"], settings_of(row) or "-"]
            if has_cider:
                mean, low, high = row["cider_difference"]
                cells += [f"{row['cider']:.3f}", f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"]
            cells += [
                f"{percent(row['accuracy'])} [{percent(row['ci_low'])}, {percent(row['ci_high'])}]",
                points(row["difference"]),
                f"{row['mean_steps']:.2f}",
                f"{row['step_reduction']:.2f}x",
            ]
            body.append(cells)
        text += f"\n## {task['title']} (`{name}`)\n\n{table(columns, body)}\n"
    body = [
        [
            name,
            settings_of(row) or "-",
            percent(row["objects"]),
            points(row["objects_difference"]),
            percent(row["exact"]),
            f"{row['mean_steps']:.1f}" if "mean_steps" in row else "",
        ]
        for name, row in figures["drawings"].items()
    ]
    columns = ["decoder", "settings", "objects drawn as asked %", "against maskgit, points"]
    columns += ["pictures exactly as asked %", "steps"]
    text += f"""
## Pictures from descriptions

Held-out captions are drawn; `wino.tasks.scenes.read_scene` reads the pictures (it reads every rendered scene
right), so no model judges itself. WINO on image codes is an experiment.

{table(columns, body)}
"""
    return text + "\n![Accuracy against tokens per forward](pictures.png)\n"


def check_bars(figures: dict[str, Any]) -> list[str]:
    """One line for each bar the captions miss."""
    rows = {row["decoder"]: row for row in figures["tasks"]["caption"]["rows"]}
    ours, default = rows["wino"], rows["low_confidence"]
    rival = rows["confidence_threshold at WINO's steps"]
    fewer = default["mean_steps"] / ours["mean_steps"]
    missed = []
    if fewer < FEWER_STEPS_BAR:
        missed.append(f"caption: {fewer:.2f}x fewer steps than one token a step < {FEWER_STEPS_BAR}x")
    if ours["step_reduction"] < FEWER_STEPS_BAR:
        missed.append(f"caption: step reduction {ours['step_reduction']:.2f} < {FEWER_STEPS_BAR}")
    if ours["cider"] < default["cider"]:
        missed.append(f"caption: WINO's CIDEr {ours['cider']:.3f} < {default['cider']:.3f} of one token a step")
    if rival["cider"] > ours["cider"]:
        missed.append(
            f"caption: the confidence threshold has {rival['cider']:.3f} at equal steps, WINO {ours['cider']:.3f}"
        )
    return missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("tune", "report", "render"))
    parser.add_argument("--model", default=NAME, help="of another one, a folder, the page is written into it")
    parser.add_argument("--items", type=int, default=1000, help="scenes per task")
    parser.add_argument("--curve-items", type=int, default=300, help="scenes per task for each point of the curve")
    arguments = parser.parse_args()
    bundled = arguments.model == NAME
    folder = bundled_folder(NAME) if bundled else Path(arguments.model)
    pages = DOCS if bundled else folder
    file = pages / "pictures.json"
    if arguments.command != "render":
        bench = Bench(NAME if bundled else folder.name, *load(arguments.model))
        if arguments.command == "tune":
            tune(bench, folder, list(PICTURE_TASKS.values()), arguments.items)
            tune_drawing(bench, folder, min(arguments.items, 200))
            return
        figures = report(bench, folder, arguments.items, arguments.curve_items)
        write_atomically(file, json.dumps(figures, indent=1) + "\n")
    figures = json.loads(file.read_text())
    write_atomically(pages / "pictures.md", markdown(figures))
    tasks = figures["tasks"]
    curve = [
        {"task": name, "model": figures["model"], **point} for name, task in tasks.items() for point in task["curve"]
    ]
    plot_curves(curve, pages / "pictures.png", {name: task["title"] for name, task in tasks.items()})
    missed = check_bars(figures)
    print("\n".join(missed) if missed else "every bar is met")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
