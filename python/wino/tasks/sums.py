"""Long sums worked line by line: the long-answer family.

A question reads ``sum 34+08-15+27-61``, five two-digit numbers; the answer is the running total after each of them,
``034+08=042;042-15=027;027+27=054;054-61=...``: 43 characters, each line starting from the result of the line before.
No running total is negative.
"""

from __future__ import annotations

import random
import re
from typing import Any, ClassVar

from .base import Item, Task

TERMS = 5
_SUM = re.compile(rf"[0-9]{{2}}([+-][0-9]{{2}}){{{TERMS - 1}}}")


class Sums(Task):
    name = "sum"
    title = f"Sums of {TERMS} numbers, worked line by line"
    max_new_tokens = 11 * (TERMS - 1)
    columns: ClassVar[tuple[str, ...]] = ("input",)
    suffix = ".jsonl"

    def draw(self, rng: random.Random) -> Item:
        total = rng.randrange(100)
        text = f"{total:02}"
        for _ in range(TERMS - 1):
            number = rng.randrange(100)
            sign = "-" if number <= total and rng.random() < 0.5 else "+"
            total += number if sign == "+" else -number
            text += f"{sign}{number:02}"
        return _item(text)

    def grade(self, item: Item, text: str) -> bool:
        return text.strip() == item.answer

    def item(self, row: dict[str, Any]) -> Item:
        """Of a row such as ``{"input": "34+08-15+27-01"}``."""
        return _item(row["input"])


def worked(text: str) -> str:
    """The lines of the sum ``text``. Raises ``ValueError`` on another form or a negative running total."""
    if not isinstance(text, str) or not _SUM.fullmatch(text):
        raise ValueError(f"sum: expected {TERMS} two-digit numbers joined by + or -, got {text!r}")
    total, lines = int(text[:2]), []
    for sign, number in zip(text[2::3], (text[i : i + 2] for i in range(3, len(text), 3)), strict=True):
        result = total + int(number) if sign == "+" else total - int(number)
        if result < 0:
            raise ValueError(f"sum: the running total must not be negative, got {result} in {text!r}")
        lines.append(f"{total:03}{sign}{number}={result:03}")
        total = result
    return ";".join(lines)


def _item(text: str) -> Item:
    return Item(key=f"sum:{text}", prompt=f"sum {text}", answer=worked(text))
