"""Write the measured figures into the documents that show them.

    python benchmarks/tables.py

Reads docs/bench_ISA.jsonl (`make bench`, a file for each instruction set), docs/quality.json and docs/pictures.json
(`make quality`), docs/wino_plus.json (`make plus`) and docs/gpu_CHIP.json (`make gpu-suite`), and replaces what stands
between `<!-- NAME: begin -->` and `<!-- NAME: end -->` in README.md, in docs/ and in the model cards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from wino.benchmark.timing import PHASES

Rows = list[dict[str, Any]]

ROOT = Path(__file__).parent.parent
DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "docs" / "performance.md",
    ROOT / "docs" / "multimodal.md",
    ROOT / "python" / "wino" / "assets" / "wino-tiny" / "README.md",
    ROOT / "python" / "wino" / "assets" / "wino-tiny-mmada" / "README.md",
)


def table(columns: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def settings_of(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in row.get("settings", {}).items())


def measured() -> dict[str, Rows]:
    """What `make bench` found with each instruction set, the newest first."""
    found = {}
    for path in sorted((ROOT / "docs").glob("bench_*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found[path.stem.removeprefix("bench_")] = rows
    return dict(sorted(found.items(), key=lambda run: run[1][0]["date"], reverse=True))


def newest_whole(runs: dict[str, Rows]) -> Rows:
    """The rows of the newest run that has all that is drawn; a part of the benchmarks may have been run alone."""
    parts = "limit", "decode", "fit"
    return next(rows for rows in runs.values() if {*parts} <= {row["kind"] for row in rows})


def kernels(runs: dict[str, Rows]) -> str:
    """Every figure of an operator that has a bar: ratios with their intervals, and memory."""
    ratios = _side_by_side({isa: _ratios(rows, "kernels") for isa, rows in runs.items()}, _ratio_cell)
    body = [[what, *cells, f"{row['bar']:g}x"] for what, cells, row in ratios]
    peaks = {isa: [r for r in rows if r["kind"] == "memory" and r["mib"] is not None] for isa, rows in runs.items()}
    for what, cells, row in _side_by_side(peaks, lambda row: f"**{row['mib']:.1f} MiB**"):
        body.append([what, *cells, f"< {row['bar']:g} MiB"])
    return table(["measured", *runs, "bar"], body)


def decode(runs: dict[str, Rows]) -> str:
    """Whole decodes: every ratio, with its bar and what was decoded."""
    ratios = _side_by_side({isa: _ratios(rows, "decode") for isa, rows in runs.items()}, _ratio_cell)
    body = [[what, *cells, f"{row['bar']:g}x", row["note"]] for what, cells, row in ratios]
    return table(["measured", *runs, "bar", "decoded"], body)


def steps(rows: Rows) -> str:
    """Every decode of a row with a bar: its speed, its steps, where a step's time goes, its memory."""
    body = []
    for row in rows:
        if row["kind"] != "decode" or row["group"] == "sweep":
            continue
        parts = row["milliseconds"]
        split = [f"{parts[phase]:.2f}" if phase in parts else "" for phase in PHASES]
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.1f}"
        speed = [f"{row['tokens_per_second']:.1f}", f"{row['steps']:.1f}", f"{row['tokens_per_forward']:.2f}"]
        body.append([row["workload"], row["name"], *speed, f"{sum(parts.values()):.2f}", *split, peak])
    columns = ["decoded", "by", "tokens/s", "steps", "tokens a forward", "ms a step", *PHASES, "MiB a sequence"]
    return table(columns, body)


#: Formulations that a GPU's kernels are compared with; of several the fastest counts.
_INSTEAD = {
    "published / ours": ("published",),
    "best torch.compile / ours": ("torch.compile",),
    "best eager / ours": ("eager", "separate"),
}


def gpu(found: dict[str, Any]) -> str:
    """Each call on a GPU by its faster backend: its time, what that is of the limit, and what others take."""
    calls: dict[tuple[str, str], Rows] = {}
    for row in found["rows"]:
        if row["microseconds"]:
            calls.setdefault((row["operator"], row["case"]), []).append(row)
    body = []
    for (operator, case), rows in calls.items():
        best = min(rows, key=lambda row: row["microseconds"]["ours"]["median"])
        times = {name: timing["median"] for name, timing in best["microseconds"].items()}
        line = [
            f"`{operator}` {case}",
            f"{times['ours']:,.1f} ({best['backend']})",
            f"{best['of_roofline']:.0%}" if "of_roofline" in best else "",
        ]
        for starts in _INSTEAD.values():
            instead = [time for name, time in times.items() if name.startswith(starts)]
            line.append(_times(min(instead) / times["ours"]) if instead else "")
        body.append(line)
    return table([found["device"], "ours, µs", "of the roofline", *_INSTEAD], body)


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}x" if ratio >= 100 else f"{ratio:.3g}x"


def _ratios(rows: Rows, section: str) -> Rows:
    return [row for row in rows if row["kind"] == "ratio" and row["table"] == section]


