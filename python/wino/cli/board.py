"""A decode as a person sees it: tokens appear where they are accepted, and flash red when they are taken back."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ..trace import StepRecord

Line = Sequence[int | str]
"""One line of the picture: positions of the generation region, and text between them."""

MASKED = "bright_black"
FRESH = "bold black on green"
TAKEN_BACK = "bold white on red"
JUST_MASKED = "red"
GIVEN = "cyan"
FRAME = "bright_black"
_PACE = 0.08  # seconds a streamed step stays on screen at least


class Glyphs:
    """How token ids and masks are drawn in what ``console`` can encode; all of the ``ends`` alike."""

    def __init__(self, tokenizer: Any, ends: Iterable[int], console: Console) -> None:
        self.tokenizer = tokenizer
        self.unicode = "utf" in console.encoding.lower()
        self.mask, self.end = ("░", "·") if self.unicode else ("_", ".")
        self._known: dict[int, str] = dict.fromkeys(ends, self.end)

    def draw(self, token: int) -> str:
        """The text of one token, without control characters."""
        if token not in self._known:
            text = "".join(c if c.isprintable() or c == "\n" else "?" for c in self.tokenizer.decode([token]))
            self._known[token] = text if self.unicode else text.encode("ascii", "replace").decode()
        return self._known[token]


class Board:
    """The generation region of one sequence, moved on by the records of its steps.

    Args:
        glyphs: draws tokens and masks.
        length: positions of the generation region.
        lines: how to lay them out; None: one after another, wrapped by the terminal.
        given: position -> text that the question already had there, drawn apart while the model agrees with it.
        widths: columns of each position's mask, so that text does not move when words appear; None: one each.
    """

    def __init__(
        self,
        glyphs: Glyphs,
        length: int,
        lines: Sequence[Line] | None = None,
        given: dict[int, str] | None = None,
        widths: Sequence[int] | None = None,
    ) -> None:
        self.glyphs = glyphs
        self.lines: Sequence[Line] = [range(length)] if lines is None else lines
        self.given = given or {}
        self.widths = widths or [1] * length
        self.tokens: list[int | None] = [None] * length
        self.fresh: set[int] = set()
        self.taken_back: dict[int, int] = {}

    def apply(self, record: StepRecord) -> None:
        """Take over what one step accepted and took back."""
        self.fresh = set(record.accepted_positions)
        self.taken_back = dict(zip(record.remasked_positions, record.remasked_tokens, strict=True))
        for position, token in zip(record.accepted_positions, record.accepted_tokens, strict=True):
            self.tokens[position] = token
        for position in record.remasked_positions:
            self.tokens[position] = None

    def settle(self) -> None:
        """Forget which tokens the last step touched."""
        self.fresh, self.taken_back = set(), {}

    def text(self, flash: bool) -> Text:
        """The region; with ``flash``, tokens just taken back are still there, in red."""
        picture = Text()
        for number, line in enumerate(self.lines):
            if number:
                picture.append("\n")
            for part in line:
                if isinstance(part, str):
                    picture.append(part, FRAME)
                else:
                    picture.append(*self._cell(part, flash))
        return picture

    def _cell(self, position: int, flash: bool) -> tuple[str, str]:
        token = self.tokens[position]
        if token is None:
            mask = self.glyphs.mask * self.widths[position]
            if position not in self.taken_back:
                return mask, MASKED
            if flash:
                return self.glyphs.draw(self.taken_back[position]), TAKEN_BACK
            return mask, JUST_MASKED
        glyph = self.glyphs.draw(token)
        if position in self.fresh:
            return glyph, FRESH if flash else "bold green"
        return glyph, GIVEN if self.given.get(position) == glyph else ""


def half_blocks(picture: Any, columns: int) -> Text:
    """A square Pillow image in text: each character two pixels, one above the other."""
    small = picture.convert("RGB").resize((columns, columns), 1)
    text = Text()
    for y in range(0, columns - 1, 2):
        for x in range(columns):
            upper, lower = ("#{:02x}{:02x}{:02x}".format(*small.getpixel((x, y + k))) for k in (0, 1))
            text.append("▀", f"{upper} on {lower}")
        text.append("\n")
    return text


class LiveDecode(AbstractContextManager["LiveDecode"]):
    """A streamer for :func:`wino.generate` that draws one sequence on a terminal while it is decoded."""

    def __init__(self, console: Console, tokenizer: Any, ends: Iterable[int], length: int) -> None:
        self.board = Board(Glyphs(tokenizer, ends, console), length)
        self.live = Live(self.board.text(flash=False), console=console, auto_refresh=False)
        self.drawn = 0.0

    def __enter__(self) -> LiveDecode:
        self.live.start(refresh=True)
        return self

    def __exit__(self, *exception: Any) -> None:
        self.live.stop()

    def put(self, value: Any) -> None:
        """Prompt and result pass through here; what is drawn comes with :meth:`put_step`."""

    def put_step(self, step: int, tokens: Any, records: Sequence[StepRecord | None]) -> None:
        record = records[0]
        if record is None:
            return
        self.board.apply(record)
        self._draw(flash=True)
        if self.board.taken_back:
            self._draw(flash=False)

    def end(self) -> None:
        time.sleep(max(0.0, self.drawn + _PACE - time.monotonic()))
        self.board.settle()
        self.live.update(self.board.text(flash=False), refresh=True)

    def _draw(self, flash: bool) -> None:
        time.sleep(max(0.0, self.drawn + _PACE - time.monotonic()))
        self.live.update(self.board.text(flash), refresh=True)
        self.drawn = time.monotonic()
