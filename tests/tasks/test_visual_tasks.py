"""The tasks with pictures: rows as the data sets have them, pictures in every form, good and bad answers."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet
from small_mmada import build_corpus

from wino.multimodal import open_image
from wino.tasks import VISUAL_TASK_NAMES, VisualTask, get_task
from wino.tasks.evaluation import encode_items


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), colour).save(buffer, "PNG")
    return buffer.getvalue()


ROWS: dict[str, dict[str, Any]] = {
    "flickr30k": {"caption": ["A dog runs.", "A brown dog is running."], "img_id": "7"},
    "ai2d": {"question": "What eats grass?", "options": ["fox", "rabbit", "owl"], "answer": "1"},
    "math-vision": {"question": "How long is x?\n<image1>", "options": [], "answer": "12", "level": 2},
    "mathvista-mini": {
        "question": "How high?",
        "choices": None,
        "unit": "cm",
        "precision": 1.0,
        "answer": "1.2",
        "question_type": "free_form",
    },
    "mmmu-val": {
        "question": "Compare <image 1> and <image 2>.",
        "options": "['<image 1>', 'both', 'none']",
        "answer": "B",
        "question_type": "multiple-choice",
    },
    "iconqa": {"question": "What is next?", "choices": "heart, star", "answer": "star", "ques_type": "choose_txt"},
    "scienceqa-img": {"question": "Which is north?", "choices": ["Ohio", "Utah"], "answer": 1, "hint": "Look."},
}
GOOD = {
    "iconqa": ["\\boxed{B}", "\\boxed{star}", "The answer is B."],
    "flickr30k": ["a dog runs", "A brown dog is running."],
    "ai2d": ["\\boxed{B}", "The answer is B.", "B", "\\boxed{rabbit}", "<answer>B. rabbit</answer>", "I think B"],
    "math-vision": ["\\boxed{12}", "so \\boxed{12.0}", "x is 12", "\\boxed{\\frac{24}{2}}"],
    "mathvista-mini": ["\\boxed{1.2}", "\\boxed{1.21 cm}", "It is 1.2 cm", "\\boxed{1.16}"],
    "mmmu-val": ["\\boxed{B}", "Answer: (B)", "\\boxed{both}"],
    "scienceqa-img": ["\\boxed{B}", "The answer is B", "\\boxed{Utah}"],
}
BAD = {
    "iconqa": ["\\boxed{A}", "\\boxed{heart}", "", "neither"],
    "flickr30k": ["", "a cat"],
    "ai2d": ["", "\\boxed{A}", "A or B", "\\boxed{rab}", "\\boxed{}", "__import__('os')"],
    "math-vision": ["", "\\boxed{13}", "\\boxed{}", "twelve", "9" * 30_000],
    "mathvista-mini": ["", "\\boxed{1.4}", "\\boxed{12}", "none"],
    "mmmu-val": ["", "\\boxed{C}", "\\boxed{none}"],
    "scienceqa-img": ["", "\\boxed{A}", "\\boxed{Ohio}", "(" * 30_000],
}


def with_picture(name: str, value: Any) -> dict[str, Any]:
    pictures = {"image_1": value, "image_2": value} if name == "mmmu-val" else {"image": value}
    return {**ROWS[name], **pictures}


def load_one(folder: Path, row: dict[str, Any], name: str) -> tuple[VisualTask, Any]:
    path = folder / "data.jsonl"
    path.write_text(json.dumps(row) + "\n")
    task = get_task(name)
    assert isinstance(task, VisualTask)
    return task, task.load(path)[0]


@pytest.mark.parametrize("form", ["file", "base64", "data address", "parquet"])
@pytest.mark.parametrize("name", VISUAL_TASK_NAMES)
def test_pictures_of_every_form(tmp_path: Path, name: str, form: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(png())
    text = base64.b64encode(png()).decode()
    if form == "parquet":
        path = tmp_path / "data.parquet"
        row = with_picture(name, {"bytes": png(), "path": "elsewhere.png"})
        parquet.write_table(pyarrow.Table.from_pylist([row]), path)
        task = get_task(name)
        (item,) = task.load(path)
    else:
        value = {"file": "images/1.png", "base64": text, "data address": f"data:image/png;base64,{text}"}[form]
        task, item = load_one(tmp_path, with_picture(name, value), name)
    pictures = task.picture(item)
    assert len(pictures) == (2 if name == "mmmu-val" else 1)
    for picture in pictures:
        assert open_image(picture).getpixel((3, 3)) == (255, 0, 0)
    again = task.picture(item)[0]
    assert open_image(again).size == (30, 20)
    assert item.prompt and "<image" not in item.prompt and item.key.startswith(f"{name}:")


@pytest.mark.parametrize("name", VISUAL_TASK_NAMES)
def test_graders(tmp_path: Path, name: str) -> None:
    task, item = load_one(tmp_path, with_picture(name, base64.b64encode(png()).decode()), name)
    assert {text: task.grade(item, text) for text in GOOD[name]} == dict.fromkeys(GOOD[name], True)
    assert {text: task.grade(item, text) for text in BAD[name]} == dict.fromkeys(BAD[name], False)
    assert task.presets["wino"]["threshold"] == 0.5 and task.presets["wino"]["threshold_back"] == 0.9
    assert task.max_new_tokens % task.presets["wino"]["block_length"] == 0


@pytest.mark.parametrize(
    ("name", "change", "good", "bad"),
    [
        ("math-vision", {"options": ["A", "B", "C"], "answer": "C"}, "\\boxed{C}", "\\boxed{B}"),
        ("math-vision", {"options": ["3", "5"], "answer": "B"}, "\\boxed{5}", "\\boxed{3}"),
        ("mathvista-mini", {"question_type": "multi_choice", "choices": ["yes", "no"], "answer": "no"}, "B", "A"),
        ("mathvista-mini", {"precision": None, "answer": "[1, 2]", "unit": None}, "\\boxed{[1, 2]}", "\\boxed{[1, 3]}"),
        ("mathvista-mini", {"precision": 0, "answer": "5"}, "\\boxed{5}", "\\boxed{5.6}"),
        (
            "mmmu-val",
            {"question_type": "open", "options": "[]", "answer": "['8', 'eight']"},
            "\\boxed{Eight}",
            "\\boxed{9}",
        ),
        ("ai2d", {"answer": "C"}, "\\boxed{C}", "\\boxed{B}"),
    ],
)
def test_other_kinds_of_rows(tmp_path: Path, name: str, change: dict[str, Any], good: str, bad: str) -> None:
    row = with_picture(name, base64.b64encode(png()).decode()) | change
    task, item = load_one(tmp_path, row, name)
    assert task.grade(item, good) and not task.grade(item, bad)


def test_pictures_named_in_a_question(tmp_path: Path) -> None:
    text = base64.b64encode(png()).decode()
    row = with_picture("mmmu-val", text) | {"question": "See <image 2>.", "options": "['x', 'y']"}
    row["image_2"] = base64.b64encode(png("blue")).decode()
    task, item = load_one(tmp_path, row, "mmmu-val")
    assert [open_image(picture).getpixel((0, 0)) for picture in task.picture(item)] == [(0, 0, 255)]
    assert item.prompt.startswith("See .\nA. x")
    row["question"] = "Is <image 2> darker than <image 1>?"
    task, item = load_one(tmp_path, row, "mmmu-val")
    assert item.prompt.startswith("Is (image 1) darker than (image 2)?") and len(task.picture(item)) == 2


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("flickr30k", {"caption": []}, "caption: expected one or more texts"),
        ("flickr30k", {"image": "nowhere.png"}, r"image: expected base64 or a file beside the data, no .*nowhere.png"),
        ("flickr30k", {"image": 3}, "image: expected bytes, base64, a file name or a picture, got int"),
        ("flickr30k", {"image": {"bytes": None, "path": None}}, "image: expected bytes, .* got NoneType"),
        ("ai2d", {"answer": "7"}, "answer: expected one of A, B, C, got '7'"),
        ("ai2d", {"options": "a, b"}, "options: expected a list, got 'a, b'"),
        ("scienceqa-img", {"answer": 2}, "answer: expected the number of one of 2 choices, got 2"),
        ("scienceqa-img", {"choices": []}, "answer: expected the number of one of 0 choices"),
        ("mathvista-mini", {"question_type": "multi_choice"}, "options: expected a list, got NoneType"),
        ("mmmu-val", {"question": "<image 5>"}, "not an item of mmmu-val"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, name: str, change: dict[str, Any], message: str) -> None:
    row = with_picture(name, base64.b64encode(png()).decode()) | change
    with pytest.raises(ValueError, match=message) as caught:
        load_one(tmp_path, row, name)
    assert str(caught.value).startswith(f"{tmp_path / 'data.jsonl'}, line 1")


def test_several_pictures_reach_the_prompt(tmp_path: Path) -> None:
    """The second picture of two is encoded, and a diagram is squashed where a photograph is cut."""
    processor = build_corpus().processor
    wide = Image.new("RGB", (96, 48), "black")
    wide.paste((255, 255, 255), (0, 0, 24, 48))
    buffer = io.BytesIO()
    wide.save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    codes = processor.codes([wide], "squash")[0]
    assert not codes.equal(processor.codes([wide], "crop")[0])
    layout = processor.layout
    for name, fit, number in (("mmmu-val", "squash", 2), ("flickr30k", "crop", 1)):
        task, item = load_one(tmp_path, with_picture(name, text), name)
        assert task.fit == fit
        item = type(item)(item.key, "how many ?", "", item.metadata)
        ids, mask = encode_items(processor, task, [item])
        wanted = [processor.codes([wide], task.fit)[0]] * number
        assert mask.all() and ids[0].tolist() == layout.about_picture(wanted, "how many ?")


def test_flickr_is_scored_by_cider(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    rows = [with_picture("flickr30k", base64.b64encode(png()).decode()) for _ in range(2)]
    rows[1]["caption"] = ["two boats on a lake"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = get_task("flickr30k")
    items = task.load(path)
    right = task.scores(items, ["a dog runs", "two boats on a lake"])["cider"]
    assert right > task.scores(items, ["two boats on a lake", "a dog runs"])["cider"] == 0.0


@pytest.mark.parametrize(
    ("row", "answer", "good", "bad"),
    [
        ({"query_image": 1, "question": "How many?", "choices": "", "answer": "7"}, "7", "\\boxed{7}", "\\boxed{8}"),
        ({"query_image": 1, "question": "Q", "choices": ["3", "1", "2"], "answer": 1}, "B", "\\boxed{B}", "\\boxed{C}"),
        ({"query_image": 1, "question": "Q", "choices": ["3", "1", "2"], "answer": "1"}, "B", "B", "C"),
        ({"query_image": 1, "question": "Q", "choices": "['a, b', 'c']", "answer": "a, b"}, "A", "A", "\\boxed{c}"),
        ({"images": [1], "problem": "<image>Q?\nA. red\nB. blue", "answer": "B"}, "B", "\\boxed{blue}", "\\boxed{red}"),
        (
            {"query_image": 1, "question": "Q", "choice_image_0": 1, "choice_image_1": 1, "answer": "choice_1.png"},
            "B",
            "\\boxed{picture 3}",
            "\\boxed{picture 2}",
        ),
    ],
)
def test_iconqa_in_the_layouts_it_comes_in(
    tmp_path: Path, row: dict[str, Any], answer: str, good: str, bad: str
) -> None:
    picture = base64.b64encode(png()).decode()
    image = {"image": None, "images": [picture]}
    filled = {name: image.get(name, picture) if "image" in name else value for name, value in row.items()}
    path = tmp_path / "iconqa.jsonl"
    path.write_text(json.dumps(filled) + "\n")
    task = get_task("iconqa")
    item = task.load(path)[0]
    assert item.answer == answer and task.grade(item, good) and not task.grade(item, bad)
    assert len(task.picture(item)) == sum("image" in name for name in row)
    if "problem" in row:
        assert item.prompt.splitlines()[:3] == ["Q?", "A. red", "B. blue"]
