"""``wino demo --multimodal``: pictures nobody trained on are described and asked about, and descriptions drawn."""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from rich.columns import Columns
from rich.console import Console, Group
from rich.text import Text

from ..config import GenerationConfig
from ..files import write_atomically
from ..multimodal import draw, drawing_config, from_pixels
from ..tasks import PICTURE_TASKS
from ..tasks.base import Item
from ..tasks.presets import decoder_configs
from ..tasks.scenes import DRAWING, SIDE, read_scene, scene_of
from .board import half_blocks
from .demo import SHOWN, Decode, compare, counted, decode_alone, heading, play, prepare, say
from .errors import BadInputError
from .session import Session, check_writable, open_session, status

_DRAWN = 4  # pictures from descriptions
_SHEET_ROWS = 6
_COLUMNS = 24  # of a drawn picture on a terminal


@dataclass(frozen=True)
class Drawn:
    """A description and what the model drew of it; ``found``: of the objects asked for, those in the picture."""

    item: Item
    picture: Any
    found: int

    @property
    def caption(self) -> str:
        return f"{self.found} of {len(scene_of(self.item))} objects drawn as asked"


def run_gallery(
    model: str, device: str, *, items: int, seed: int, animation: bool, fast: bool, record: Path | None
) -> None:
    """Play, draw and measure; see ``wino demo --help``."""
    if record is not None:
        check_writable(record)
        if record.suffix.lower() != ".png":
            raise BadInputError(f"--record: with --multimodal expected a PNG file, got {record}")
    session = open_session(model, device, pictures=True)
    session.announce()
    console = Console(highlight=False)
    say(console, f"{model}: held-out pictures, which training never saw (seed {seed}).", "bold")
    for task in PICTURE_TASKS.values():
        show = prepare(session, task, seed)
        play(console, session, show, animate=animation, speed=3.0 if fast else 1.0)
    drawn, config = draw_captions(session, _DRAWN, seed)
    print_drawn(console, drawn, config)
    compare([console], session, list(PICTURE_TASKS.values()), items, seed)
    if record is not None:
        picture = io.BytesIO()
        contact_sheet(session, drawn, seed).save(picture, "PNG")
        write_atomically(record, picture.getvalue())
        say(console, f"wrote {record}", "dim")


def draw_captions(session: Session, count: int, seed: int) -> tuple[list[Drawn], GenerationConfig]:
    """Pictures from the first held-out captions, none chosen, and the settings."""
    layout, magvit = session.tokenizer.layout, session.tokenizer.magvit
    settings = session.presets.get(DRAWING, {}).get("maskgit", {})
    config = drawing_config(layout, **{"seed": seed, **settings})
    captions = list(islice(PICTURE_TASKS["caption"].items("heldout", seed), count))
    with status("drawing ..."):
        codes, _ = draw(session.model, layout, [item.answer for item in captions], config)
        pictures = from_pixels(magvit.decode_code(codes))
    drawn = []
    for item, picture in zip(captions, pictures, strict=True):
        seen = read_scene(picture.resize((SIDE, SIDE)))
        drawn.append(Drawn(item, picture, len(set(seen) & set(scene_of(item)))))
    return drawn, config


def print_drawn(console: Console, drawn: list[Drawn], config: GenerationConfig) -> None:
    """The drawn pictures side by side, with what was asked for; their descriptions alone where nothing is drawn."""
    heading(console, DRAWING, f"pictures from descriptions, {config.steps} passes, the first held-out ones")
    if console.is_terminal and "utf" in console.encoding.lower():
        cells = [
            Group(half_blocks(one.picture, _COLUMNS), Text(one.item.answer), Text(one.caption, "dim")) for one in drawn
        ]
        console.print(Columns(cells, width=_COLUMNS, padding=(0, 2)))
        return
    for one in drawn:
        say(console, f"  {one.item.answer}  ({one.caption})")


def contact_sheet(session: Session, drawn: list[Drawn], seed: int) -> Image.Image:
    """The first held-out pictures with every shown decoder's caption and passes, and the drawn pictures."""
    task = PICTURE_TASKS["caption"]
    configs = decoder_configs(task, session.presets)
    sheet = _Sheet()
    sheet.title("Held-out pictures (the first ones, none chosen) and their captions")
    for item in islice(task.items("heldout", seed), _SHEET_ROWS):
        decodes = [decode_alone(session, task, item, configs[k], title) for k, title in SHOWN.items()]
        sheet.described(task.picture(item), decodes)
    sheet.title("Pictures drawn from held-out captions")
    for one in drawn:
        sheet.row(one.picture, [(one.item.answer, _INK), (one.caption, _DIM)])
    return sheet.image()


_INK, _DIM, _GOOD, _BAD = (20, 20, 20), (110, 110, 110), (20, 120, 50), (180, 30, 30)


class _Sheet:
    """Rows of a picture and text beside it, from top to bottom."""

    width, side, margin, line = 1000, 144, 16, 19

    def __init__(self) -> None:
        self._font = ImageFont.load_default(14)
        self._bold = ImageFont.load_default(18)
        self._rows: list[tuple[int, Any]] = []  # height, painter(pen, canvas, y)

    def title(self, text: str) -> None:
        self._rows.append((36, lambda pen, _, y: pen.text((self.margin, y + 6), text, _INK, self._bold)))

    def described(self, picture: Any, decodes: list[Decode]) -> None:
        """A picture and its captions."""
        texts = []
        for decode in decodes:
            back = f", {decode.taken_back} taken back" if decode.taken_back else ""
            outcome, colour = ("right", _GOOD) if decode.correct else ("wrong", _BAD)
            texts += [
                (f"{decode.title}: {counted(len(decode.records), 'pass', 'passes')}{back}, {outcome}", colour),
                (decode.text, _INK),
            ]
        self.row(picture, texts)

    def row(self, picture: Any, texts: list[tuple[str, Any]]) -> None:
        """A picture and paragraphs in their colours."""
        left = self.side + 2 * self.margin
        lines = [(line, colour) for text, colour in texts for line in self._wrapped(text, self.width - left)]
        height = max(self.side, self.line * len(lines)) + self.margin

        def paint(pen: ImageDraw.ImageDraw, canvas: Image.Image, y: int) -> None:
            scaled = picture.resize((self.side, self.side), Image.Resampling.NEAREST)
            canvas.paste(scaled, (self.margin, y))
            for number, (line, colour) in enumerate(lines):
                pen.text((left, y + number * self.line), line, colour, self._font)

        self._rows.append((height, paint))

    def image(self) -> Image.Image:
        canvas = Image.new("RGB", (self.width, self.margin + sum(height for height, _ in self._rows)), "white")
        pen, y = ImageDraw.Draw(canvas), self.margin
        for height, paint in self._rows:
            paint(pen, canvas, y)
            y += height
        return canvas

    def _wrapped(self, text: str, width: int) -> list[str]:
        lines = [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and self._font.getlength(longer) > width - self.margin:
                lines.append(word)
            else:
                lines[-1] = longer
        return lines
