"""What a task is: items with a question, a worked answer and a grader, in three disjoint splits."""

from __future__ import annotations

import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

from .rows import Row, read_rows

SPLITS = ("train", "validation", "heldout")
_BUCKETS = 16
#: Columns in which published data sets name their items.
_OWN_IDS = ("task_id", "unique_id", "question_id", "id", "pid")
_SHOWN_ID = 80  # characters of it; the hash tells apart what is longer


@dataclass(frozen=True)
class Item:
    """One problem.

    Attributes:
        key: identifies it by what it is.
        prompt: what the user asks.
        answer: a correct reply, "" if none is known.
        metadata: what else its grader reads.
        where: file and line of one that was read.
        opening: how the reply begins, which the model is given behind the prompt.
    """

    key: str
    prompt: str
    answer: str
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)
    where: str = field(default="", compare=False)
    opening: str = ""


class InvalidRowError(ValueError):
    """A row that cannot be used; the message begins with its file and line."""


class Task(ABC):
    """A family of problems.

    Attributes:
        name: as given on the command line, also the first word of every prompt.
        max_new_tokens: generation length that holds every answer and its end token.
        presets: decoder -> settings, where the model's own presets have none.
        has_pictures: whether prompts come with pictures, which only a MMaDA can see.
        fit: how they become square, as of :func:`wino.multimodal.to_pixels`.
        columns: that every row of a file of items has; aliases: other names under which data sets have them.
        suffix: what a file counts as whose name does not say it.
    """

    name: str
    title: str
    max_new_tokens: int
    presets: dict[str, dict[str, Any]] = {}  # noqa: RUF012 - replaced by instances, never changed
    has_pictures: ClassVar[bool] = False
    fit: ClassVar[Literal["crop", "squash"]] = "crop"
    columns: ClassVar[tuple[str, ...]] = ()
    aliases: ClassVar[dict[str, str]] = {}
    suffix: ClassVar[str] = ""

    @abstractmethod
    def draw(self, rng: random.Random) -> Item:
        """A random problem."""

    def split_key(self, item: Item) -> str:
        """What decides the split of ``item``: two items with one such key are never in different splits."""
        return item.key

    @abstractmethod
    def grade(self, item: Item, text: str) -> bool:
        """Whether ``text``, as a model wrote it, answers ``item``. Never evaluates the text; any string is safe."""

    def scores(self, items: Sequence[Item], texts: Sequence[str]) -> dict[str, float]:
        """Figures of all answers together, beside accuracy: name -> value."""
        return {}

    def picture(self, item: Item) -> Any:
        """The picture that comes with the prompt, or a list of several. Only where ``has_pictures``."""
        raise TypeError(f"task {self.name} has no pictures")

    @abstractmethod
    def item(self, row: dict[str, Any]) -> Item:
        """The item of a row of a file, with ``key`` "" where its content is to say it.

        Raises:
            ValueError: saying what is wrong with the row.
        """

    def load(self, path: Path, on_invalid: Callable[[str], None] | None = None) -> list[Item]:
        """All items of a published file (:func:`wino.tasks.rows.read_rows`).

        Args:
            on_invalid: told of every row that cannot be used, which is then left out.

        Raises:
            InvalidRowError: without ``on_invalid``, a row that cannot be used; names file, line and what was expected.
            ValueError: the file as a whole cannot be read.
        """
        return list(self.read(path, on_invalid))

    def read(self, path: Path, on_invalid: Callable[[str], None] | None = None) -> Iterator[Item]:
        """:meth:`load`, row by row."""
        for where, row_of in read_rows(path, self.columns, self.aliases, self.suffix):
            try:
                yield replace(self._item_of(row_of()), where=where)
            except ValueError as error:
                fault = f"{where}: {error}"
                if on_invalid is None:
                    raise InvalidRowError(fault) from error
                on_invalid(fault)

    def items(self, split: str, seed: int = 0) -> Iterator[Item]:
        """Distinct problems of one split, endlessly; the same seed gives the same sequence."""
        if split not in SPLITS:
            raise ValueError(f"split: expected one of {SPLITS}, got {split!r}")
        rng = random.Random(f"{self.name}/{split}/{seed}")
        seen: set[str] = set()
        while True:
            item = self.draw(rng)
            if split_of(self.split_key(item)) == split and item.key not in seen:
                if split != "train":
                    seen.add(item.key)
                yield item

    def _item_of(self, row: dict[str, Any]) -> Item:
        try:
            item = self.item(row)
            f"{item.prompt}{item.answer}".encode()  # JSON can spell half a character
            return replace(item, key=item.key or content_key(self.name, row, item))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            raise ValueError(f"not an item of {self.name} ({error})") from error


def content_key(task: str, row: Row, item: Item) -> str:
    """What identifies the item of a row: ``task:its own id:hash``, or without an id ``task:hash``.

    The hash is of prompt, answer and all that the grader reads, pictures by their content: the same item has the same
    key in whatever row of whatever file it stands, and one that was edited is another item.
    """
    content = json.dumps([item.prompt, item.opening, item.answer, item.metadata], sort_keys=True, default=_content)
    own = next((str(row[name]) for name in _OWN_IDS if isinstance(row.get(name), str | int) and row[name] != ""), None)
    parts = [task, *([] if own is None else [own[:_SHOWN_ID]]), hashlib.sha256(content.encode()).hexdigest()[:16]]
    return ":".join(parts)


def _content(value: Any) -> str:
    """A hash of a picture (a file, bytes, a Pillow image), wherever it lies; the text of anything else."""
    if isinstance(value, Path):
        value = value.read_bytes()
    elif hasattr(value, "getbands"):
        value = f"{value.mode} {value.size} ".encode() + value.tobytes()
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)


@cache
def published_hashes() -> frozenset[tuple[str, str]]:
    """(task, first 16 hex digits of the key's SHA-256) of every item of the published test sets."""
    text = resources.files("wino.assets").joinpath("heldout_sha256.txt").read_text()
    rows = (line.split() for line in text.splitlines() if line and not line.startswith("#"))
    return frozenset((task, digest) for task, digest in rows)


def split_of(key: str) -> str:
    """The split of the item named ``key`` ("task:problem"); "published" for a published test item, which is in none."""
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    if (key.partition(":")[0], digest) in published_hashes():
        return "published"
    bucket = int(digest, 16) % _BUCKETS
    return {0: "heldout", 1: "validation"}.get(bucket, "train")