def _side_by_side(
    runs: dict[str, Rows], cell: Callable[[dict[str, Any]], str]
) -> Iterator[tuple[str, list[str], dict[str, Any]]]:
    """What was measured, a cell for each run (empty where it was not), and the row of the newest run that has it."""
    found = {isa: {row["what"]: row for row in rows} for isa, rows in runs.items()}
    for what in dict.fromkeys(what for rows in found.values() for what in rows):
        own = [rows.get(what) for rows in found.values()]
        yield what, ["" if row is None else cell(row) for row in own], next(filter(None, own))


def _ratio_cell(row: dict[str, Any]) -> str:
    digits = 1 if row["ratio"] >= 10 else 2
    return f"**{row['ratio']:.{digits}f}x** [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def quality(figures: dict[str, Any]) -> str:
    """The decoders side by side, one row per family and decoder."""
    body = []
    for task in figures["tasks"].values():
        for row in task["rows"]:
            settings = settings_of(row)
            low, high = (100 * value for value in row["difference"][1:])
            body.append(
                [
                    task["title"],
                    row["decoder"] + (f" ({settings})" if settings else ""),
                    f"{percent(row['accuracy'])} [{percent(row['ci_low'])}, {percent(row['ci_high'])}]",
                    f"{low:+.1f} .. {high:+.1f}",
                    f"{row['mean_steps']:.2f}",
                    f"**{row['step_reduction']:.2f}x**",
                ]
            )
    columns = ["family", "decoder", "accuracy %", "against one token a step, points", "steps", "step reduction"]
    return table(columns, body)


def headline(figures: dict[str, Any]) -> str:
    """One line a family: WINO beside a plain confidence threshold and one token a step."""
    lines = []
    for task in figures["tasks"].values():
        rows = {row["decoder"]: row for row in task["rows"]}
        ours, plain, default = (rows[name] for name in ("wino", "confidence_threshold", "low_confidence"))
        lines.append(
            f"- {task['title']}: WINO solves {percent(ours['accuracy'])} % in {ours['mean_steps']:.1f} forward passes, "
            f"{ours['step_reduction']:.1f}x fewer than tokens in the answer; a plain confidence threshold solves "
            f"{percent(plain['accuracy'])} % in {plain['mean_steps']:.1f}, one token a step "
            f"{percent(default['accuracy'])} % in {default['mean_steps']:.0f}."
        )
    return "\n".join(lines)


def plus(rows: list[dict[str, Any]]) -> str:
    """Base and WINO+ side by side, one row per family, model and decoder."""
    body = []
    for row in rows:
        if row["role"] == "table":
            name = f"{row['model']} + {row['decoder']}"
            threshold = "" if row["threshold"] is None else f" {row['threshold']:g}"
            accuracy = f"{percent(row['accuracy'])} [{percent(row['ci_low'])}, {percent(row['ci_high'])}]"
            figures = [f"{row['mean_steps']:.2f}", f"{row['tokens_per_forward']:.1f}"]
            body.append([row["task"], name + threshold, accuracy, *figures])
    return table(["family", "model + decoder, threshold", "accuracy %", "steps", "tokens a forward"], body)


def pictures(figures: dict[str, Any]) -> str:
    """Captions and questions: the decoders side by side."""
    body = []
    for name, task in figures["tasks"].items():
        for row in task["rows"]:
            settings = settings_of(row)
            accuracy = f"{percent(row['accuracy'])} [{percent(row['ci_low'])}, {percent(row['ci_high'])}]"
            body.append(
                [
                    name,
                    row["decoder"] + (f" ({settings})" if settings else ""),
                    f"{row['cider']:.3f}" if "cider" in row else "",
                    accuracy,
                    f"{row['mean_steps']:.2f}",
                    f"**{row['step_reduction']:.2f}x**",
                ]
            )
    return table(["task", "decoder", "CIDEr", "exactly right %", "steps", "step reduction"], body)


def replace(document: str, name: str, text: str) -> str:
    pattern = re.compile(rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{text}\n{match[2]}", document)


def sections() -> dict[str, str]:
    """Name -> text of everything that was measured."""
    found: dict[str, str] = {}
    if runs := measured():
        found |= {"kernels": kernels(runs), "decode": decode(runs), "steps": steps(newest_whole(runs))}
    results = ROOT / "docs" / "quality.json"
    if results.exists():
        figures = json.loads(results.read_text())
        found |= {"quality": quality(figures), "headline": headline(figures)}
    trained = ROOT / "docs" / "wino_plus.json"
    if trained.exists():
        found["plus"] = plus(json.loads(trained.read_text()))
    seen = ROOT / "docs" / "pictures.json"
    if seen.exists():
        found["pictures"] = pictures(json.loads(seen.read_text()))
    if on_gpus := sorted((ROOT / "docs").glob("gpu_*.json")):
        found["gpu"] = "\n\n".join(gpu(json.loads(path.read_text())) for path in on_gpus)
    return found


def documents() -> dict[Path, str]:
    """Path -> the document with all its sections as measured."""
    found = sections()
    texts = {path: path.read_text(encoding="utf-8") for path in filter(Path.exists, DOCUMENTS)}
    for path in texts:
        for name, text in found.items():
            texts[path] = replace(texts[path], name, text)
    return texts


def main() -> None:
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
