"""Figures of several decoders as one table: drawn on a terminal, aligned plain text elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
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


def print_table(console: Console, evaluations: Mapping[str, Evaluation]) -> None:
    """Print the figures; without box drawing or colour unless ``console`` is a terminal."""
    rows = [cells(label, evaluation) for label, evaluation in evaluations.items()]
    columns = header(evaluations)
    if not console.is_terminal:
        console.file.write(plain_table([columns, *rows]))
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False, show_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name == "decoder" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row, style="bold green" if row[0].startswith("wino") else "")
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


@contextmanager
def progress(total: int, description: str) -> Iterator[Callable[..., None]]:
    """A bar on stderr while a person waits; yields ``advance(count)``."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)
