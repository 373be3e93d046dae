"""The six multimodal tasks of the WINO papers and IconQA, for real MMaDA checkpoints: items come from published files.

Prompts ask for the answer in the form the graders read (docs/tasks.md). Settings are the papers': 256 tokens in blocks
of 128 (64 in blocks of 64 for a caption), WINO thresholds 0.5 and 0.9 to take back.
"""

from __future__ import annotations

import ast
import base64
import binascii
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from . import answers
from .base import Item
from .cider import cider
from .mathematics import check_installed, same_mathematics
from .text import TextTask

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CHOOSE = "Answer with the letter of the option in \\boxed{}."
_REASON = "Solve it step by step. Wrap the final answer in a \\boxed{}."
_MARK = re.compile(r"<image ?(\d*)>")


class VisualTask(TextTask):
    """A task whose rows have pictures: bytes as Parquet holds them, base64, or file names beside the data file."""

    threshold = 0.5
    has_pictures = True
    fit: ClassVar[Literal["crop", "squash"]] = "squash"  # as MMaDA takes diagrams
    aliases: ClassVar[dict[str, str]] = {"decoded_image": "image"}
    _folder = Path()

    def read(self, path: Path, on_invalid: Callable[[str], None] | None = None) -> Iterator[Item]:
        self._folder = path.parent
        return super().read(path, on_invalid)

    def picture(self, item: Item) -> list[Any]:
        """What :func:`wino.multimodal.open_image` opens, one for each picture of the item."""
        return [_file(p, item.where or item.key) if isinstance(p, bytes) else p for p in item.metadata["pictures"]]

    def _pictures(self, *found: Any) -> dict[str, Any]:
        return {"pictures": [self._source(value) for value in found]}

    def _source(self, value: Any) -> Any:
        if isinstance(value, dict):  # how data sets store an image
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            file = self._folder / value
            if len(value) < 1024 and file.is_file():
                return file
            try:
                value = base64.b64decode(value.partition(",")[2] if value.startswith("data:") else value, validate=True)
            except (binascii.Error, ValueError):
                raise ValueError(f"image: expected base64 or a file beside the data, no {file}") from None
        if isinstance(value, bytes | bytearray) and value:
            return bytes(value)
        if hasattr(value, "getbands"):  # a Pillow image, as the hub's reader gives it
            return value
        raise ValueError(f"image: expected bytes, base64, a file name or a picture, got {type(value).__name__}")


class Flickr30k(VisualTask):
    name, title, fit = "flickr30k", "Flickr30K, captions of photographs", "crop"
    plus_threshold = 0.7
    max_new_tokens = 64
    columns = ("image", "caption")

    def __init__(self) -> None:
        super().__init__()
        self.presets = {decoder: {**settings, "block_length": 64} for decoder, settings in self.presets.items()}

    def item(self, row: dict[str, Any]) -> Item:
        references = row["caption"] if isinstance(row["caption"], list) else [row["caption"]]
        if not references or not all(isinstance(text, str) and text.strip() for text in references):
            raise ValueError(f"caption: expected one or more texts, got {row['caption']!r}")
        prompt = "Provide a one-sentence caption for the provided image."
        return self._item(prompt, references[0], references=references, **self._pictures(row["image"]))

    def grade(self, item: Item, text: str) -> bool:
        """Whether it is one of the references, letter case and stops aside; CIDEr is the figure to read."""
        return answers.plain(text) in {answers.plain(reference) for reference in item.metadata["references"]}

    def scores(self, items: Sequence[Item], texts: Sequence[str]) -> dict[str, float]:
        """CIDEr."""
        return {"cider": cider(texts, [item.metadata["references"] for item in items])[0]}


class _Choice(VisualTask):
    """Options under letters."""

    def _choose(self, question: str, options: Sequence[str], answer: str, pictures: Sequence[Any]) -> Item:
        labels = list(_LETTERS[: len(options)])
        if answer not in labels:
            raise ValueError(f"answer: expected one of {', '.join(labels) or 'some options'}, got {answer!r}")
        listed = "\n".join(f"{label}. {option}" for label, option in zip(labels, options, strict=True))
        texts = [str(option) for option in options]
        prompt = f"{question}\n{listed}\n{_CHOOSE}"
        return self._item(prompt, answer, labels=labels, options=texts, **self._pictures(*pictures))

    def grade(self, item: Item, text: str) -> bool:
        return answers.letter(text, item.metadata["labels"], item.metadata["options"]) == item.answer


