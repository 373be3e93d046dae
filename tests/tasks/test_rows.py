"""Files are read as their format says, every bad row is named, and an item is what it is in whatever file it stands."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from wino.tasks import get_task
from wino.tasks.base import InvalidRowError

GSM8K = get_task("gsm8k")
ODD = "one\u2028two\x85three\x0cfour\x1cfive"
"""What ``str.splitlines`` takes for ends of lines, and no format does."""


def row(question: str = "How many?", answer: str = "#### 7", **more: Any) -> dict[str, Any]:
    return {"question": question, "answer": answer, **more}


def lines(path: Path, *rows: Any, end: str = "\n") -> Path:
    text = "".join((r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + end for r in rows)
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_json_lines_end_at_newlines_alone(tmp_path: Path, end: str, mark: str) -> None:
    path = lines(tmp_path / "a.jsonl", mark + json.dumps(row(ODD), ensure_ascii=False), "", row("b"), end=end)
    first, second = GSM8K.load(path)
    assert first.prompt.startswith(f"{ODD}\n") and second.prompt.startswith("b\n")
    assert [item.where for item in (first, second)] == [f"{path}, line 1", f"{path}, line 3"]
    path.write_bytes(path.read_bytes().rstrip())  # the last line need not end
    assert len(GSM8K.load(path)) == 2


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_csv_cells_may_be_long_and_have_lines(tmp_path: Path, end: str, mark: str) -> None:
    path = tmp_path / "a.csv"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=end)
    long = "x" * 300_000
    writer.writerows([["question", "answer"], [f"a\n{ODD},\"q\"\r\nb", "#### 1"], [long, "#### 2"]])  # fmt: skip
    path.write_bytes((mark + text.getvalue()).encode())
    first, second = GSM8K.load(path)
    assert first.prompt.startswith(f'a\n{ODD},"q"\r\nb\n') and second.prompt.startswith(f"{long}\n")
    assert first.where == f"{path}, line 2" and second.where == f"{path}, line 5"


def test_pictures_in_a_csv_cell(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.effect_noise((512, 512), 90).convert("RGB").save(file, "png")
    text = base64.b64encode(file.getvalue()).decode()
    assert len(text) > 1 << 17
    path = tmp_path / "a.csv"
    path.write_text(f'image,question,options,answer\n{text},Which?,"[""cat"", ""dog""]",1\n')
    task = get_task("ai2d")
    (item,) = task.load(path)
    assert task.picture(item)[0].read() == file.getvalue() and item.answer == "B"


BAD = [
    (b"{", "not JSON, got {"),
    (b"[1]", "expected an object, got [1]"),
    (b'{"question": "\xff"}', "expected UTF-8 text, got the byte 0xff"),
    (b'{"answer": "#### 7"}', "expected the columns question, answer, got answer"),
    (b'{"question": null, "answer": "#### 7"}', "column question: expected a value, got null"),
    (b'{"question": " ", "answer": "#### 7"}', "column question: expected a value, got an empty text"),
    (b'{"question": "a", "answer": "7"}', "not an item of gsm8k (answer: expected a solution that ends in"),
    (b'{"question": "\\ud800", "answer": "#### 7"}', "surrogates not allowed"),
    (b"[" * 100_000, "not JSON"),
    (b'{"question": ' + b"9" * 10_000 + b', "answer": "#### 7"}', "not JSON"),
]


@pytest.mark.parametrize(("bad", "told"), BAD)
def test_a_bad_row_is_named_and_hides_no_other(tmp_path: Path, bad: bytes, told: str) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps(row()).encode()
    path.write_bytes(good + b"\n" + bad + b"\n" + good.replace(b"many", b"few") + b"\n")
    with pytest.raises(InvalidRowError) as caught:
        GSM8K.load(path)
    assert str(caught.value).startswith(f"{path}, line 2: ") and told in str(caught.value)
    skipped: list[str] = []
    assert [item.where[-1] for item in GSM8K.load(path, skipped.append)] == ["1", "3"]
    assert skipped == [str(caught.value)]


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ("a,#### 1,3", "expected 2 cells, as many as the columns of the first line, got 3"),
        ("a", "column answer: expected a value, got null"),
        (",#### 1", "column question: expected a value, got an empty text"),
        ("a\udcff,#### 1", "expected UTF-8 text, got the byte 0xff"),
        ('"a"b,#### 1', "not CSV"),
    ],
)
def test_a_bad_row_of_csv(tmp_path: Path, bad: str, told: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(f"question,answer\nx,#### 1\n{bad}\ny,#### 2\n".encode("utf-8", "surrogateescape"))
    skipped: list[str] = []
    assert [item.where[-1] for item in GSM8K.load(path, skipped.append)] == ["2", "4"]
    assert len(skipped) == 1 and skipped[0].startswith(f"{path}, line 3: ") and told in skipped[0]


def test_a_quote_that_is_never_closed_does_not_swallow_rows_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('question,answer\nx,#### 1\n"y,#### 2\nz,#### 3\n')
    with pytest.raises(InvalidRowError, match=r"line 3: not CSV .unexpected end of data"):
        GSM8K.load(path)


def test_a_bad_row_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    text = pyarrow.array([b"a", b"\xff", None, b"d"]).cast(pyarrow.string(), safe=False)
    answers = pyarrow.array(["#### 1"] * 4)
    parquet.write_table(pyarrow.table({"question": text, "answer": answers}), path)
    skipped: list[str] = []
    assert [item.where for item in GSM8K.load(path, skipped.append)] == [f"{path}, row 1", f"{path}, row 4"]
    assert skipped[0].startswith(f"{path}, row 2: ")
    assert skipped[1:] == [f"{path}, row 3: column question: expected a value, got null"]


def test_rows_are_read_one_at_a_time(tmp_path: Path) -> None:
    rows = GSM8K.read(lines(tmp_path / "a.jsonl", row("a"), row("b"), "{"))
    assert [next(rows).prompt[0], next(rows).prompt[0]] == ["a", "b"]
    with pytest.raises(InvalidRowError, match="line 3"):
        next(rows)


def keys(path: Path, *rows: Any, task: str = "gsm8k") -> list[str]:
    return [item.key for item in get_task(task).load(lines(path, *rows))]


def test_an_item_is_what_it_says_in_whatever_row_of_whatever_file(tmp_path: Path) -> None:
    a = keys(tmp_path / "a.jsonl", row("one"), row("two"))
    b = keys(tmp_path / "b.jsonl", row("two"), row("three"), row("one", "#### 8"), row("two"))
    assert len({*a, *b}) == 4  # the same question with another answer is another item
    assert b[0] == a[1] == b[3]
    parquet.write_table(pyarrow.Table.from_pylist([row("one")]), tmp_path / "c.parquet")
    (tmp_path / "c.csv").write_text("question,answer\none,#### 7\n")
    for name in ("c.parquet", "c.csv"):
        assert [item.key for item in GSM8K.load(tmp_path / name)] == [a[0]]


def test_the_data_s_own_id_stands_beside_the_content(tmp_path: Path) -> None:
    own = [row("one", id="train-1"), row("one", id="train-2"), row("two", id="train-1"), row("one", id=5)]
    found = keys(tmp_path / "a.jsonl", *own)
    assert [key.split(":")[:2] for key in found] == [["gsm8k", name] for name in ("train-1", "train-2", "train-1", "5")]
    assert len(set(found)) == 4
    assert len(keys(tmp_path / "a.jsonl", row("one", id="x" * 10_000))[0]) < 120
    code = {"task_id": "HumanEval/0", "prompt": "def f():\n", "test": "check = 1", "entry_point": "f"}
    first, edited = keys(tmp_path / "a.jsonl", code, {**code, "test": "check = 2"}, task="humaneval")
    assert first.startswith("humaneval:HumanEval/0:") and edited != first  # what is graded by is part of an item


def test_pictures_count_by_their_content(tmp_path: Path) -> None:
    def picture(colour: str) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (4, 4), colour).save(file, "png")
        return file.getvalue()

    (tmp_path / "1.png").write_bytes(picture("red"))
    (tmp_path / "2.png").write_bytes(picture("red"))
    question = {"question": "Which?", "options": ["cat", "dog"], "answer": 1}
    red = base64.b64encode(picture("red")).decode()
    values = ("1.png", "2.png", red, base64.b64encode(picture("blue")).decode())
    found = keys(tmp_path / "a.jsonl", *({**question, "image": value} for value in values), task="ai2d")
    assert found[0] == found[1] == found[2] != found[3]
    (tmp_path / "1.png").write_bytes(picture("blue"))
    assert keys(tmp_path / "a.jsonl", {**question, "image": "1.png"}, task="ai2d") == found[3:]
    decoded = {**question, "image": Image.open(io.BytesIO(picture("red")))}
    assert get_task("ai2d")._item_of(decoded).key == get_task("ai2d")._item_of(decoded).key
