"""What watches a training run: Ctrl-C, the progress line, the table of losses."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from ..files import write_atomically
from ..progress import ProgressReport

#: The loss's parts, each beside the name of the number of rows that it is a mean of.
COUNT_OF = {
    "cross_entropy": "targets",
    "unmask_entropy": "unmasked",
    "remask_entropy": "remasked",
    "llada": "samples",
}
PARTS = tuple(COUNT_OF)
_COLUMNS = ("step", "epoch", "loss", "learning_rate", "grad_norm", *PARTS, *COUNT_OF.values())


class StopAfterStep(TrainerCallback):
    """The first Ctrl-C ends training after the running step, with a checkpoint; a second one at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        try:
            previous = signal.signal(signal.SIGINT, self._ask)
        except ValueError:  # not the main thread
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if dist.is_initialized():  # all processes stop after the same step
            asked = torch.tensor(float(self.asked), device=args.device)
            dist.all_reduce(asked, dist.ReduceOp.MAX)
            self.asked = bool(asked)
        if self.asked:
            control.should_log = control.should_save = control.should_training_stop = True


class ProgressLine(TrainerCallback):
    """Steps done and the last logged loss, on stderr."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._report: ProgressReport | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.is_world_process_zero:
            self._report = ProgressReport(self._name, state.max_steps, done=state.global_step, keep=True)
            self._report.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self._report is not None:
            self._report.update(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **others: Any) -> None:
        if self._report is not None and logs and "loss" in logs:
            self._report.update(note=f"loss {logs['loss']:.4f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self._report is not None:
            self._report.__exit__(None, None, None)


class LossTable(TrainerCallback):
    """``loss.csv``: one line a log; lines past the checkpoint that a run resumes from are dropped."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.is_world_process_zero:
            kept = [line for line in self._lines() if int(line["step"]) <= state.global_step]
            text = io.StringIO()
            writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
            write_atomically(self._path, text.getvalue())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **others: Any) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            line = {name: _short(logs.get(name, "")) for name in _COLUMNS} | {"step": state.global_step}
            with open(self._path, "a", newline="") as file:
                csv.DictWriter(file, _COLUMNS, lineterminator="\n").writerow(line)

    def _lines(self) -> list[dict[str, str]]:
        if not self._path.exists():
            return []
        with open(self._path, newline="") as file:
            return [
                line for line in csv.DictReader(file) if (line["step"] or "").isdigit() and None not in line.values()
            ]


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) and math.isfinite(value) else value
