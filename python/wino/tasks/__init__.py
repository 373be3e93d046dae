"""Problem families with generators, graders and disjoint splits."""

from __future__ import annotations

from .base import SPLITS, Item, Task, split_of
from .countdown import Countdown
from .sudoku import Sudoku
from .sums import Sums
from .text import TEXT_TASKS, TextTask

TASKS: dict[str, Task] = {task.name: task for task in (Sudoku(), Countdown(), Sums())}


#: Names of the tasks of real checkpoints, whose items come from files.
TEXT_TASK_NAMES = tuple(task.name for task in TEXT_TASKS)


def get_task(name: str) -> Task:
    """The task called ``name``. Raises ``ValueError`` naming those that exist."""
    if name in TASKS:
        return TASKS[name]
    for task in TEXT_TASKS:
        if task.name == name:
            return task()
    raise ValueError(f"task: expected one of {', '.join((*TASKS, *TEXT_TASK_NAMES))}, got {name!r}")


__all__ = [
    "SPLITS",
    "TASKS",
    "TEXT_TASK_NAMES",
    "Countdown",
    "Item",
    "Sudoku",
    "Sums",
    "Task",
    "TextTask",
    "get_task",
    "split_of",
]
