"""Anybody's questions and answers: a file with a column of each, graded by equal text."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from . import answers
from .base import Item
from .text import TextTask

QUESTIONS = ("question", "prompt", "problem", "input", "query", "instruction")
ANSWERS = ("answer", "answers", "target", "output", "label", "solution", "reference", "response")
_SAID = re.compile(r"\banswer(?:\s+is\b\s?:?|\s?[:=])", re.IGNORECASE)
_AROUND = " \t\n*_`$\"'\u201c\u201d\u2018\u2019.,;:!?"


class Exact(TextTask):
    """Question and answer columns of any file.

    The reply's answer is what stands in its last box, else in its last ``<answer>``, else behind "answer is" or
    "answer:" in its last line that is not empty, else that line. It is right if it equals the column's answer (one of
    them, if that is a list), or if the whole reply does: as Unicode NFKC, without regard to case, runs of white space
    and stops, quotes and markup around it (``\\text{}`` included).
    """

    name, title, threshold = "exact", "questions and answers of a file, by equal text", 0.6
    _question: str | None = None
    _answer: str | None = None

    def ask(
        self, *, prompt_style: str = "own", question_column: str | None = None, answer_column: str | None = None
    ) -> None:
        super().ask(prompt_style=prompt_style)
        self._question, self._answer = question_column, answer_column

    def item(self, row: dict[str, Any]) -> Item:
        question = _column(row, "question", self._question, QUESTIONS)
        wanted = _column(row, "answer", self._answer, ANSWERS)
        several = [str(one) for one in wanted] if isinstance(wanted, list) else [str(wanted)]
        if not isinstance(question, str) or not all(normalised(one) for one in several) or not several:
            raise ValueError(f"expected a question and an answer as text, got {question!r} and {wanted!r}"[:200])
        return self._item(question, several[0], answers=several)

    def grade(self, item: Item, text: str) -> bool:
        said = {normalised(reply_of(text)), normalised(text)}
        return any(normalised(wanted) in said for wanted in item.metadata["answers"])


def reply_of(text: str) -> str:
    """The part of a reply that is its answer."""
    inside = answers.boxed(text)
    if inside is None:
        inside = answers.tagged(text)
    if inside is not None:
        return inside
    *_, line = ["", *(line for line in text[-answers.LONGEST :].splitlines() if line.strip())]
    return _SAID.split(line)[-1]


def normalised(text: str) -> str:
    """Text as it is compared."""
    plain = unicodedata.normalize("NFKC", answers.unwrapped(text[: answers.LONGEST])).casefold()
    stripped = plain.strip(_AROUND)
    if stripped[:1].isdecimal() and plain[: plain.find(stripped)].endswith("."):
        stripped = f".{stripped}"  # a decimal's point
    return " ".join(stripped.split())


def _column(row: dict[str, Any], what: str, named: str | None, usual: tuple[str, ...]) -> Any:
    found = next((name for name in ((named,) if named else usual) if name in row), None)
    if found is None:
        wanted = f"the column {named}" if named else f"one of the columns {', '.join(usual)}"
        have = ", ".join(map(str, row)) or "none"
        raise ValueError(f"{what}: expected {wanted} (--{what}-column names another), got {have}")
    if row[found] is None:
        raise ValueError(f"column {found}: expected a value, got null")
    return row[found]
