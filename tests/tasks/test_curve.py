"""The accuracy-under-parallelism curve: measured once, compared on the same items, drawn."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import wino
from wino.cli import app
from wino.config import GenerationConfig
from wino.tasks import curve, get_task
from wino.tasks.calibration import binned, plot_reliability, reliability
from wino.tasks.curve import Point, Workbench, compare, markdown_table, plot_curves
from wino.tasks.evaluation import Evaluation

TASK = get_task("countdown")
ITEMS = list(islice(TASK.items("validation"), 24))


def config(decoder: str = "confidence_threshold", **settings: Any) -> GenerationConfig:
    return GenerationConfig(decoder=decoder, max_new_tokens=TASK.max_new_tokens, **settings)


def point(correct: list[bool], steps: list[int], model: str = "base", threshold: float = 0.5) -> Point:
    result = Evaluation([""] * len(correct), correct, [20] * len(correct), steps, 1.0)
    return Point("countdown", model, "wino", config("wino", threshold=threshold), result)


def test_a_measurement_is_kept_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Workbench("base", *wino.load("wino-tiny"), tmp_path)
    told: list[int] = []
    first = bench.run(TASK, ITEMS, config(), on_batch=told.append)
    monkeypatch.setattr(curve, "evaluate", None)
    again = bench.run(TASK, ITEMS, config(), on_batch=told.append)
    assert (again.correct, again.steps, again.tokens) == (first.correct, first.steps, first.tokens)
    assert sum(told) == 2 * len(ITEMS)
    for other in ((ITEMS[1:], config()), (ITEMS, config(threshold=0.7))):
        with pytest.raises(TypeError):
            bench.run(TASK, *other)


def test_rows_have_the_agreed_fields() -> None:
    row = point([True] * 30 + [False] * 10, [4] * 20 + [6] * 20).row()
    agreed = ["task", "model", "decoder", "threshold", "n", "accuracy", "ci_low", "ci_high", "mean_steps"]
    assert [name for name in row if name in (*agreed, "tokens_per_forward")] == [*agreed, "tokens_per_forward"]
    assert (row["task"], row["model"], row["decoder"], row["threshold"]) == ("countdown", "base", "wino", 0.5)
    assert (row["n"], row["accuracy"], row["mean_steps"]) == (40, 0.75, 5.0)
    assert row["ci_low"] < 0.75 < row["ci_high"] and row["steps_low"] < 5 < row["steps_high"]
    assert row["tokens_per_forward"] == pytest.approx((5 + 20 / 6) / 2)


def test_points_are_compared_item_by_item() -> None:
    base = point([True] * 30 + [False] * 10, [6] * 40)
    plus = point([True] * 36 + [False] * 4, [3] * 40, model="plus")
    found = compare(plus, base)
    assert found["accuracy_difference"][0] == pytest.approx(6 / 40)
    assert found["p_value"] == pytest.approx(2 / 2**6)
    assert found["steps_difference"] == (-3.0, -3.0, -3.0) and found["steps_saved"] == 0.5
    with pytest.raises(ValueError, match="reference: expected the items of"):
        compare(plus, point([True], [1]))
    table = markdown_table([base, plus], base)
    assert "| plus + wino 0.5 | 90.0 |" in table and "| 50 % |" in table and "+15.0" in table


def test_labels_say_what_sets_the_speed() -> None:
    result = Evaluation([""], [True], [20], [6], 1.0)
    slow = Point("countdown", "base", "low_confidence", config("low_confidence"), result)
    fast = Point("countdown", "base", "low_confidence", config("low_confidence", steps=6), result)
    assert slow.label == "base + low_confidence" and slow.threshold is None
    assert fast.label == "base + low_confidence 4 a step"


def test_plots_are_drawn(tmp_path: Path) -> None:
    rows = [point([True, False], [4, 5], m, t).row() for m in ("base", "plus") for t in (0.5, 0.7)]
    plot_curves(rows, tmp_path / "curve.png", {"countdown": "Countdown"})
    found = reliability(*wino.load("wino-tiny"), TASK, ITEMS)
    plot_reliability([("countdown", "base", found)], tmp_path / "reliability.png")
    for name in ("curve.png", "reliability.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_reliability_counts_every_masked_position_once() -> None:
    model, tokenizer = wino.load("wino-tiny")
    found = reliability(model, tokenizer, TASK, ITEMS, seed=1)
    assert len(ITEMS) <= sum(found.count) <= len(ITEMS) * TASK.max_new_tokens
    assert 0 <= found.expected_calibration_error < 0.2
    for i, (count, confidence) in enumerate(zip(found.count, found.confidence, strict=True)):
        assert count == 0 or i / 10 - 1e-6 <= confidence <= (i + 1) / 10 + 1e-6
    assert found == reliability(model, tokenizer, TASK, ITEMS, seed=1)
    with pytest.raises(ValueError, match="has no worked answer"):
        reliability(model, tokenizer, TASK, [type(ITEMS[0])("k", ITEMS[0].prompt, "")])
    with pytest.raises(ValueError, match="24 fit"):
        reliability(model, tokenizer, TASK, [type(ITEMS[0])("k", ITEMS[0].prompt, "1" * 25)])


def test_reliability_compares_with_the_worked_answer() -> None:
    """With other items' answers most drafts are wrong, and as sure as before."""
    model, tokenizer = wino.load("wino-tiny")
    others = [*ITEMS[1:], ITEMS[0]]
    swapped = [replace(item, answer=other.answer) for item, other in zip(ITEMS, others, strict=True)]
    right, wrong = (reliability(model, tokenizer, TASK, items) for items in (ITEMS, swapped))
    share = [sum(n * a for n, a in zip(f.count, f.accuracy, strict=True)) / sum(f.count) for f in (right, wrong)]
    assert share[0] > 0.9 and share[1] < 0.8
    assert wrong.expected_calibration_error > 2 * right.expected_calibration_error


