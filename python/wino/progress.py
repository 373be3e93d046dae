"""How far long work has come, on stderr: a bar where a person looks, elsewhere a plain line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_A_LINE = 30.0
"""Between two plain lines. Shorter work prints none."""


class ProgressReport:
    """Progress of ``total`` pieces of work; a context manager.

    Args:
        description: what is being done, in a few words.
        total: how many pieces there are.
        done: how many of them an earlier run did.
        keep: whether the bar stays on the screen at the end.
    """

    def __init__(self, description: str, total: int, *, done: int = 0, keep: bool = False) -> None:
        self.description, self.total, self.done = description, total, done
        self.note = ""
        self._first, self._began = done, time.monotonic()
        self._printed = self._began
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            note = TextColumn("{task.fields[note]}")
            self._bar = Progress(*columns, note, console=Console(stderr=True), transient=not keep)
            self._task = self._bar.add_task(description, total=total, completed=done, note="")

    def advance(self, count: int = 1) -> None:
        """``count`` more pieces are done."""
        self.update(self.done + count)

    def update(self, done: int | None = None, note: str | None = None) -> None:
        """``done`` pieces are done altogether; ``note`` stands behind the bar from now on."""
        self.done = self.done if done is None else done
        self.note = self.note if note is None else note
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=self.note)
        elif time.monotonic() - self._printed >= SECONDS_A_LINE:
            self._printed = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        seconds = time.monotonic() - self._began
        line = f"{self.description}: {self.done} of {self.total}, {_duration(seconds)}"
        fresh = self.done - self._first
        if fresh > 0 and self.done < self.total:
            line += f", about {_duration(seconds / fresh * (self.total - self.done))} left"
        return f"{line}, {self.note}" if self.note else line

    def __enter__(self) -> ProgressReport:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
