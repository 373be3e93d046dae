"""Merging: the merged checkpoint is what the adapted model computes, and loads where the base loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from test_train import make_recipe

import wino
from wino.plus import merge as merging
from wino.plus.merge import merge
from wino.plus.train import train
from wino.pretrain import Recipe, build_model, build_tokenizer, save_model_folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from plus_records import make_record

    from wino.plus.records import write_trajectories

    folder = tmp_path_factory.mktemp("run")
    records = folder / "records.jsonl"
    write_trajectories(records, (make_record(i) for i in range(20)))
    stages = [{"steps": 3, "learning_rate": 1e-2}]
    return train(make_recipe(base, records, folder / "out", stages=stages), show_progress=False)


def test_merged_weights_compute_what_the_adapter_did(base: Path, adapter: Path, tmp_path: Path) -> None:
    out = merge(base, adapter, tmp_path / "merged")
    merged, tokenizer = wino.load(out, dtype=torch.float32)
    plain, _ = wino.load(base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(wino.load(base, dtype=torch.float32)[0], str(adapter)).get_base_model()
    ids = torch.randint(5, 20, (4, 16))
    with torch.no_grad():
        wanted, got, before = adapted(ids).logits, merged(ids).logits, plain(ids).logits
    assert (wanted - before).abs().max() > 0.05
    assert (got - wanted).abs().max() < 0.1 * (wanted - before).abs().max()  # bfloat16 weights
    assert wino.load(out)[0].dtype == wino.load(base)[0].dtype == torch.bfloat16
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert json.loads((out / "config.json").read_text()) == json.loads((base / "config.json").read_text())


def test_the_bases_other_files_are_copied(base: Path, adapter: Path, tmp_path: Path) -> None:
    source = shutil.copytree(base, tmp_path / "base")
    (source / "modeling_llada.py").write_text("# remote code")
    (source / "presets.json").write_text("{}")
    out = merge(source, adapter, tmp_path / "merged")
    assert (out / "modeling_llada.py").read_text() == "# remote code"
    assert not (out / "presets.json").exists()  # thresholds were chosen for the base


def test_another_base_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    recipe = Recipe(seed=1, d_model=32, n_layers=2, n_heads=2, mlp_hidden_size=48)
    save_model_folder(build_model(recipe, build_tokenizer()), other)
    with pytest.raises(ValueError, match=r"base: the adapter was trained on .* \(weights [0-9a-f]+\), got .*other"):
        merge(other, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_what_merge_refuses(base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="adapter: no folder"):
        merge(base, tmp_path / "none", tmp_path / "out")
    with pytest.raises(ValueError, match=r"expected the result of `wino train`"):
        merge(base, base, tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match=r"out: .* exists"):
        merge(base, adapter, tmp_path / "out")


def test_an_interrupted_merge_leaves_nothing_that_looks_whole(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(merging.shutil, "copy", full_disk)
        with pytest.raises(OSError, match="No space left"):
            merge(base, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    assert merge(base, adapter, tmp_path / "merged").is_dir()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["merged"]
