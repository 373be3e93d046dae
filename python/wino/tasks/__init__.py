"""Problem families with generators, graders and disjoint splits."""

from __future__ import annotations

from .base import SPLITS, Item, Task, split_of
from .countdown import Countdown
from .exact import Exact
from .scenes import Captions, PictureTask, Questions
from .sudoku import Sudoku
from .sums import Sums
from .text import TEXT_TASKS, TextTask
from .visual import VISUAL_TASKS, VisualTask

TASKS: dict[str, Task] = {task.name: task for task in (Sudoku(), Countdown(), Sums())}


#: Tasks of a MMaDA: every item has a picture.
PICTURE_TASKS: dict[str, PictureTask] = {task.name: task for task in (Captions(), Questions())}

#: Names of the tasks of real checkpoints, whose items come from files.
TEXT_TASK_NAMES = tuple(task.name for task in TEXT_TASKS)

#: The same of a MMaDA.
VISUAL_TASK_NAMES = tuple(task.name for task in VISUAL_TASKS)


def get_task(name: str) -> Task:
    """The task called ``name``. Raises ``ValueError`` naming those that exist."""
    known: dict[str, Task] = {**TASKS, **PICTURE_TASKS}
    if name in known:
        return known[name]
    of_files: tuple[type[TextTask], ...] = (*TEXT_TASKS, Exact, *VISUAL_TASKS)
    for task in of_files:
        if task.name == name:
            return task()
    names = ", ".join((*known, *TEXT_TASK_NAMES, Exact.name, *VISUAL_TASK_NAMES))
    raise ValueError(f"task: expected one of {names}, got {name!r}")


__all__ = [
    "PICTURE_TASKS",
    "SPLITS",
    "TASKS",
    "TEXT_TASK_NAMES",
    "VISUAL_TASK_NAMES",
    "Countdown",
    "Exact",
    "Item",
    "PictureTask",
    "Sudoku",
    "Sums",
    "Task",
    "TextTask",
    "VisualTask",
    "get_task",
    "split_of",
]
