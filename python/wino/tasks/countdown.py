"""Countdown with three numbers from 1 to 100: reach the target with each number once, by plus and minus.

A question reads ``countdown 030,093,100:023`` (numbers ascending, then the target), an answer
``093+030=123;123-100=023``: two sums of three-digit numbers, the second starting from the first one's result.
"""

from __future__ import annotations

import random
import re
from typing import Any, ClassVar

from .base import Item, Task

_STEP = re.compile(r"([0-9]{1,4})([+-])([0-9]{1,4})=([0-9]{1,4})")


class Countdown(Task):
    name = "countdown"
    title = "Countdown, three numbers, plus and minus"
    max_new_tokens = 24
    columns: ClassVar[tuple[str, ...]] = ("input", "output")
    suffix = ".jsonl"

    def draw(self, rng: random.Random) -> Item:
        while True:
            numbers = sorted(rng.sample(range(1, 101), 3))
            targets = sorted(t for t in solutions(numbers) if 1 <= t <= 100)
            if targets:
                return _item(numbers, rng.choice(targets))

    def grade(self, item: Item, text: str) -> bool:
        wanted, _, target = item.key.partition(":")[2].partition("=")
        steps = [_STEP.fullmatch(part) for part in text.strip().split(";")]
        if len(steps) != 2 or steps[0] is None or steps[1] is None:
            return False
        operands: list[list[int]] = []
        for match in (steps[0], steps[1]):
            left, right, result = (int(match[i]) for i in (1, 3, 4))
            if (left + right if match[2] == "+" else left - right) != result:
                return False
            operands.append([left, right])
        first, second = operands
        middle = int(steps[0][4])
        if middle not in second:
            return False
        second.remove(middle)
        return sorted(first + second) == [int(n) for n in wanted.split(",")] and int(steps[1][4]) == int(target)

    def item(self, row: dict[str, Any]) -> Item:
        """Of a row such as ``{"input": "30,100,93", "output": "23"}``; one beyond plus and minus has no answer."""
        try:
            numbers, target = sorted(int(n) for n in row["input"].split(",")), int(str(row["output"]))
        except (ValueError, TypeError, AttributeError):
            raise ValueError(f'expected {{"input": "30,100,93", "output": "23"}}, got {str(row)[:80]}') from None
        if len(numbers) != 3 or not all(0 <= n <= 999 for n in (*numbers, target)):
            raise ValueError(f"expected three numbers and a target from 0 to 999, got {str(row)[:80]}")
        return _item(numbers, target)


def solutions(numbers: list[int]) -> dict[int, str]:
    """Target -> the canonical answer, for every target that three ascending ``numbers`` reach by plus and minus."""
    a, b, c = numbers
    found: dict[int, str] = {}
    for first, sign, second, last_sign, third in (
        (c, "+", b, "+", a),
        (c, "+", b, "-", a),
        (c, "+", a, "-", b),
        (b, "+", a, "-", c),
        (c, "-", b, "-", a),
    ):
        middle = first + second if sign == "+" else first - second
        target = middle + third if last_sign == "+" else middle - third
        if target >= 0:
            found.setdefault(
                target, f"{first:03}{sign}{second:03}={middle:03};{middle:03}{last_sign}{third:03}={target:03}"
            )
    return found


def _item(numbers: list[int], target: int) -> Item:
    return Item(
        key=f"countdown:{','.join(map(str, numbers))}={target}",
        prompt=f"countdown {','.join(f'{n:03}' for n in numbers)}:{target:03}",
        answer=solutions(numbers).get(target, ""),
    )
