"""Scenes: pictures that show what the words say, captions that say it all, questions whose answers are true."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from wino.tasks import PICTURE_TASKS, get_task, split_of
from wino.tasks.scenes import (
    CELL,
    COLOURS,
    NUMBERS,
    PLACES,
    SIDE,
    Captions,
    Questions,
    Thing,
    captions,
    draw_scene,
    read_scene,
    render,
    scene_key,
    scene_of,
    words,
)

SCENE = (Thing(0, "large", "red", "circle"), Thing(5, "small", "blue", "ring"), Thing(6, "small", "red", "square"))


def scenes(number: int = 200) -> list[tuple[Thing, ...]]:
    rng = random.Random(0)
    return [draw_scene(rng) for _ in range(number)]


def test_a_picture_shows_every_object_where_it_is_and_nothing_elsewhere() -> None:
    for scene in scenes(100):
        pixels = np.asarray(render(scene)).astype(int)
        there = {thing.place: thing for thing in scene}
        ground = np.median(pixels.reshape(-1, 3), axis=0)
        assert (ground == ground[0]).all() or max(ground) - min(ground) <= 2
        for place in range(9):
            row, column = divmod(place, 3)
            cell = pixels[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL].reshape(-1, 3)
            differs = abs(cell - ground).max(1) > 40
            if place not in there:
                assert not differs.any()
                continue
            thing = there[place]
            assert (differs.sum() > 58) == (thing.size == "large"), (thing, differs.sum())
            inside = np.argsort(abs(cell - ground).max(1))[-8:]  # away from the edges
            colour = np.median(cell[inside], axis=0)
            nearest = min(COLOURS, key=lambda name: abs(np.array(COLOURS[name]) - colour).sum())
            assert nearest == thing.colour


def test_shapes_and_sizes_look_different() -> None:
    covered = {}
    for shape in ("circle", "square", "triangle", "cross", "ring"):
        for size in ("small", "large"):
            shades = np.asarray(render((Thing(4, size, "white", shape),))).max(2)
            covered[shape, size] = int((shades > 130).sum())
    assert len(set(covered.values())) >= 9
    assert all(covered[shape, "small"] * 2 < covered[shape, "large"] for shape, _ in covered)


def test_pictures_are_read_as_what_was_drawn() -> None:
    rng = random.Random(8)
    for most in (4, 9):
        for _ in range(60):
            scene = draw_scene(rng, 2, most)
            assert read_scene(render(scene)) == scene
    assert read_scene(Image.new("RGB", (SIDE, SIDE), (40, 40, 40))) == ()
    # A little blur and noise changes nothing: what the image tokenizer gives back is no render.
    scene = draw_scene(rng)
    pixels = np.asarray(render(scene).filter(ImageFilter.GaussianBlur(0.6))).astype(int)
    noisy = (pixels + np.random.default_rng(0).integers(-15, 16, pixels.shape)).clip(0, 255)
    assert read_scene(Image.fromarray(noisy.astype(np.uint8))) == scene
    with pytest.raises(ValueError, match="picture: expected 48 x 48 pixels, got 50 x 48"):
        read_scene(Image.new("RGB", (50, 48)))


def test_a_picture_is_the_same_every_time() -> None:
    assert (np.asarray(render(SCENE)) == np.asarray(render(SCENE))).all()
    assert not (np.asarray(render(SCENE)) == np.asarray(render(SCENE[:2]))).all()


def test_captions() -> None:
    assert captions(SCENE)[0] == (
        "there are three objects : a large red circle at the top left , a small blue ring at the right and "
        "a small red square at the bottom left"
    )
    assert len(captions(SCENE)) == 6
    assert captions(SCENE)[5].startswith("three objects : a large red circle at the top left , a small red square")
    for scene in scenes():
        for text in captions(scene):
            assert len(text.split()) < Captions.max_new_tokens
            assert all(thing.name in text and PLACES[thing.place] in text for thing in scene)


def test_grading_captions() -> None:
    task = Captions()
    item = task.ask(SCENE, random.Random(0))
    for text in captions(SCENE):
        assert task.grade(item, text) and task.grade(item, f"  {text.replace(' ', '  ')} ")
    good = captions(SCENE)[0]
    reordered = good.replace("a large red circle at the top left , a small blue ring at the right", "X")
    assert task.grade(
        item, reordered.replace("X", "a small blue ring at the right , a large red circle at the top left")
    )
    for bad in (
        "",
        "three",
        good.replace("three", "four"),
        good.replace("red circle", "blue circle"),
        good.replace("top left", "top right"),
        good.replace("large", "small"),
        good.replace(" and a small red square at the bottom left", ""),
        good + " and a small red square at the bottom left",
        good.replace(" : ", " "),
        good.replace(" ", ""),
        "there are three objects :",
        ": : :",
        good * 50,
    ):
        assert not task.grade(item, bad), bad


def holds(first: Thing, word: str, second: Thing) -> bool:
    (row, column), (other_row, other_column) = divmod(first.place, 3), divmod(second.place, 3)
    return {"above": row < other_row, "below": row > other_row, "left": column < other_column}.get(
        word, column > other_column
    )


def test_answers_are_true() -> None:
    task, kinds = Questions(), set()
    for item in islice(task.items("train"), 600):
        scene, asked, answer = scene_of(item), item.prompt.split(), item.answer
        assert len(answer.split()) < task.max_new_tokens and task.grade(item, f" {answer} ")
        if asked[0] == "how":
            number = sum(asked[2] in (thing.colour, thing.shape) for thing in scene)
            assert f" {NUMBERS[number]} {asked[2]}" in answer and answer.startswith(("there is one", "there are"))
            assert not task.grade(item, answer.replace(NUMBERS[number], NUMBERS[(number + 1) % 5]))
        elif asked[0] == "what":
            at = {PLACES[thing.place]: thing.colour for thing in scene}.get(" ".join(asked[5:-1]))
            assert answer == (f"it is {at}" if at else "there is no object")
        else:
            named = {thing.name: thing for thing in scene}
            first, second = named[" ".join(asked[2:5])], named[" ".join(asked[-4:-1])]
            assert answer == ("yes , it is" if holds(first, asked[5], second) else "no , it is not")
        kinds.add(asked[0])
    assert kinds == {"how", "what", "is"}


def test_splits_hang_on_the_scene() -> None:
    """A held-out picture is seen by neither task in training."""
    for name, task in PICTURE_TASKS.items():
        assert get_task(name) is task
        for split in ("train", "validation", "heldout"):
            items = list(islice(task.items(split, 3), 100))
            assert {split_of(scene_key(scene_of(item))) for item in items} == {split}
            assert [item.key for item in items] == [item.key for item in islice(task.items(split, 3), 100)]
            if split != "train":
                assert len({item.key for item in items}) == 100
        with pytest.raises(ValueError, match="split: expected one of"):
            next(task.items("test"))
        with pytest.raises(ValueError, match=f"task {name} has generated pictures only"):
            task.load(Path("file.jsonl"))


def test_the_language_is_known() -> None:
    known = set(words())
    for task in PICTURE_TASKS.values():
        for item in islice(task.items("train"), 500):
            assert set(f"{item.prompt} {item.answer}".split()) <= known
