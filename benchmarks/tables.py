"""Write the measured figures into the documents that show them.

    python benchmarks/tables.py

Reads docs/bench.jsonl (from `make bench`) and docs/quality.json (from `make quality`) and replaces what stands between
`<!-- NAME: begin -->` and `<!-- NAME: end -->` in README.md and in the model card.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", ROOT / "python" / "wino" / "assets" / "wino-tiny" / "README.md")


def table(columns: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def kernels(rows: list[dict[str, Any]]) -> str:
    """Every ratio of the benchmark run, with its interval and its bar."""
    ratios = [row for row in rows if "ratio" in row]
    body = [
        [row["what"], f"**{row['ratio']:.1f}x**", f"{row['low']:.1f} - {row['high']:.1f}", f"{row['bar']:g}x"]
        for row in ratios
    ]
    return table(["measured", "ratio", "95 % interval", "bar"], body)


def quality(figures: dict[str, Any]) -> str:
    """The decoders side by side, one row per family and decoder."""
    body = []
    for task in figures["tasks"].values():
        for row in task["rows"]:
            settings = ", ".join(f"{name} {value}" for name, value in row["settings"].items())
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
    """One line a family: WINO beside one token a step."""
    lines = []
    for task in figures["tasks"].values():
        rows = {row["decoder"]: row for row in task["rows"]}
        ours, default = rows["wino"], rows["low_confidence"]
        lines.append(
            f"- {task['title']}: WINO solves {percent(ours['accuracy'])} % in {ours['mean_steps']:.1f} forward passes, "
            f"{ours['step_reduction']:.1f}x fewer than tokens in the answer; one token a step solves "
            f"{percent(default['accuracy'])} % in {default['mean_steps']:.0f}."
        )
    return "\n".join(lines)


def replace(document: str, name: str, text: str) -> str:
    pattern = re.compile(rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{text}\n{match[2]}", document)


def main() -> None:
    sections: dict[str, str] = {}
    bench, results = ROOT / "docs" / "bench.jsonl", ROOT / "docs" / "quality.json"
    if bench.exists():
        sections["kernels"] = kernels([json.loads(line) for line in bench.read_text().splitlines()])
    if results.exists():
        figures = json.loads(results.read_text())
        sections |= {"quality": quality(figures), "headline": headline(figures)}
    for path in DOCUMENTS:
        document = path.read_text()
        for name, text in sections.items():
            document = replace(document, name, text)
        path.write_text(document)


if __name__ == "__main__":
    main()
