"""Problem families with generators, graders and disjoint splits."""

from __future__ import annotations

from .base import SPLITS, Item, Task, split_of
from .countdown import Countdown
from .sudoku import Sudoku
from .sums import Sums

TASKS: dict[str, Task] = {task.name: task for task in (Sudoku(), Countdown(), Sums())}


def get_task(name: str) -> Task:
    """The task called ``name``. Raises ``ValueError`` naming those that exist."""
    if name not in TASKS:
        raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name]


__all__ = ["SPLITS", "TASKS", "Countdown", "Item", "Sudoku", "Sums", "Task", "get_task", "split_of"]
