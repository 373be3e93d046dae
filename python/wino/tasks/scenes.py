"""Pictures of simple scenes: two to four objects on a 3 x 3 grid, to be described, asked about and drawn.

An object has a size, a colour, a shape and a place. Everything in a picture that the words do not say (where exactly in
its ninth of the picture an object lies, the shade of the ground, grain) follows from a hash of the scene.
"""

from __future__ import annotations

import itertools
import random
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from .base import Item, Task
from .cider import cider

SIZES = ("small", "large")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (240, 215, 50),
    "purple": (160, 60, 200),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
NUMBERS = ("no", "one", "two", "three", "four")
PLACES = (
    "at the top left",
    "at the top",
    "at the top right",
    "at the left",
    "in the center",
    "at the right",
    "at the bottom left",
    "at the bottom",
    "at the bottom right",
)
#: The family of pictures drawn from captions, beside the tasks.
DRAWING = "drawing"
#: Side of a picture in pixels, and of one of its nine cells.
SIDE, CELL = 48, 16
_OPENINGS = ("there are {} objects :", "the picture shows {} objects :", "{} objects :")
_RADII = {"small": 3.5, "large": 6.5}  # pixels
_SHADES = (0.85, 1.0)  # of a colour
_DRAWN = 4  # times as large, then scaled down, so that edges are smooth


