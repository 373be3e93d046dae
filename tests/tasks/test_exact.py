"""Anybody's questions and answers, and the papers' prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_text_tasks import ROWS
from typer.testing import CliRunner

import wino
from wino.cli import app
from wino.tasks import TEXT_TASK_NAMES, get_task
from wino.tasks.evaluation import encode_items

RIGHT = [
    "Paris",
    "paris.",
    "  PARIS  ",
    "**Paris**",
    '"Paris"',
    "\\boxed{Paris}",
    "It is \\boxed{ paris }, not Rome",
    "<answer>Paris</answer>",
    "Thinking.\n\nParis\n\n",
    "Rome? No.\nThe answer is Paris.",
    "The answer is: Paris",
    "Answer: Paris",
    "\uff30aris",
]
WRONG = ["", "Rome", "Paris, France", "Paris or Rome", "\\boxed{Rome} Paris", "Paris\nRome", "not Paris", "Par is", "."]


def test_what_counts_as_equal() -> None:
    task = get_task("exact")
    item = task.item({"question": "Capital of France?", "answer": "Paris"})
    assert item.prompt == "Capital of France?"
    assert {text: task.grade(item, text) for text in RIGHT} == dict.fromkeys(RIGHT, True)
    assert {text: task.grade(item, text) for text in WRONG} == dict.fromkeys(WRONG, False)
    several = task.item({"prompt": "New?", "target": ["New  York", "NYC"]})
    assert task.grade(several, "new york") and task.grade(several, "NYC") and not task.grade(several, "York")
    assert task.grade(item, "\\boxed{\\text{Paris}}") and not task.grade(item, "\\boxed{\\text{Rome}}")
    point = task.item({"question": "Half?", "answer": ".5"})
    assert [task.grade(point, text) for text in (".5", "**.5**", "5", "5.", "-.5")] == [True, True, False, False, False]
    lines = task.item({"question": "Rows?", "answer": "a b\nc d"})
    assert task.grade(lines, "A b\nC d") and not task.grade(lines, "c d")


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"q": "a", "answer": "b"}, {}, r"question: expected one of the columns question, prompt, .* got q, answer"),
        (
            {"question": "a", "a": "b"},
            {},
            r"answer: expected one of the columns .*--answer-column names another",
        ),
        ({"question": "a", "answer": "b"}, {"question_column": "q"}, r"expected the column q .* got question, answer"),
        ({"question": "a", "answer": None}, {}, "column answer: expected a value, got null"),
        ({"question": 3, "answer": "b"}, {}, "expected a question and an answer as text, got 3"),
        ({"question": "a", "answer": " "}, {}, "expected a question and an answer as text"),
        ({"question": "a", "answer": []}, {}, "expected a question and an answer as text"),
    ],
)
def test_rows_without_them_are_named(tmp_path: Path, row: dict, columns: dict, message: str) -> None:
    task = get_task("exact")
    task.ask(**columns)
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=message) as caught:
        task.load(path)
    assert str(caught.value).startswith(f"{path}, line 1")


def test_command_line(tmp_path: Path) -> None:
    data, report = tmp_path / "mine.csv", tmp_path / "report.json"
    asked, said = "sum 34+08-15+27-01", "034+08=042;042-15=027;027+27=054;054-01=053"
    data.write_text(f"ask,say\r\n{asked},{said}\r\n{asked},053\r\n")
    command = [
        "eval",
        "--task",
        "exact",
        "--data",
        str(data),
        "--decoder",
        "wino",
        "--max-new-tokens",
        "48",
        "--device",
        "cpu",
    ]
    run = CliRunner().invoke(
        app, [*command, "--question-column", "ask", "--answer-column", "say", "--json", str(report)]
    )
    assert run.exit_code == 0, run.output
    (result,) = json.loads(report.read_text())["results"]
    assert result["correct"] == [True, False] and result["accuracy"] == 0.5
    for wrong in (
        [*command, "--question-column", "nowhere"],
        [*command, "--prompt-style", "published"],
        ["eval", "--task", "gsm8k", "--data", str(data), "--question-column", "ask"],
        ["eval", "--task", "sum", "--n", "1", "--prompt-style", "published"],
        ["eval", "--task", "ai2d", "--data", str(data), "--prompt-style", "published"],
    ):
        run = CliRunner().invoke(app, wrong)
        assert run.exit_code == 2 and len(run.output.strip().splitlines()) <= 4, run.output


OPENINGS = {"humaneval": "Here is the completed function:\n```python\n", "mbpp": ">>> Code:\n```python\n"}


@pytest.mark.parametrize("name", TEXT_TASK_NAMES)
def test_published_prompts(name: str) -> None:
    """Each differs from ours, has the row in it, and begins the reply as the released code does."""
    task = get_task(name)
    own = task.item(ROWS[name])
    task.ask(prompt_style="published")
    item = task.item(ROWS[name])
    assert own.opening == "" and item.prompt != own.prompt
    assert (item.answer, item.metadata) == (own.answer, own.metadata)
    assert item.opening.startswith(OPENINGS.get(name, "<reasoning>"))
    shown = {"countdown-text": "Numbers: [3, 5, 7]\nTarget: 26", "arc-e": "Hot?\nA. ice\nB. sun\nC. sea"}
    row = ROWS[name]
    asked = next((row[k] for k in ("question", "problem", "Puzzle", "prompt", "text") if k in row), "")
    assert shown.get(name, asked) in item.prompt
    with pytest.raises(ValueError, match=f"prompt_style: task {name} has own or published, got 'other'"):
        task.ask(prompt_style="other")


def test_graders_read_replies_to_published_prompts() -> None:
    for name, good, bad in (
        ("gsm8k", "Two and three.\n</reasoning>\n<answer>\n\\boxed{1005}\n</answer>", "</reasoning>\\boxed{5}"),
        ("sudoku-text", "</reasoning>\n<answer>\n2431134231244213\n</answer>", "<answer>\n2431134231244231\n</answer>"),
        ("arc-e", "</reasoning>\n<answer>\n\\boxed{B}\n</answer>", "</reasoning>\n<answer>\n\\boxed{A}\n</answer>"),
        ("humaneval", "    return 2 * x\n```\nIt doubles x.", "    return x\n```\nIt doubles x."),
        ("mbpp", "def add(a, b):\n    return a + b\n```\n", "def add(a, b):\n    return a\n```\n"),
    ):
        task = get_task(name)
        task.ask(prompt_style="published")
        if hasattr(task, "allow_code_execution"):
            task.allow_code_execution()
        item = task.item(ROWS[name])
        assert task.grade(item, good) and not task.grade(item, bad), name


def test_a_reply_begins_with_the_opening() -> None:
    _, tokenizer = wino.load("wino-tiny", device="cpu")
    task = get_task("exact")
    item = task.item({"question": "sum 1+2", "answer": "3"})
    plain, _ = encode_items(tokenizer, task, [item])
    opened = type(item)(item.key, item.prompt, item.answer, item.metadata, opening="12")
    ids, mask = encode_items(tokenizer, task, [item, opened])
    more = tokenizer("12", add_special_tokens=False)["input_ids"]
    assert torch.equal(ids[1, : -len(more)], plain[0]) and ids[1, -len(more) :].tolist() == more
    assert mask.sum(1).tolist() == [plain.shape[1], plain.shape[1] + len(more)]