class Ai2d(_Choice):
    name, title = "ai2d", "AI2D, questions about diagrams"
    plus_threshold = 0.7
    columns = ("image", "question", "options", "answer")

    def item(self, row: dict[str, Any]) -> Item:
        options, answer = _listed(row["options"]), str(row["answer"])
        letter = _LETTERS[int(answer)] if answer.isdecimal() and int(answer) < len(options) else answer
        return self._choose(str(row["question"]), options, letter, [row["image"]])


class ScienceQa(_Choice):
    name, title = "scienceqa-img", "ScienceQA, questions with a picture"
    plus_threshold = 0.6
    columns = ("image", "question", "choices", "answer")

    def item(self, row: dict[str, Any]) -> Item:
        options = _listed(row["choices"])
        if not 0 <= int(row["answer"]) < len(options):
            raise ValueError(f"answer: expected the number of one of {len(options)} choices, got {row['answer']!r}")
        hint = str(row.get("hint") or "").strip()
        question = f"{hint}\n{row['question']}" if hint else str(row["question"])
        return self._choose(question, options, _LETTERS[int(row["answer"])], [row["image"]])


class _ChoiceOrAnswer(_Choice):
    """Options under letters, or a free answer."""

    def __init__(self) -> None:
        super().__init__()
        check_installed()

    def _ask(self, question: str, answer: str, pictures: Sequence[Any], **metadata: Any) -> Item:
        prompt = f"{question}\n{_REASON}"
        return self._item(prompt, answer, labels=[], **metadata, **self._pictures(*pictures))

    def grade(self, item: Item, text: str) -> bool:
        if item.metadata["labels"]:
            return super().grade(item, text)
        given = answers.boxed(text) or answers.tagged(text) or text
        return any(_same(given, wanted, item.metadata.get("digits")) for wanted in _accepted(item.answer))


class MathVision(_ChoiceOrAnswer):
    name, title = "math-vision", "MATH-Vision, competition mathematics with figures"
    plus_threshold = 0.7
    columns = ("image", "question", "options", "answer")

    def item(self, row: dict[str, Any]) -> Item:
        question, options = _MARK.sub("", str(row["question"])).strip(), _listed(row["options"])
        answer = str(row["answer"])
        if options and options != list(_LETTERS[: len(options)]):
            return self._choose(question, options, answer, [row["image"]])
        if options:  # they stand in the figure
            item = self._choose(question, options, answer, [row["image"]])
            return replace(item, prompt=f"{question}\n{_CHOOSE}")
        return self._ask(question, answer, [row["image"]])


class MathVista(_ChoiceOrAnswer):
    name, title = "mathvista-mini", "MathVista testmini, mathematics in pictures"
    plus_threshold = 0.5
    columns = ("image", "question", "answer", "question_type")

    def item(self, row: dict[str, Any]) -> Item:
        question, answer = str(row["question"]), str(row["answer"])
        if row["question_type"] == "multi_choice":
            options = _listed(row["choices"])
            letter = _LETTERS[options.index(answer)] if answer in options else answer
            return self._choose(question, options, letter, [row["image"]])
        if row.get("unit"):
            question += f" (Unit: {row['unit']})"
        digits = None if row.get("precision") in (None, "") else int(float(row["precision"]))
        return self._ask(question, answer, [row["image"]], digits=digits)


class Mmmu(_ChoiceOrAnswer):
    name, title = "mmmu-val", "MMMU validation, college questions with up to seven pictures"
    plus_threshold = 0.55
    columns = ("question", "options", "answer", "question_type", "image_1")

    def item(self, row: dict[str, Any]) -> Item:
        question, options = str(row["question"]), _listed(row["options"])
        named = dict.fromkeys(int(k) for k in _MARK.findall(" ".join([question, *map(str, options)])) if k)
        pictures = [row[f"image_{k}"] for k in named or [1]]
        # Pictures stand before the text: what is left in it tells which is meant.
        question, options = (_named(question, list(named)), [_named(str(option), list(named)) for option in options])
        if row["question_type"] == "multiple-choice":
            return self._choose(question, options, str(row["answer"]), pictures)
        return self._ask(question, str(row["answer"]), pictures)


