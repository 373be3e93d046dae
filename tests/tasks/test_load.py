"""Published test files: the formats that are read, and what is said about files that are not in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from wino.tasks import TASKS, get_task

GRID = "1234341221434321"
PUZZLE = "0230341221434321"


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "data"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_sudoku_csv(tmp_path: Path, newline: str, mark: bytes) -> None:
    text = newline.join(["Puzzle,Solution", f"{PUZZLE},{GRID}", f"{PUZZLE.lstrip('0')},{GRID}", ""])
    items = get_task("sudoku").load(written(tmp_path, mark + text.encode()))
    assert [item.key for item in items] == [f"sudoku:{PUZZLE}"] * 2
    assert items[0].prompt == f"sudoku {PUZZLE}" and items[0].answer == GRID
    assert get_task("sudoku").grade(items[0], GRID)


def test_countdown_json_lines(tmp_path: Path) -> None:
    lines = ('{"input": "30,100,93", "output": "23"}', "", '{"input": "90, 43, 90", "output": 43}')
    lines += ('{"input": "9,9,9", "output": "1"}', "")
    items = get_task("countdown").load(written(tmp_path, "\n".join(lines)))
    assert [item.key for item in items] == ["countdown:30,93,100=23", "countdown:43,90,90=43", "countdown:9,9,9=1"]
    assert items[0].prompt == "countdown 030,093,100:023"
    assert get_task("countdown").grade(items[1], items[1].answer)
    assert items[2].answer == ""  # beyond plus and minus


def test_sum_json_lines(tmp_path: Path) -> None:
    items = get_task("sum").load(written(tmp_path, '{"input": "34+08-15+27-01"}\n'))
    assert items[0].answer.startswith("034+08=042;")


@pytest.mark.parametrize(
    ("task", "content", "told"),
    [
        ("sudoku", "Question,Answer\n1,2\n", "line 2: expected the columns Puzzle, Solution, got Question, Answer"),
        (
            "sudoku",
            f"Puzzle,Solution\n{PUZZLE},{GRID}\n{PUZZLE}\n",
            "line 3: column Solution: expected a",
        ),
        (
            "sudoku",
            f"Puzzle,Solution\n5{PUZZLE[1:]},{GRID}\n",
            "line 2: not an item of sudoku (expected a",
        ),
        (
            "sudoku",
            f"Puzzle,Solution\n2{PUZZLE[1:]},{GRID}\n",
            "line 2: not an item of sudoku (expected a 16",
        ),
        (
            "sudoku",
            f"Puzzle,Solution\n{PUZZLE},{PUZZLE}\n",
            "line 2: not an item of sudoku (expected a",
        ),
        (
            "sudoku",
            "Puzzle,Solution\n" + "1" * 200_000 + ",2\n",
            "line 2: not an item of sudoku (expected a",
        ),
        ("sudoku", b"Puzzle,Solution\n\xff\n", "line 2: expected UTF-8 text, got the byte 0xff"),
        ("countdown", "30,100,93\n", "line 1: not JSON, got 30,100,93"),
        ("countdown", '{"input": "30,100,93"}\n', "line 1: expected the columns input, output, got input"),
        (
            "countdown",
            '\n{"input": "30,100", "output": "23"}\n',
            "line 2: not an item of countdown (expected three",
        ),
        (
            "countdown",
            '{"input": "30,100,1000", "output": "23"}\n',
            "line 1: not an item of countdown (expected three",
        ),
        (
            "countdown",
            '{"input": "30,100,-93", "output": "23"}\n',
            "line 1: not an item of countdown (expected three",
        ),
        ("countdown", '{"input": "30,100,93", "output": 23.5}\n', "line 1: not an item of countdown (expected {"),
        ("countdown", '{"input": "30,100,93", "output": Infinity}\n', "line 1: not an item of countdown (expected {"),
        ("countdown", '{"input": [30, 100, 93], "output": "23"}\n', "line 1: not an item of countdown (expected {"),
        ("countdown", "[" * 100_000 + "\n", "line 1: not JSON"),
        ("countdown", b"\x80\n", "line 1: expected UTF-8 text, got the byte 0x80"),
        ("sum", '{"input": 5}\n', "line 1: not an item of sum (sum: expected 5 two-digit numbers"),
        ("sum", '["34+08-15+27-01"]\n', "line 1: expected an object"),
        (
            "sum",
            '{"input": "10-20+30+40+50"}\n',
            "line 1: not an item of sum (sum: the running total",
        ),
    ],
)
def test_other_files_are_refused_with_their_line(tmp_path: Path, task: str, content: str | bytes, told: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(ValueError) as caught:
        get_task(task).load(path)
    assert told in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("task", TASKS)
def test_a_missing_file_is_an_os_error(tmp_path: Path, task: str) -> None:
    with pytest.raises(FileNotFoundError):
        get_task(task).load(tmp_path / "absent")
