"""Answers in mathematics: a table of right and wrong ones, and what no answer can do to the run."""

from __future__ import annotations

import csv
import importlib.util
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wino.cli import app
from wino.tasks import get_task, mathematics
from wino.tasks.mathematics import same_mathematics

TRIPLES = Path(__file__).with_name("triples") / "mathematics.tsv"

HOSTILE = [
    "9^{9^{9^9}}",
    "1000000!^{1000000!}",
    "2^" * 200 + "2",
    "(" * 10_000 + "1" + ")" * 10_000,
    "(" * 240 + "1" + ")" * 240,
    "{" * 240 + "1" + "}" * 240,
    r"\sqrt{" * 70 + "1" + "}" * 70,
    r"\frac{1}{" * 50 + "2" + "}" * 50,
    r"\sum_{n=1}^{10^{12}} \frac{1}{n^7+n+1}",
    r"\int_0^1 e^{-x^{x^x}}dx",
    r"\binom{10^9}{5\cdot10^8}",
    "(x+y+z+w)^{200}",
    "[" * 480,
    "\\" * 480,
    "0.\\overline{" * 40,
    "a=b=" * 120,
    "1\\pm" * 24 + "1",
    "{" * 500_000 + "}" * 500_000,
    "__import__('os').system('touch /tmp/owned')",
    "\x00\ud800",
]


def triples() -> list[dict[str, str]]:
    with open(TRIPLES, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_every_triple_gets_its_verdict() -> None:
    table = triples()
    assert min(Counter(row["verdict"] for row in table).values()) >= 120
    wrong = [row for row in table if same_mathematics(row["answer"], row["gold"]) is not (row["verdict"] == "1")]
    assert not wrong


def test_exceptions_are_explained_by_name() -> None:
    names = {row["exception"] for row in triples()} - {""}
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
    assert names and all(f"*{name}*" in page for name in names)


@pytest.mark.parametrize("gold", [row["gold"] for row in triples()[::40]])
def test_an_answer_is_read_out_of_its_box(gold: str) -> None:
    task = get_task("math500")
    item = task.item({"problem": "?", "answer": gold})
    assert task.grade(item, f"Thus $x = 7$ and so \\[\\boxed{{{gold}}}.\\]")
    assert not task.grade(item, f"Thus {gold}") and not task.grade(item, "\\boxed{q^9+17}")


def test_hostile_answers_are_wrong_and_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mathematics, "_SECONDS", 0.3)
    for text in HOSTILE:
        began = time.monotonic()
        assert not same_mathematics(text, "x+7"), text[:40]
        assert time.monotonic() - began < 120, text[:40]  # a new process among other load
    monkeypatch.undo()
    assert same_mathematics("7+x", "x+7") and not Path("/tmp/owned").exists()


def test_memory_is_bounded() -> None:
    """The process that compares refuses to grow, and the next comparison finds one."""
    assert same_mathematics("1+y", "y+1")
    process = mathematics._WORKER._process
    assert process is not None
    limits = Path(f"/proc/{process.pid}/limits")
    if limits.exists():
        assert f"{2 << 30}" in next(line for line in limits.read_text().splitlines() if "address space" in line)
    process.kill()
    process.wait()
    assert same_mathematics("2+y", "y+2") and not same_mathematics("2+y", "y+3")


def test_threads_and_forks_do_not_share_a_reply() -> None:
    wrong: list[str] = []

    def compare(k: int) -> None:
        for n in range(8):
            right = (k + n) % 2 == 0
            if same_mathematics(f"{n}z+{k}", f"{k}+{n}z" if right else f"{k}-{n + 1}z") is not right:
                wrong.append(f"{k} {n}")

    threads = [threading.Thread(target=compare, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    child = os.fork()
    if child == 0:
        fine = same_mathematics("3w+1", "1+3w") and not same_mathematics("3w+1", "1-3w")
        os._exit(0 if fine else 1)
    for thread in threads:
        thread.join()
    assert os.waitpid(child, 0)[1] == 0 and not wrong


def test_without_the_library_nothing_is_graded(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = r"compared by math-verify: pip install 'wino-kernels\[eval\]' \("
    monkeypatch.setattr(mathematics, "_WORKER", mathematics._Worker())
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site-packages" not in entry])
    with pytest.raises(ValueError, match=needs):
        same_mathematics("x^2+5", "5+x^2")
    monkeypatch.undo()
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *of: None if name == "math_verify" else found(name, *of)
    )
    for name in ("math500", "math-vision", "mathvista-mini", "mmmu-val"):
        with pytest.raises(ValueError, match=needs):
            get_task(name)
    run = CliRunner().invoke(app, ["eval", "--task", "math500", "--data", "nowhere.jsonl"])
    assert run.exit_code == 2 and "pip install 'wino-kernels[eval]'" in " ".join(run.output.split())
