"""``wino trajectories``: filter, merge and look at collected records."""

from __future__ import annotations

import sys
from collections import Counter
from itertools import chain, islice
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from ..files import locked
from ..plus.records import Trajectory, filter_best, merge_files, read_trajectories, write_trajectories
from .errors import BadInputError
from .session import check_writable, status

_BAR = 40
_HIDDEN = "·"


def run_filter(source: Path, out: Path, **choice: Any) -> None:
    """Keep the records that ``choice`` (see :func:`filter_best`) names, the easy ones first."""
    check_writable(out)
    if out.exists() and out.samefile(source):
        raise BadInputError(f"{out}: expected another file than the one that is read")
    best = filter_best(source, **choice)
    first = next(best, None)
    if first is None:
        print(f"wino: {source}: no record is left, so {out} is not written", file=sys.stderr)
        raise typer.Exit(1)
    with locked(out):
        kept = write_trajectories(out, chain([first], best))
    print(f"{out}: {kept} records, the easy ones first")


def run_merge(sources: list[Path], out: Path) -> None:
    check_writable(out)
    with locked(out):
        kept = write_trajectories(out, merge_files(sources))
    print(f"{out}: {kept} records of {len(sources)} files")


def run_stats(source: Path) -> None:
    """Counts, and when answers' tokens were accepted, as a histogram."""
    total = correct = steps = tokens = 0
    temperatures: Counter[float] = Counter()
    accepted: Counter[int] = Counter()
    for record in read_trajectories(source):
        total, correct = total + 1, correct + record.correct
        steps += record.decoding_steps
        tokens += sum(step >= 0 for step in record.trajectory_accepted)
        temperatures[record.used_temperature] += record.correct
        accepted.update(step for step in record.trajectory_accepted if step >= 0)
    if not total:
        raise BadInputError(f"{source}: no records in it")
    print(f"{source}: {total} records, {correct} correct ({correct / total:.1%})")
    print(f"steps: {steps / total:.2f} a record, {tokens / steps:.2f} tokens a step")
    print("correct at temperature: " + ", ".join(f"{t:g}: {n}" for t, n in sorted(temperatures.items()) if n))
    print("tokens accepted at step:")
    most = max(accepted.values(), default=1)
    for step in sorted(accepted):
        count = accepted[step]
        print(f"{step:>5} {'#' * round(_BAR * count / most):<{_BAR}} {count:>8}  {count / tokens:6.1%}")


def run_show(source: Path, unique_id: str | None, index: int, model: str | None) -> None:
    """One record, a line a step: what was accepted, what was still masked."""
    record = _find(source, unique_id, index)
    tokenizer = _tokenizer(model or record.metadata.get("model"))
    console = Console(highlight=False)
    verdict = "correct" if record.correct else "wrong"
    console.print(
        f"{record.unique_id}  {verdict}, {record.decoding_steps} steps, temperature {record.used_temperature:g}",
        markup=False,
    )
    pieces = [tokenizer.decode([token]) or "?" for token in record.generated_ids]
    for step in sorted(set(record.trajectory_accepted)):
        if step >= 0 or step == min(record.trajectory_accepted):
            console.print(_line(record, pieces, step))


def _line(record: Trajectory, pieces: list[str], step: int) -> Text:
    now = sum(at == step for at in record.trajectory_accepted)
    line = Text("given   " if step < 0 else f"{step:>3} {f'+{now}':>4}")
    line.append(" ")
    for piece, at in zip(pieces, record.trajectory_accepted, strict=True):
        shown = piece.replace("\n", "\\n")
        if at > step:
            line.append(_HIDDEN * len(shown), style="dim")
        else:
            line.append(shown, style="bold green" if at == step else "")
    return line


def _find(source: Path, unique_id: str | None, index: int) -> Trajectory:
    records = read_trajectories(source)
    if unique_id is None:
        found = next(islice(records, index, None), None) if index >= 0 else None
        wanted = f"index {index}"
    else:
        found = next((record for record in records if record.unique_id == unique_id), None)
        wanted = f"unique_id {unique_id!r}"
    if found is None:
        raise BadInputError(f"{source}: no record with {wanted}")
    return found


def _tokenizer(model: str | None) -> Any:
    if model is None:
        raise BadInputError("the record names no model: say whose tokenizer it is with --model")
    with status(f"loading the tokenizer of {model} ..."):
        from ..models.loading import checkpoint_folder, read_tokenizer

        return read_tokenizer(checkpoint_folder(model))