class IconQa(_ChoiceOrAnswer):
    """Not of the papers' evaluations: WINO+ of MMaDA is trained on it."""

    name, title = "iconqa", "IconQA, questions about abstract diagrams"
    columns = ("image", "question", "answer")
    aliases: ClassVar[dict[str, str]] = {"query_image": "image", "images": "image", "problem": "question"}

    def item(self, row: dict[str, Any]) -> Item:
        found, answer = row["image"], row["answer"]
        pictures = list(found) if isinstance(found, list) else [found]
        if not pictures:
            raise ValueError("image: expected a picture, got none")
        question, options = self._options(_MARK.sub("", str(row["question"])).strip(), row.get("choices"))
        choices = [row[name] for k in range(len(_LETTERS)) if row.get(name := f"choice_image_{k}") is not None]
        if choices:
            options = [f"picture {len(pictures) + k}" for k in range(1, len(choices) + 1)]
        if not options:
            return self._ask(question, str(answer), pictures)
        return self._choose(question, options, self._letter(answer, options), [*pictures, *choices])

    def _options(self, question: str, choices: Any) -> tuple[str, list[str]]:
        """Question and options: a list, one written out, "a, b", or lines "A. a" below the question."""
        if isinstance(choices, str) and choices.strip() and not choices.strip().startswith("["):
            return question, [choice.strip() for choice in choices.split(",")]
        if choices is not None and not (isinstance(choices, str) and not choices.strip()):
            return question, _listed(choices)
        lines = [(line, re.match(r"\s*[A-Z]\.\s+(.*\S)", line)) for line in question.splitlines()]
        return "\n".join(line for line, option in lines if not option).strip(), [m[1] for _, m in lines if m]

    def _letter(self, answer: Any, options: list[str]) -> str:
        """Of the answer: an option's words, a letter, a number from 0, or the file of a picture to choose."""
        text = str(answer).strip()
        if not isinstance(answer, int) and options.count(text) == 1:
            return _LETTERS[options.index(text)]
        number = re.fullmatch(r"(?:choice_)?(\d{1,2})(?:\.png)?", text)
        return _LETTERS[int(number[1])] if number and int(number[1]) < len(options) else text


def _file(picture: bytes, name: str) -> io.BytesIO:
    """An open file that errors call ``name``."""
    file = io.BytesIO(picture)
    file.name = name
    return file


def _named(text: str, order: Sequence[int]) -> str:
    """``text`` with ``<image 3>`` as the place of that picture among those shown; gone where there is one alone."""

    def place(mark: re.Match[str]) -> str:
        return f"(image {order.index(int(mark[1])) + 1})" if len(order) > 1 and mark[1] else ""

    return _MARK.sub(place, text).strip()


def _listed(value: Any) -> list[str]:
    """A column of options: a list, or one written out as MMMU's and CSV files' are."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(f"options: expected a list, got {value[:80]!r}") from None
    if value is None or not isinstance(value, Sequence):
        raise ValueError(f"options: expected a list, got {type(value).__name__}")
    return [str(option) for option in value]


def _accepted(answer: str) -> list[str]:
    """The answers that count: one, or several written as a list."""
    several = re.fullmatch(r"\s*\[\s*(['\"]).*\1\s*\]\s*", answer, re.DOTALL)
    return _listed(answer) if several else [answer]


def _same(given: str, wanted: str, digits: int | None) -> bool:
    """Equal as mathematics, as words, or as numbers rounded to ``digits`` behind the point."""
    if (answers.plain(wanted) != "" and answers.plain(given) == answers.plain(wanted)) or same_mathematics(
        given, wanted
    ):
        return True
    number, found = answers.number(wanted), answers.number(given)
    if number is None or found is None or re.fullmatch(r"[^a-zA-Z0-9]*[0-9.,/]+[^a-zA-Z0-9]*", wanted) is None:
        return False
    return found == number if digits is None else round(found, digits) == round(number, digits)


VISUAL_TASKS: tuple[type[VisualTask], ...] = (Flickr30k, Ai2d, MathVision, MathVista, Mmmu, ScienceQa, IconQa)
