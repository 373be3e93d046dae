"""The eight text tasks: loading of published files, and graders on good, bad and hostile answers."""

from __future__ import annotations

import csv
import json
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wino.cli.errors import BadInputError
from wino.cli.evaluate import select_configs, select_items
from wino.tasks import TEXT_TASK_NAMES, answers, get_task

ROWS: dict[str, dict[str, Any]] = {
    "gsm8k": {"question": "2 + 3?", "answer": "2 + 3 = <<2+3=5>>5\n#### 1,005"},
    "math500": {"problem": "Half?", "answer": "\\frac{1}{2}"},
    "countdown-text": {"input": "3,5,7", "output": "26"},
    "sudoku-text": {"Puzzle": "0431134030240000", "Solution": "2431134231244213"},
    "arc-e": {
        "question": "Hot?",
        "choices": {"label": ["A", "B", "C"], "text": ["ice", "sun", "sea"]},
        "answerKey": "B",
    },
    "arc-c": {"question": "Hot?", "choices": {"label": ["1", "2"], "text": ["ice", "sun"]}, "answerKey": "2"},
    "humaneval": {
        "task_id": "HumanEval/0",
        "prompt": 'def twice(x):\n    """2 x"""\n',
        "test": "def check(candidate):\n    assert candidate(2) == 4\n",
        "entry_point": "twice",
    },
    "mbpp": {"text": "Add.", "test_list": ["assert add(1, 2) == 3"], "code": "def add(a, b): return a + b"},
}
GOOD = {
    "gsm8k": ["so \\boxed{1005}", "#### 1005", "It is 1,005.", "\\boxed{\\text{1005 apples}}", "7\n#### 1005.0"],
    "math500": [
        "\\boxed{\\frac12}",
        "\\boxed{0.5}",
        "so $\\boxed{\\dfrac{1}{2}}$.",
        "\\boxed{1/2}",
        "\\boxed{x=\\frac{2}{4}}",
    ],
    "countdown-text": [
        "\\boxed{3*7+5}",
        "\\boxed{(7 \\times 3) + 5}",
        "<answer>5+7*3</answer>",
        "\\boxed{5 + 3*7 = 26}",
    ],
    "sudoku-text": ["<answer>2431134231244213</answer>", "it is 2431134231244213", "<answer>2431 1342 3124 4213"],
    "arc-e": ["\\boxed{B}", "The answer is B.", "B", "Answer: (B)", "\\boxed{B. sun}", "<answer>B</answer>"],
    "arc-c": ["\\boxed{2}", "The answer is 2."],
}
BAD = {
    "gsm8k": ["", "none", "\\boxed{1006}", "#### 5 then", "\\boxed{}", "1005 or 1006"],
    "math500": ["1/2", "\\boxed{2}", "\\boxed{}", "\\boxed{\\frac{1}{0}}", "\\boxed{\\frac{1}{2}", ""],
    "countdown-text": [
        *("\\boxed{26}", "\\boxed{3*7+5+0}", "\\boxed{7*3}", "\\boxed{3*7+5*1}", "\\boxed{33-7}", "3*7+5", ""),
        *("\\boxed{3*7+5; 1}", "\\boxed{3*7+(5}", "\\boxed{3**3-1}", "\\boxed{03*7+5}", "\\boxed{[3*7+5][0]}"),
    ],
    "sudoku-text": ["<answer>2431134231244214</answer>", "", "24311342312442130", "<answer>1431134231244213</answer>"],
    "arc-e": ["", "\\boxed{A}", "A or B", "\\boxed{D}", "Because it is A and B", "not sure"],
    "arc-c": ["\\boxed{1}", "1 or 2", ""],
}
HOSTILE = [
    "9**9**9**9",
    "\\boxed{9**9**9}",
    "\\boxed{" * 20000,
    "\\boxed{" + "(" * 5000 + "1" + ")" * 5000 + "}",
    "\\boxed{__import__('os').system('touch /tmp/owned')}",
    "\\boxed{exec('import os')}",
    "\\boxed{1e999999999}",
    "\\boxed{" + "9" * 100_000 + "}",
    "#### " + "9" * 100_000,
    "\\boxed{nan}",
    "\\boxed{inf}",
    "\\boxed{\u0661\u0660\u0660\u0665}",  # Arabic digits
    "\\boxed{1/0}",
    "\\boxed{5/(3-3)*7}",
    "<answer>" * 10_000,
    "a" * 1_000_000,
    "1" * 1_000_000,
    "{" * 500_000 + "}" * 500_000,
    "$" * 100_000,
    "\x00\ud800",
    "```python\n" * 10_000,
]


def item_of(name: str) -> Any:
    return get_task(name).item(ROWS[name])


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in GOOD.items() for text in texts])
def test_good_answers(name: str, text: str) -> None:
    assert get_task(name).grade(item_of(name), text)


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BAD.items() for text in texts])
def test_bad_answers(name: str, text: str) -> None:
    assert not get_task(name).grade(item_of(name), text)


