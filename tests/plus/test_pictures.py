"""WINO+ on a MMaDA: collect, train, merge and evaluate as for text; trajectories carry the codes of their pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_mmada import save_small_mmada
from test_plus_cli import fails, run
from test_train import make_recipe

from wino.multimodal import load
from wino.plus.merge import merge
from wino.plus.records import read_trajectories, write_trajectories
from wino.plus.train import train


@pytest.fixture(scope="module")
def mmada(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_mmada(tmp_path_factory.mktemp("mmada") / "model")


def test_from_pictures_to_a_merged_model(tmp_path: Path, mmada: Path) -> None:
    out = tmp_path / "records.jsonl"
    collected = run(
        "collect", "--model", mmada, "--task", "question", "--items", 8, "--out", out, "--temperatures", "0"
    )
    assert collected.exit_code == 0, collected.output
    model, processor = load(mmada)
    first, behind = processor.layout.token_range
    records = list(read_trajectories(out))
    assert len(records) == 8
    for record in records:
        assert sum(first <= token < behind for token in record.prompt_ids) == processor.layout.num_codes
        assert record.source == "question" and len(record.generated_ids) == 8
    kept = tmp_path / "kept.jsonl"
    # An untrained model has no correct ones.
    write_trajectories(kept, [replace(record, correct=True) for record in records])

    final = train(make_recipe(mmada, kept, tmp_path / "run"))
    merged = merge(mmada, final, tmp_path / "merged")
    after, again = load(merged)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), after.parameters(), strict=True))
    pixels = torch.rand(1, 3, 48, 48)
    assert torch.equal(again.magvit.get_code(pixels), processor.magvit.get_code(pixels))

    whole = train(make_recipe(mmada, kept, tmp_path / "whole", adapter=None, stages=[{"steps": 1}]))
    assert torch.equal(load(whole)[1].magvit.get_code(pixels), processor.magvit.get_code(pixels))

    folder = tmp_path / "eval"
    arguments = ("--task", "question", "--decoder", "wino", "--decoder", "confidence_threshold", "--n", 4)
    both = ("--model", f"base={mmada}", "--model", f"plus={merged}")
    result = run("eval", *both, *arguments, "--threshold", "0.5", "--out", folder)
    assert result.exit_code == 0, result.output
    rows = json.loads((folder / "eval.json").read_text())["rows"]
    assert len(rows) == 4 and {row["model"] for row in rows} == {"base", "plus"}


def test_one_table_and_captions(tmp_path: Path, mmada: Path) -> None:
    asked = ("eval", "--model", mmada, "--task", "caption", "--decoder", "wino", "--n", 2)
    result = run(*asked)
    header, row = (line.split() for line in result.stdout.splitlines() if line.startswith(("decoder", "wino ")))
    assert result.exit_code == 0 and "cider" in header and len(row) == len(header) - 3
    folder = tmp_path / "eval"
    assert (
        run("eval", "--model", mmada, "--task", "caption", "--decoder", "wino", "--n", 2, "--out", folder).exit_code
        == 0
    )
    assert json.loads((folder / "eval.json").read_text())["rows"][0]["cider"] >= 0
    assert "| cider |" in (folder / "eval.md").read_text()


def test_a_llada_has_no_pictures(tmp_path: Path) -> None:
    for command in (("eval", "--n", 2), ("collect", "--items", 2, "--out", tmp_path / "t.jsonl")):
        message = fails(*command, "--task", "caption", "--model", "wino-tiny")
        assert "wino-tiny: expected a MMaDA, got model_type 'llada'" in message
    assert "task caption has generated pictures only" in fails(
        "eval", "--task", "caption", "--data", __file__, "--model", "wino-tiny"
    )
