"""What long work says of itself where nobody looks at a terminal."""

from __future__ import annotations

import pytest

from wino import progress
from wino.progress import ProgressReport


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_plain_line_now_and_then(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressReport("sudoku", 1000, done=200) as report:
        for _ in range(8):
            clock[0] += 10
            report.advance(50)
    assert capsys.readouterr().err.splitlines() == [
        "sudoku: 350 of 1000, 30 s, about 2 min 10 s left",
        "sudoku: 500 of 1000, 1 min 0 s, about 1 min 40 s left",
    ]


def test_short_work_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressReport("sudoku", 3) as report:
        for _ in range(3):
            clock[0] += 9
            report.advance()
    assert capsys.readouterr() == ("", "")


def test_a_note_and_a_long_time(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressReport("training", 4) as report:
        clock[0] += 7200
        report.update(2, "loss 0.5")
        clock[0] += 60
        report.update(4)
    assert capsys.readouterr().err.splitlines() == [
        "training: 2 of 4, 2 h 0 min, about 2 h 0 min left, loss 0.5",
        "training: 4 of 4, 2 h 1 min, loss 0.5",
    ]


def test_the_end_is_not_nothing_left(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressReport("x", 10) as report:
        clock[0] += 31
        report.update(note="still loading")
    assert capsys.readouterr().err == "x: 0 of 10, 31 s, still loading\n"