class Thing(NamedTuple):
    place: int
    size: str
    colour: str
    shape: str

    @property
    def name(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


Scene = tuple[Thing, ...]


def draw_scene(rng: random.Random, least: int = 2, most: int = 4) -> Scene:
    """Objects in different places, by place; the tasks' scenes have two to four."""
    places = sorted(rng.sample(range(9), rng.randint(least, most)))
    return tuple(Thing(place, rng.choice(SIZES), rng.choice(list(COLOURS)), rng.choice(SHAPES)) for place in places)


def scene_key(scene: Scene) -> str:
    return "scene:" + ";".join(f"{thing.place} {thing.name}" for thing in scene)


def scene_of(item: Item) -> Scene:
    return tuple(Thing(*thing) for thing in item.metadata["scene"])


def captions(scene: Scene) -> list[str]:
    """Every wording that counts as a reference: three openings, objects row by row or column by column."""
    orders = [list(scene), sorted(scene, key=lambda thing: (thing.place % 3, thing.place))]
    texts = []
    for order in orders:
        named = [f"a {thing.name} {PLACES[thing.place]}" for thing in order]
        listed = f"{' , '.join(named[:-1])} and {named[-1]}"
        texts += [f"{opening.format(NUMBERS[len(scene)])} {listed}" for opening in _OPENINGS]
    return list(dict.fromkeys(texts))


def render(scene: Scene) -> Any:
    """The picture, a Pillow image of SIDE x SIDE."""
    import numpy as np
    from PIL import Image, ImageDraw

    rng = random.Random(scene_key(scene))
    ground = rng.randrange(20, 70)
    canvas = Image.new("RGB", (SIDE * _DRAWN, SIDE * _DRAWN), (ground, ground, ground))
    pen = ImageDraw.Draw(canvas)
    for thing in scene:
        x, y = (CELL * (k + 0.5) + rng.uniform(-1, 1) for k in (thing.place % 3, thing.place // 3))
        shade = rng.uniform(*_SHADES)
        fill = tuple(round(channel * shade) for channel in COLOURS[thing.colour])
        _draw_shape(pen, thing.shape, _DRAWN * x, _DRAWN * y, _DRAWN * _RADII[thing.size], fill, (ground,) * 3)
    picture = np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.BOX)).astype(np.int16)
    grain = np.random.default_rng(rng.getrandbits(32)).integers(-4, 5, picture.shape)
    return Image.fromarray((picture + grain).clip(0, 255).astype(np.uint8))


def read_scene(picture: Any) -> Scene:
    """The objects in a picture of SIDE x SIDE: in each cell what :func:`render` could have drawn that is nearest to it.

    Tells how many objects of a description a drawn picture has, without asking the model that drew it.
    """
    import numpy as np

    pixels = np.asarray(picture.convert("RGB")).astype(np.float32)
    if pixels.shape[:2] != (SIDE, SIDE):
        raise ValueError(f"picture: expected {SIDE} x {SIDE} pixels, got {pixels.shape[1]} x {pixels.shape[0]}")
    ground = float(np.median(pixels))
    covered, names = _stencils()
    fills = np.array([[np.multiply(c, s) for s in np.linspace(*_SHADES, 3)] for c in COLOURS.values()], np.float32)
    # |patch - ground - covered (fill - ground)|^2 over the cell, without a picture of each.
    squared = (covered**2).sum((1, 2))
    steps = fills - ground  # [colour, shade, channel]
    things = []
    for place in range(9):
        row, column = (CELL * k for k in divmod(place, 3))
        patch = pixels[row : row + CELL, column : column + CELL] - ground
        seen = np.einsum("kxy,xyc->kc", covered, patch)
        error = squared[:, None, None] * (steps**2).sum(-1) - 2 * np.einsum("kc,asc->kas", seen, steps)
        best = np.unravel_index(error.argmin(), error.shape)
        if error[best] < 0:
            size, shape = names[best[0]]
            things.append(Thing(place, size, list(COLOURS)[best[1]], shape))
    return tuple(things)


@cache
def _stencils() -> tuple[Any, list[tuple[str, str]]]:
    """Coverage (n, CELL, CELL) of every size and shape at 25 places of a cell, and which each is."""
    import numpy as np
    from PIL import Image, ImageDraw

    covered, names = [], []
    for size, shape in itertools.product(SIZES, SHAPES):
        for dx, dy in itertools.product((-1.0, -0.5, 0.0, 0.5, 1.0), repeat=2):
            canvas = Image.new("L", (CELL * _DRAWN,) * 2, 0)
            x, y = (_DRAWN * (CELL / 2 + shift) for shift in (dx, dy))
            _draw_shape(ImageDraw.Draw(canvas), shape, x, y, _DRAWN * _RADII[size], 255, 0)
            covered.append(np.asarray(canvas.resize((CELL, CELL), Image.Resampling.BOX)).astype(np.float32) / 255)
            names.append((size, shape))
    return np.stack(covered), names


def _draw_shape(pen: Any, shape: str, x: float, y: float, r: float, fill: Any, ground: Any) -> None:
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill)
    elif shape == "square":
        pen.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill)
    elif shape == "triangle":
        pen.polygon([(x, y - r), (x + r, y + 0.85 * r), (x - r, y + 0.85 * r)], fill)
    elif shape == "cross":
        pen.rectangle((x - r, y - 0.32 * r, x + r, y + 0.32 * r), fill)
        pen.rectangle((x - 0.32 * r, y - r, x + 0.32 * r, y + r), fill)
    else:
        pen.ellipse((x - r, y - r, x + r, y + r), fill)
        pen.ellipse((x - 0.5 * r, y - 0.5 * r, x + 0.5 * r, y + 0.5 * r), ground)


class PictureTask(Task):
    """A task whose items have a picture; the split hangs on the scene alone, whatever is asked about it."""

    has_pictures = True

    def picture(self, item: Item) -> Any:
        """A Pillow image."""
        return render(scene_of(item))

    @abstractmethod
    def ask(self, scene: Scene, rng: random.Random) -> Item:
        """An item about ``scene``."""

    def draw(self, rng: random.Random) -> Item:
        return self.ask(draw_scene(rng), rng)

    def split_key(self, item: Item) -> str:
        return scene_key(scene_of(item))

    def item(self, row: dict[str, Any]) -> Item:
        raise ValueError(f"task {self.name} has generated pictures only")

    def read(self, path: Path, on_invalid: Callable[[str], None] | None = None) -> Iterator[Item]:
        raise ValueError(f"{path}: task {self.name} has generated pictures only")


