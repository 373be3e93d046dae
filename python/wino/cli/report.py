"""Figures of several decoders as one table: drawn on a terminal, aligned plain text elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from ..tasks.evaluation import Evaluation


def header(evaluations: Mapping[str, Evaluation]) -> tuple[str, ...]:
    """The columns; a task's own scores are among them."""
    scores = next(iter(evaluations.values())).scores
    return ("decoder", "acc %", "95 % CI", *scores, "steps", "reduction", "tok/fwd", "tok/s")


def legend(batch_size: int) -> str:
    """What the columns of :func:`header` mean."""
    return (
        "steps: mean forward passes an item; reduction: answer tokens / passes, all items together; "
        f"tok/fwd: its mean over items; tok/s: {batch_size} prompts at a time."
    )


def cells(label: str, evaluation: Evaluation) -> tuple[str, ...]:
    """One row of the table."""
    low, high = evaluation.accuracy_interval
    return (
        label,
        f"{100 * evaluation.accuracy:.1f}",
        f"{100 * low:.1f}-{100 * high:.1f}",
        *(f"{value:.3f}" for value in evaluation.scores.values()),
        f"{evaluation.mean_steps:.1f}",
        f"{evaluation.step_reduction:.2f}x",
        f"{evaluation.tokens_per_forward:.2f}",
        f"{evaluation.tokens_per_second:.0f}",
    )


_LEAST_NEEDED = ("tok/s", "95 % CI", "tok/fwd", "reduction")
"""Columns that a narrow terminal does without, the first of them first."""


def print_table(console: Console, evaluations: Mapping[str, Evaluation]) -> None:
    """Print the figures; what a narrow terminal has no room for is left out, and said."""
    columns, kept = header(evaluations), list(header(evaluations))
    rows = [cells(label, evaluation) for label, evaluation in evaluations.items()]
    widths = {column[0]: max(map(len, column)) for column in zip(columns, *rows, strict=True)}
    for name in _LEAST_NEEDED if console.is_terminal else ():
        if sum(widths[column] + 2 for column in kept) > console.width:
            kept.remove(name)
    chosen = [[row[columns.index(name)] for name in kept] for row in (columns, *rows)]
    print_rows(console, chosen, green=[label for label in evaluations if label.startswith("wino")])
    if len(kept) < len(columns):
        missing = ", ".join(name for name in columns if name not in kept)
        console.print(f"A wider terminal shows {missing} too.", style="dim")


def print_rows(console: Console, rows: Sequence[Sequence[str]], green: Sequence[str]) -> None:
    """Print a header and rows, those whose first cell is in ``green`` in that colour; plain text but on a terminal."""
    if not console.is_terminal:
        console.file.write(plain_table(rows))
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False, show_edge=False)
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if number else "left", no_wrap=number > 0, overflow="fold")
    for row in rows[1:]:
        table.add_row(*row, style="bold green" if row[0] in green else "")
    console.print(table)


def plain_table(rows: Sequence[Sequence[str]]) -> str:
    """``rows`` in aligned columns, the first of them to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join((first, *rest)))
    return "\n".join(lines) + "\n"
