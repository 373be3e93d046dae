"""benchmarks/plus.py from trajectories to page, with a few items and two steps of training; text and pictures."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import plus

import wino
from wino.multimodal import load
from wino.plus.records import read_trajectories


@pytest.mark.parametrize(("name", "task"), [("texts", "countdown"), ("pictures", "caption")])
def test_from_trajectories_to_a_page(name: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = plus.CAMPAIGNS[name]
    small = dataclasses.replace(
        whole, tasks={task: whole.tasks[task]}, collected=24, validated=4, held_out=6, steps_bar={task: 0.0}
    )
    small = dataclasses.replace(small, runs={run: {} for run in list(whole.runs)[:2]})
    monkeypatch.setitem(plus.CAMPAIGNS, name, small)
    monkeypatch.setattr(plus, "WORK", tmp_path / "work")
    monkeypatch.setattr(plus, "DOCS", tmp_path)
    monkeypatch.setattr(plus, "TRAINING", {**plus.TRAINING, "steps": 2, "batch_size": 4, "warmup_steps": 1})
    monkeypatch.setattr(plus, "ADAPTER", {**plus.ADAPTER, "rank": 4})
    monkeypatch.setattr(plus, "CT_GRID", (0.9,))
    monkeypatch.setattr(plus, "WINO_GRID", (0.6, 0.9))

    def run(*options: str) -> int:
        monkeypatch.setattr(sys, "argv", ["plus.py", name, *options])
        with pytest.raises(SystemExit) as end:
            plus.main()
        return int(end.value.code or 0)

    missed = run("--bundle", str(tmp_path / "bundled"))
    page, rows = (tmp_path / f"{small.page}.md").read_text(), json.loads((tmp_path / f"{small.page}.json").read_text())
    assert page.startswith(f"# {small.title}\n\nMade by `{small.made_by}`")
    assert ("CIDEr of plus + wino" in page) == (name == "pictures")
    assert {row["model"] for row in rows} == {"base", *small.runs} and {row["task"] for row in rows} == {task}
    assert {row["role"] for row in rows} == {"table", "curve"} | ({"ablation"} if len(small.runs) > 1 else set())
    for picture in (f"{small.page}.png", f"{small.page}_reliability.png"):
        assert (tmp_path / picture).stat().st_size > 10_000
    records = list(read_trajectories(small.work / f"{task}.best.jsonl"))
    assert 0 < len(records) <= 24 and all(record.correct for record in records)
    assert (tmp_path / "bundled").is_dir() == (not missed)

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr("wino.tasks.curve.evaluate", forbidden)
        patch.setattr("wino.plus.train._train_stage", forbidden)
        assert run() == missed and (tmp_path / f"{small.page}.md").read_text() == page
    with monkeypatch.context() as patch:
        patch.setattr(plus, "LOSS", {**plus.LOSS, "llada": 0.25})
        with pytest.raises(ValueError, match="holds the run of another recipe"):
            run()


def test_a_bundle_names_its_base(tmp_path: Path) -> None:
    model = tmp_path / "merged"
    model.mkdir()
    for name, opened in (("texts", "wino.load"), ("pictures", "wino.multimodal.load")):
        campaign, out = plus.CAMPAIGNS[name], tmp_path / f"{name}-plus"
        assert campaign.load in (wino.load, load)
        plus.bundle(campaign, model, {next(iter(campaign.tasks)): {"wino": {"threshold": 0.123}}}, out)
        card, presets = (out / "README.md").read_text(), json.loads((out / "presets.json").read_text())
        assert card.startswith(f"# {name}-plus\n\n{campaign.base} after WINO+") and f"`{campaign.made_by}`" in card
        assert f'`{opened}("{name}-plus")`' in card and f"docs/{campaign.page}.md" in card
        assert set(campaign.tasks) <= set(presets) and presets[next(iter(campaign.tasks))]["wino"]["threshold"] == 0.123