class Captions(PictureTask):
    """``describe the picture``; the answer is one of :func:`captions`, all of them are ``metadata["references"]``."""

    name = "caption"
    title = "Captions of scenes of two to four objects"
    max_new_tokens = 48

    def ask(self, scene: Scene, rng: random.Random) -> Item:
        references = captions(scene)
        metadata = {"scene": [list(thing) for thing in scene], "references": references}
        return Item(f"caption{scene_key(scene)}", "describe the picture", rng.choice(references), metadata)

    def scores(self, items: Sequence[Item], texts: Sequence[str]) -> dict[str, float]:
        """CIDEr."""
        return {"cider": cider(texts, [item.metadata["references"] for item in items])[0]}

    def grade(self, item: Item, text: str) -> bool:
        """Whether the text names exactly the objects there are, each in its place, in whatever order."""
        return sorted(_objects_in(text)) == sorted(_objects_in(item.metadata["references"][0]))


def _objects_in(text: str) -> list[str]:
    """ "three", and what is listed behind the colon; of a text without one, what no caption has."""
    opening, colon, listed = " ".join(text.split()).partition(" : ")
    number = [word for word in opening.split() if word in NUMBERS]
    return [*number, *listed.replace(" and a ", " , a ").split(" , ")] if colon else [text, ""]


class Questions(PictureTask):
    """How many, what colour, where: about objects that are there and some that are not."""

    name = "question"
    title = "Questions about scenes: number, colour, relation"
    max_new_tokens = 8

    def ask(self, scene: Scene, rng: random.Random) -> Item:
        kind = rng.choice(("number", "colour", "relation"))
        question, answer = {"number": _number, "colour": _colour, "relation": _relation}[kind](scene, rng)
        metadata = {"scene": [list(thing) for thing in scene], "kind": kind}
        return Item(f"question{scene_key(scene)}?{question}", question, answer, metadata)

    def grade(self, item: Item, text: str) -> bool:
        return " ".join(text.split()) == item.answer


def _number(scene: Scene, rng: random.Random) -> tuple[str, str]:
    counts = Counter(value for thing in scene for value in (thing.colour, thing.shape))
    what = rng.choice([*counts, rng.choice(list(COLOURS)), rng.choice(SHAPES)])
    name = f"{what} objects" if what in COLOURS else f"{what} shapes"
    number = NUMBERS[counts[what]]
    answer = f"there is one {name[:-1]}" if counts[what] == 1 else f"there are {number} {name}"
    return f"how many {name} are there ?", answer


def _colour(scene: Scene, rng: random.Random) -> tuple[str, str]:
    there = {thing.place: thing for thing in scene}
    place = rng.choice([*there, rng.randrange(9)])
    answer = f"it is {there[place].colour}" if place in there else "there is no object"
    return f"what color is the object {PLACES[place]} ?", answer


def _relation(scene: Scene, rng: random.Random) -> tuple[str, str]:
    first, second = rng.sample(scene, 2)
    word = rng.choice(("above", "below", "left of", "right of"))
    (row, column), (other_row, other_column) = divmod(first.place, 3), divmod(second.place, 3)
    holds = {
        "above": row < other_row,
        "below": row > other_row,
        "left of": column < other_column,
        "right of": column > other_column,
    }[word]
    named = [thing.name for thing in scene]
    if named.count(first.name) > 1 or named.count(second.name) > 1:
        return _colour(scene, rng)
    return f"is the {first.name} {word} the {second.name} ?", "yes , it is" if holds else "no , it is not"


def words() -> list[str]:
    """Every word that a question, an answer or a caption can hold."""
    text = " ".join((*_OPENINGS, *PLACES, *SIZES, *COLOURS, *SHAPES, *NUMBERS, "describe the picture , a and ? :"))
    text += " how many objects object shapes shape are there is what color it above below left right of yes no not"
    return sorted(set(text.replace("{}", "").split()))