def test_bins_of_confidence_by_hand() -> None:
    found = binned([0.05, 0.95, 0.99, 1.0], [True, False, True, True])
    assert found.count == [1, 0, 0, 0, 0, 0, 0, 0, 0, 3]
    assert found.accuracy[0] == 1.0 and found.accuracy[9] == pytest.approx(2 / 3)
    assert found.confidence[9] == pytest.approx(0.98)
    assert found.expected_calibration_error == pytest.approx((0.95 + 3 * (0.98 - 2 / 3)) / 4)


def test_eval_writes_the_curve_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, tasks = ("--model", "a=wino-tiny", "--model", "b=wino-tiny"), ("--task", "countdown", "--task", "sum")
    decoders = ("--decoder", "wino", "--decoder", "low_confidence", "--threshold", "0.5,0.9")
    command = ["eval", *models, *tasks, *decoders, "--n", "8", "--out", str(tmp_path)]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    written = json.loads((tmp_path / "eval.json").read_text())
    assert len(written["rows"]) == 2 * 2 * 3 and len(written["tests"]) == 2 * 5
    assert {row["n"] for row in written["rows"]} == {8}
    assert "a + wino 0.5" in (tmp_path / "eval.md").read_text()
    assert (tmp_path / "eval.png").exists()
    monkeypatch.setattr(curve, "evaluate", None)
    assert CliRunner().invoke(app, command).exit_code == 0
    assert json.loads((tmp_path / "eval.json").read_text())["rows"] == written["rows"]


def test_a_kept_measurement_that_is_none_is_named(tmp_path: Path) -> None:
    bench, task, config = Workbench("base", *wino.load("wino-tiny"), tmp_path), get_task("sum"), GenerationConfig()
    items = list(islice(task.items("heldout"), 2))
    folder = next(iter([bench._cache]))
    assert folder is not None
    folder.mkdir(parents=True)
    kept = folder / f"{bench.name_of(task, items, config)}.json"
    for content in (
        "",
        "[]",
        "{}",
        '{"texts": ["a"]}',
        '{"texts": 3, "correct": 3, "tokens": 3, "steps": 3, "seconds": 1}',
    ):
        kept.write_text(content)
        with pytest.raises(ValueError, match=re.escape(f"{kept}: expected a measurement; remove the file")):
            bench.run(task, items, config)
