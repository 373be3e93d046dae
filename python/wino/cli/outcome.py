"""What a measuring run leaves out, and which reports it may replace."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..files import locked
from ..foreign import read_json
from .errors import BadInputError, one_line

_LISTED = 100  # of the reasons, in a report
_TOLD = 3


class Skipped:
    """The rows that cannot be used: the first ends the run, unless ``--skip-invalid`` (``wanted``) goes on without it.

    It is what readers and checks call with each of them.
    """

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._reasons: list[str] = []

    def __call__(self, reason: str) -> None:
        if not self._wanted:
            raise BadInputError(f"{reason} (--skip-invalid goes on without such rows)")
        self._reasons.append(reason)

    def tell(self) -> None:
        """Count and first reasons on stderr, if there are any."""
        if self._reasons:
            print(self.summary(), file=sys.stderr)
            for reason in self._reasons[:_TOLD]:
                print(f"  {one_line(reason)}", file=sys.stderr)

    def summary(self) -> str:
        """Such as "2 rows were left out"."""
        return f"{len(self._reasons)} row{' was' if len(self._reasons) == 1 else 's were'} left out"

    def about(self) -> dict[str, Any]:
        """For a report: how many, and why."""
        return {"count": len(self._reasons), "reasons": self._reasons[:_LISTED]}

    def none_left(self, source: str) -> BadInputError:
        """What to raise where ``source`` has no row that can be used."""
        first = f" ({self.summary()}, the first: {self._reasons[0]})" if self._reasons else ""
        return BadInputError(f"{source}: no items in it{first}")


@contextmanager
def kept_report(path: Path | None) -> Iterator[None]:
    """Hold the report ``path`` (a file or a folder; None: there is none) against other processes."""
    if path is None:
        yield
        return
    with locked(path):
        yield


def check_replaces(path: Path, measured: Collection[str]) -> None:
    """Refuse to replace a report unless all that it holds is measured again: by the names of the measurements."""
    if not path.exists():
        return
    try:
        report = read_json(path)
        rows = report["rows"] if "rows" in report else report["results"]
        lost = [row for row in rows if row.get("measured") not in measured]
        names = [
            f"{row.get('model', report.get('model'))} + {row['decoder']}"
            + (f" at {row['threshold']:g}" if row.get("threshold") is not None else "")
            for row in lost
        ]
        tasks = [row.get("task", report.get("task")) for row in lost]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BadInputError(f"{path}: is there and is no report of wino eval; choose another output") from None
    if lost:
        raise BadInputError(
            f"{path}: holds {names[0]} on {tasks[0]}, of other weights, items or settings than this run measures; "
            "remove it or choose another output"
        )
