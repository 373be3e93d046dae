"""What a task is: items with a question, a worked answer and a grader, in three disjoint splits."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

SPLITS = ("train", "validation", "heldout")
_BUCKETS = 16


@dataclass(frozen=True)
class Item:
    """One problem: ``key`` identifies it, ``prompt`` is what the user asks, ``answer`` a correct reply ("" if none is
    known), ``metadata`` what else its grader reads."""

    key: str
    prompt: str
    answer: str
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)


class Task(ABC):
    """A family of problems.

    Attributes:
        name: as given on the command line, also the first word of every prompt.
        max_new_tokens: generation length that holds every answer and its end token.
        presets: decoder -> settings, where the model's own presets have none.
        has_pictures: whether prompts come with pictures, which only a MMaDA can see.
        fit: how they become square, as of :func:`wino.multimodal.to_pixels`.
    """

    name: str
    title: str
    max_new_tokens: int
    presets: dict[str, dict[str, Any]] = {}  # noqa: RUF012 - replaced by instances, never changed
    has_pictures: ClassVar[bool] = False
    fit: ClassVar[Literal["crop", "squash"]] = "crop"

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
    def load(self, path: Path) -> list[Item]:
        """Read a published test file. Raises ``ValueError`` naming the file, the line and what was expected."""

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


def read_utf8(path: Path) -> str:
    """The text of a published file, with or without a byte order mark. Raises ``ValueError`` if it is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text, got the byte 0x{error.object[error.start]:02x}") from error


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
