"""Draw what was measured.

    python benchmarks/plots.py

Reads the newest whole docs/bench_ISA.jsonl (from `make bench`) and writes docs/bench_roofline.png,
docs/bench_step.png and docs/bench_scaling.png.
"""

from __future__ import annotations

import math
import statistics
from itertools import cycle
from pathlib import Path
from typing import Any

from tables import ROOT, measured, newest_whole

from wino.benchmark.timing import PHASES

Row = dict[str, Any]
DOCS = ROOT / "docs"
# Okabe and Ito's colours, told apart by nearly everyone, and three of Tol's.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000", "#882255", "#999933",
    "#44AA99",
)  # fmt: skip
PHASE_COLOURS = dict(zip((*PHASES, "step"), ("#0072B2", "#E69F00", "#009E73", "#BBBBBB", "#7F7F7F"), strict=True))
MODE_COLOURS = {"published": "#D55E00", "exact": "#0072B2", "prefix": "#E69F00", "dual": "#009E73"}


def kind(rows: list[Row], name: str) -> list[Row]:
    return [row for row in rows if row["kind"] == name]


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10}
    pyplot.rcParams.update(style)
    return pyplot


def roofline(rows: list[Row], path: Path) -> None:
    """Operations a second against operations a byte: ours, and the slowest way to the same, under measured limits."""
    pyplot = _pyplot()
    limits = kind(rows, "limit")
    bandwidth = statistics.median(row["bytes_s"] for row in limits)
    peak = statistics.median(row["operations_s"] for row in limits)
    figure, axis = pyplot.subplots(figsize=(7.5, 5), constrained_layout=True)
    timed = [row for row in kind(rows, "time") if "operator" in row]
    intensities = [row["operations"] / row["bytes"] for row in timed]
    # The last shape of each operator stands for it.
    shapes = {row["operator"]: row["label"] for row in timed}
    for colour, (operator, label) in zip(cycle(COLOURS), shapes.items(), strict=False):
        points = {row["contender"]: row for row in timed if row["label"] == label}
        intensity = points["ours"]["operations"] / points["ours"]["bytes"]
        reached = {name: row["operations"] / row["ms"] / 1e6 for name, row in points.items()}  # 10^9 a second
        ours, worst = reached["ours"], min(reached.values())
        axis.plot([intensity] * 2, [worst, ours], color=colour, linewidth=0.8, alpha=0.6, zorder=1)
        axis.plot(intensity, worst, "o", color=colour, markerfacecolor="white", markersize=6)
        axis.plot(intensity, ours, "o", color=colour, markersize=7, label=operator)
    ends = 0.5 * min(intensities), 6 * max(intensities)
    ridge = min(max(peak / bandwidth, ends[0]), ends[1])
    axis.plot(
        (ends[0], ridge, ends[1]),
        [min(x * bandwidth, peak) / 1e9 for x in (ends[0], ridge, ends[1])],
        color="black",
        linewidth=1,
    )
    axis.set(xscale="log", yscale="log", xlim=ends)
    axis.set(xlabel="operations a byte that has to be moved", ylabel="10$^9$ operations a second")
    (isa,) = {row["isa"] for row in kind(rows, "machine")}
    axis.set_title(f"Operators under the limits measured beside them ({isa})", loc="left")
    axis.plot([], [], "o", color="black", markerfacecolor="white", label="hollow: the slowest alternative")
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    axis.grid(which="major", alpha=0.25)
    right = {"textcoords": "offset points", "ha": "right", "fontsize": 8}
    axis.annotate(f"matrix product: {peak / 1e9:.0f}", (ends[1], peak / 1e9), (-4, 4), **right)
    figure.canvas.draw()  # from here on the slope of the limit on paper is known
    corners = axis.transData.transform([(ends[0], ends[0] * bandwidth), (ridge, ridge * bandwidth)])
    slope = math.degrees(math.atan2(*(corners[1] - corners[0])[::-1]))
    axis.text(
        1.15 * ends[0], 1.3 * ends[0] * bandwidth / 1e9, f"reading memory: {bandwidth / 1e9:.0f} GB/s",
        rotation=slope, rotation_mode="anchor", fontsize=8,
    )  # fmt: skip
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def step(rows: list[Row], path: Path) -> None:
    """Where the time of one decoding step goes, published and ours, one panel a workload."""
    pyplot = _pyplot()
    decodes = [row for row in kind(rows, "decode") if row["group"] != "sweep"]
    workloads = list(dict.fromkeys(row["workload"] for row in decodes))
    bars = [[row for row in decodes if row["workload"] == workload] for workload in workloads]
    figure, axes = pyplot.subplots(
        len(workloads),
        1,
        figsize=(8, 0.75 * len(workloads) + 0.36 * len(decodes)),
        height_ratios=[len(group) for group in bars],
        constrained_layout=True,
        squeeze=False,
    )
    for axis, workload, group in zip(axes[:, 0], workloads, bars, strict=True):
        totals = [_per_sequence(row) for row in group]
        for place, (row, total) in enumerate(zip(group, totals, strict=True)):
            share, left = total / sum(row["milliseconds"].values()), 0.0
            for phase, value in row["milliseconds"].items():
                axis.barh(place, share * value, left=left, height=0.62, color=PHASE_COLOURS[phase])
                left += share * value
            number = f"{total:.1f}" if total < 100 else f"{total:,.0f}"
            faster = f"  ({totals[0] / total:.1f}x)" if place else ""
            axis.text(total + 0.01 * max(totals), place, f"{number} ms{faster}", va="center", fontsize=8)
        axis.set_yticks(range(len(group)), [row["name"] for row in group])
        axis.set_xlim(0, 1.18 * max(totals))
        axis.set_title(workload, loc="left", fontsize=9)
        axis.invert_yaxis()
        axis.tick_params(axis="y", length=0)
    axes[-1, 0].set_xlabel("ms a forward pass and sequence")
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=PHASE_COLOURS[phase]) for phase in PHASES]
    figure.legend(handles, PHASES, loc="outside upper right", ncols=len(PHASES), frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def scaling(rows: list[Row], path: Path) -> None:
    """Time of a forward pass against vocabulary, block, prompt and batch."""
    pyplot = _pyplot()
    sweeps = [row for row in kind(rows, "decode") if row["group"] == "sweep"]
    fits = {row["axis"]: row for row in kind(rows, "fit")}
    panels = {
        "V": "vocabulary V (thousands)",
        "K": "block length K",
        "P": "prompt length P",
        "B": "batch",
    }
    figure, axes = pyplot.subplots(2, 2, figsize=(8.5, 6), constrained_layout=True)
    for axis, (name, label) in zip(axes.flat, panels.items(), strict=True):
        unit = 1000 if name == "V" else 1
        points = [row for row in sweeps if row["axis"] == name]
        for mode in dict.fromkeys(row["name"] for row in points):
            chosen = sorted((row["value"], _per_sequence(row)) for row in points if row["name"] == mode)
            axis.plot(
                [x / unit for x, _ in chosen], [y for _, y in chosen], "o-", color=MODE_COLOURS.get(mode), label=mode,
                markersize=4, linewidth=1.2,
            )  # fmt: skip
        if name in fits:
            axis.set_title(f"exact: a straight line with R² = {fits[name]['r2']:.4f}", loc="left", fontsize=9)
        axis.set(xlabel=label, ylim=(0, None))
        axis.set_xlim(0, None)
        axis.grid(alpha=0.25)
        if points:
            axis.legend(fontsize=8, frameon=False)
    for axis in axes[:, 0]:
        axis.set_ylabel("ms a forward pass and sequence")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _per_sequence(row: Row) -> float:
    """Milliseconds; the published loop takes one sequence at a time anyway."""
    # Of a batch those that are still decoded: a finished sequence leaves. The published loop takes one at a time.
    together = 1 if row["name"] == "published" else row["sequences"] * row["steps"] / row["forwards"]
    return sum(row["milliseconds"].values()) / together


def main() -> None:
    rows = newest_whole(measured())
    roofline(rows, DOCS / "bench_roofline.png")
    step(rows, DOCS / "bench_step.png")
    scaling(rows, DOCS / "bench_scaling.png")


if __name__ == "__main__":
    main()
