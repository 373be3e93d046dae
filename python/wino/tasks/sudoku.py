"""4x4 Sudoku: the 16 cells row by row, 0 = empty; graded by validity, since a puzzle may have several solutions."""

from __future__ import annotations

import itertools
import random
from functools import cache
from typing import Any, ClassVar

from .base import Item, Task

_BLANKS = range(8, 13)
_UNITS = tuple(
    [tuple(range(4 * r, 4 * r + 4)) for r in range(4)]
    + [tuple(range(c, 16, 4)) for c in range(4)]
    + [(b, b + 1, b + 4, b + 5) for b in (0, 2, 8, 10)]
)


def is_valid_grid(grid: str) -> bool:
    """Whether ``grid`` holds 1 to 4 once in every row, column and 2x2 box."""
    return len(grid) == 16 and all({grid[i] for i in unit} == set("1234") for unit in _UNITS)


@cache
def solved_grids() -> tuple[str, ...]:
    """All 288 complete grids."""
    rows = ["".join(p) for p in itertools.permutations("1234")]
    return tuple(grid for choice in itertools.product(rows, repeat=4) if is_valid_grid(grid := "".join(choice)))


class Sudoku(Task):
    name = "sudoku"
    title = "4x4 Sudoku, 8 to 12 empty cells"
    max_new_tokens = 20
    columns: ClassVar[tuple[str, ...]] = ("Puzzle", "Solution")
    suffix = ".csv"

    def __init__(self, blanks: range = _BLANKS) -> None:
        self.blanks = blanks

    def draw(self, rng: random.Random) -> Item:
        solution = rng.choice(solved_grids())
        empty = set(rng.sample(range(16), rng.choice(self.blanks)))
        return _item("".join("0" if i in empty else c for i, c in enumerate(solution)), solution)

    def grade(self, item: Item, text: str) -> bool:
        return solves(text.strip(), item.key.partition(":")[2])

    def item(self, row: dict[str, Any]) -> Item:
        """Of a row with the columns ``Puzzle`` and ``Solution``."""
        return _item(*puzzle_of(row))


def puzzle_of(row: dict[str, Any]) -> tuple[str, str]:
    """Puzzle and solution of a row. Raises ``ValueError`` if they are not sixteen digits each, or not of each other."""
    puzzle, solution = (str(row[name]).zfill(16) for name in ("Puzzle", "Solution"))
    if len(puzzle) != 16 or not set(puzzle) <= set("01234") or not solves(solution, puzzle):
        raise ValueError(f"expected a 16-digit puzzle and its solution, got {puzzle[:80]} and {solution[:80]}")
    return puzzle, solution


def solves(grid: str, puzzle: str) -> bool:
    """Whether ``grid`` is complete, valid and keeps the cells that ``puzzle`` gives."""
    return is_valid_grid(grid) and all(given in ("0", cell) for given, cell in zip(puzzle, grid, strict=True))


def _item(puzzle: str, solution: str) -> Item:
    return Item(key=f"sudoku:{puzzle}", prompt=f"sudoku {puzzle}", answer=solution)
