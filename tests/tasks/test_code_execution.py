"""Programs that a model wrote: what passes, and what does not get away."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from wino.tasks import get_task
from wino.tasks.execution import passes

CANDIDATE = "def add(a, b):\n    return a + b\n"
TESTS = "assert add(1, 2) == 3\n"


def test_a_correct_program_passes() -> None:
    assert passes(CANDIDATE + TESTS)
    assert passes("import math, re, collections\n" + CANDIDATE + TESTS)


@pytest.mark.parametrize(
    "program",
    [
        "def add(a, b): return a - b\n" + TESTS,
        "def add(a, b:\n",
        "",
        "raise SystemExit(0)\n" + TESTS,
        "import sys; sys.exit(0)\n" + TESTS,
        "import os; os._exit(0)\n" + TESTS,
        "print('passed')\nquit()\n",
        "import builtins; builtins.AssertionError = type('A', (BaseException,), {})\nassert False\n",
        "import os; os.abort()\n",
        "\x00",
    ],
)
def test_programs_that_do_not_reach_their_end_fail(program: str) -> None:
    assert not passes(program) or program == ""


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass\n",
        "import time; time.sleep(1000)\n",
        "x = [0] * 10**10\n",
        "x = 'a'\nwhile True: x += x\n",
        "import sys\nwhile True: sys.stdout.write('x' * 10**6)\n",
        "open('big', 'wb').write(b'x' * (1 << 28))\n",
        "import subprocess; subprocess.Popen(['sleep', '1000']); import time; time.sleep(1000)\n",
        "import signal\nfor s in (1, 2, 3, 15, 24):\n    signal.signal(s, signal.SIG_IGN)\nwhile True: pass\n",
        "input()\n",
        "def f(): return f()\nf()\n",
    ],
)
def test_programs_out_of_bounds_fail_in_time(program: str) -> None:
    began = time.monotonic()
    assert not passes(program + TESTS, seconds=2)
    assert time.monotonic() - began < 30


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "folders"  # not those that another test's programs run in at the same time
    own.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(own))
    passes("open('here', 'w').write('x')\nimport os\nos.fork() or __import__('time').sleep(100)\n", seconds=2)
    assert not list(own.iterdir())
    marker = tmp_path / "alive"
    child = f"import os, time\nif os.fork() == 0:\n    time.sleep(3)\n    open({str(marker)!r}, 'w').close()\n"
    passes(child, seconds=1)
    time.sleep(4)
    assert not marker.exists()


def test_environment_and_input_are_empty() -> None:
    os.environ["WINO_SECRET"] = "x"
    try:
        assert passes("import os, sys\nassert 'WINO_SECRET' not in os.environ\nassert sys.stdin.read() == ''\n")
        assert passes("import os\nassert os.listdir() == ['program.py']\n")
    finally:
        del os.environ["WINO_SECRET"]


def test_humaneval_and_mbpp_need_permission_and_then_grade() -> None:
    from test_text_tasks import ROWS

    for name, good, bad in (
        ("humaneval", "```python\ndef twice(x):\n    return 2 * x\n```", "```python\ndef twice(x):\n    return x\n```"),
        ("mbpp", "```python\ndef add(a, b):\n    return a + b\n```", "def add(a, b): return a"),
    ):
        task = get_task(name)
        item = task.item(ROWS[name])
        with pytest.raises(ValueError, match=f"task {name}: grading runs programs .* --allow-code-execution"):
            task.grade(item, good)
        task.allow_code_execution()
        assert task.grade(item, good) and not task.grade(item, bad)
        assert not task.grade(item, "") and not task.grade(item, "import sys; sys.exit(0)")
        assert not get_task(name)._allowed
    task = get_task("humaneval")
    task.allow_code_execution()
    assert task.grade(task.item(ROWS["humaneval"]), "    return 2 * x\n")
