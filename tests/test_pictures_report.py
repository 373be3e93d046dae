"""benchmarks/pictures.py from settings to page, on an untrained model; its bars find what they are there for."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path

import pytest
from small_mmada import save_small_mmada

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import pictures
import quality
import tables

from wino.multimodal import load
from wino.tasks import PICTURE_TASKS
from wino.tasks.scenes import render, scene_of


def test_tune_report_render(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_small_mmada(tmp_path / "model")
    monkeypatch.setattr(quality, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(quality, "WINO_GRID", quality.WINO_GRID[:2])
    monkeypatch.setattr(pictures, "DRAWING_GRID", pictures.DRAWING_GRID[:2])
    monkeypatch.setattr(pictures, "WINO_ON_CODES", pictures.WINO_ON_CODES[:2])

    def run(command: str) -> int:
        options = ["--model", str(folder), "--items", "3", "--curve-items", "2"]
        monkeypatch.setattr(sys, "argv", ["pictures.py", command, *options])
        try:
            pictures.main()
        except SystemExit as end:
            assert not isinstance(end.code, str), end.code
            return int(end.code or 0)
        return 0

    with pytest.raises(AssertionError, match=r"no settings of 'drawing'; run `pictures\.py tune`"):
        run("report")
    assert run("tune") == 0
    presets = json.loads((folder / "presets.json").read_text())
    assert set(presets) == {"caption", "question", "drawing"} and set(presets["drawing"]) == {"maskgit", "wino"}
    missed = run("report")
    figures = json.loads((folder / "pictures.json").read_text())
    page = (folder / "pictures.md").read_text()
    assert missed == bool(pictures.check_bars(figures)) and page.startswith("# Quality of model\n")
    assert "confidence_threshold at WINO's steps" in page and "maskgit at WINO's steps" in page
    assert (folder / "pictures.png").stat().st_size > 10_000
    table = tables.pictures(figures)
    assert table.count("\n| caption |") == table.count("\n| question |") == 6
    first = page
    shutil.rmtree(tmp_path / "cache")
    capsys.readouterr()
    assert run("render") == missed
    assert (folder / "pictures.md").read_text() == first

    rows = {row["decoder"]: row for row in figures["tasks"]["caption"]["rows"]}
    rows["wino"] |= {"mean_steps": 9.6, "step_reduction": 6.0, "cider": 5.0}
    rows["low_confidence"]["mean_steps"] = 48.0
    rows["low_confidence"]["cider"] = rows["confidence_threshold at WINO's steps"]["cider"] = 5.0
    assert pictures.check_bars(figures) == []
    for decoder, change, told in (
        ("wino", {"step_reduction": 4.9}, "step reduction 4.90"),
        ("wino", {"mean_steps": 9.8}, "4.90x fewer steps than one token a step < 5.0x"),
        ("low_confidence", {"cider": 5.1}, "WINO's CIDEr 5.000 < 5.100"),
        ("confidence_threshold at WINO's steps", {"cider": 5.1}, "the confidence threshold has 5.100 at equal steps"),
    ):
        worse = copy.deepcopy(figures)
        next(row for row in worse["tasks"]["caption"]["rows"] if row["decoder"] == decoder).update(change)
        (missed,) = pictures.check_bars(worse)
        assert told in missed


def test_drawings_are_graded_object_by_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = quality.Bench("small", *load(save_small_mmada(tmp_path)))
    items = pictures.held_out(PICTURE_TASKS["caption"], 3)
    scenes = [scene_of(item) for item in items]
    others = tuple(thing._replace(colour="red" if thing.colour != "red" else "blue") for thing in scenes[2])
    shown = [render(scenes[0]), render(scenes[1][1:]), render(others)]
    monkeypatch.setattr(pictures, "from_pixels", lambda pixels: shown)
    result = pictures.reconstructed(bench, items)
    assert result.objects == [1.0, 1 - 1 / len(scenes[1]), 0.0] and result.exact == [True, False, False]
    row = result.row(pictures.Drawings([1.0, 0.0, 0.0], [True, False, False]))
    assert row["n"] == 3 and row["exact"] == 1 / 3 and "mean_steps" not in row
    mean, low, high = row["objects_difference"]
    assert mean == pytest.approx(result.objects[1] / 3) and low == 0 < mean <= high