@pytest.mark.parametrize("name", GOOD)
def test_hostile_answers_are_wrong_and_soon(name: str) -> None:
    task, item = get_task(name), item_of(name)
    began = time.process_time()
    for text in HOSTILE:
        assert not task.grade(item, text), text[:40]
    assert time.process_time() - began < 5
    assert not Path("/tmp/owned").exists()


@given(st.text())
def test_any_text_is_graded(text: str) -> None:
    for name in GOOD:
        get_task(name).grade(item_of(name), text)
        get_task(name).grade(item_of(name), f"\\boxed{{{text}}}")


def test_numbers_expressions_and_letters() -> None:
    assert answers.number("a 1,234.50 b") == Fraction(2469, 2)
    assert answers.number("-7") == -7 and answers.number("none") is None
    assert answers.expression("2 * (3 + 4) / 7") == (Fraction(2), [2, 3, 4, 7])
    assert answers.expression("-2 + 3") == (Fraction(1), [2, 3])
    for text in ("", "a", "1e3", "1_0", "0x10", "1.5", "()", "2 3", "1,2", "2**3", "7//2", "1/0", "f(2)"):
        assert answers.expression(text) is None, text
    assert answers.boxed("\\boxed{a{b}c} and \\boxed{d") == "a{b}c"


def write(path: Path, row: dict[str, Any]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text(json.dumps(row) + "\n\n" + json.dumps(row) + "\n")
    elif path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            flat = {name: v if isinstance(v, str) else json.dumps(v) for name, v in row.items()}
            writer.writerows([flat, flat])
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist([row, row]), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("name", TEXT_TASK_NAMES)
def test_items_load_from_every_kind_of_file(tmp_path: Path, name: str, suffix: str) -> None:
    items = get_task(name).load(write(tmp_path / f"data{suffix}", ROWS[name]))
    assert len(items) == 2 and items[0].prompt and items[0].prompt == items[1].prompt
    assert items[0].key == items[1].key and items[0].key.startswith(f"{name}:")
    assert all(item.where.startswith(f"{tmp_path}/data{suffix}, ") for item in items)
    assert items[0].where != items[1].where
    if name in GOOD:
        assert all(get_task(name).grade(items[0], text) for text in GOOD[name])


@pytest.mark.parametrize("name", TEXT_TASK_NAMES)
def test_missing_columns_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(ROWS[name]) + "\n" + json.dumps({"other": 1}) + "\n")
    with pytest.raises(ValueError, match=r"data.jsonl, line 2: expected the columns .*, got other"):
        get_task(name).load(path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gsm8k", {"answer": "five"}, "answer: expected a solution that ends in '#### number'"),
        ("countdown-text", {"input": "1,x"}, "not an item of countdown-text"),
        ("sudoku-text", {"Solution": "1" * 16}, "expected a 16-digit puzzle and its solution"),
        ("arc-e", {"answerKey": "Z"}, "answerKey: expected one of A, B, C, got 'Z'"),
        ("arc-e", {"choices": [1]}, "not an item of arc-e"),
        ("humaneval", {"entry_point": "a; b"}, "entry_point: expected a function's name"),
        ("mbpp", {"test_list": []}, "expected a question in text or prompt, and assertions"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, name: str, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(ROWS[name] | change) + "\n")
    with pytest.raises(ValueError, match=message) as caught:
        get_task(name).load(path)
    assert str(caught.value).startswith(f"{path}, line 1")


def test_countdown_of_the_hub_has_other_column_names(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"nums": [3, 5, 7], "target": 26}) + "\n")
    (item,) = get_task("countdown-text").load(path)
    assert (item.metadata["numbers"], item.metadata["target"]) == ([3, 5, 7], 26)


def test_bad_files(tmp_path: Path) -> None:
    task = get_task("gsm8k")
    (tmp_path / "a.jsonl").write_text("{")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 not")
    (tmp_path / "c.txt").write_text("")
    with pytest.raises(ValueError, match=r"a.jsonl, line 1: not JSON"):
        task.load(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=r"b.parquet: not a readable Parquet file"):
        task.load(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"c.txt: expected a .jsonl, .csv or .parquet file"):
        task.load(tmp_path / "c.txt")
    with pytest.raises(ValueError, match=r"hf:gsm8k: expected hf:owner/name/split"):
        task.load(Path("hf:gsm8k"))
    with pytest.raises(FileNotFoundError):
        task.load(tmp_path / "none.jsonl")


def test_items_are_not_generated_and_settings_are_the_papers() -> None:
    for name, threshold in {"gsm8k": 0.6, "math500": 0.7, "humaneval": 0.7, "mbpp": 0.8, "countdown-text": 0.5,
                            "sudoku-text": 0.7, "arc-e": 0.5, "arc-c": 0.5}.items():  # fmt: skip
        task = get_task(name)
        config = select_configs(task, {"decoder": "wino"}, {})["wino"]
        assert (config.threshold, config.threshold_back) == (threshold, 0.9)
        assert (config.max_new_tokens, config.block_length) == (256, 128)
        with pytest.raises(ValueError, match=r"name a file with --data|--allow-code-execution"):
            select_items(task, None, "heldout", 0, 3)
    assert BadInputError.__mro__[1] is ValueError
