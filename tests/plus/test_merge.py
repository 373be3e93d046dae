"""Merging: the merged checkpoint is what the adapted model computes, and loads where the base loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import authors_layout
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from test_train import make_recipe
from typer.testing import CliRunner

import wino
from wino.cli import app
from wino.models.ends import end_token_ids
from wino.models.llada import LLaDAModelLM
from wino.models.loading import bundled_folder
from wino.plus import merge as merging
from wino.plus.merge import merge
from wino.plus.train import train
from wino.pretrain import Recipe, build_model, build_tokenizer, save_model_folder
from wino.tasks import get_task
from wino.tasks.presets import decoder_configs, load_presets, write_presets

#: Thresholds of the released configurations, of confidence_threshold on WINO+ models.
PUBLISHED = {
    "gsm8k": 0.65,
    "math500": 0.8,
    "humaneval": 0.9,
    "mbpp": 0.9,
    "countdown-text": 0.6,
    "sudoku-text": 0.6,
    "arc-e": 0.5,
    "arc-c": 0.5,
    "flickr30k": 0.7,
    "ai2d": 0.7,
    "math-vision": 0.7,
    "mathvista-mini": 0.5,
    "mmmu-val": 0.55,
    "scienceqa-img": 0.6,
}


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
    (source / "generation_config.json").write_text('{"eos_token_id": [0, 3]}')
    (source / "README.md").write_text("# A base\n\nOf ours.\n")
    (source / "LICENSE").write_text("Apache-2.0")
    (source / "image_tokenizer").mkdir()
    (source / "image_tokenizer" / "model.safetensors").write_text("codes")
    (source / ".git").mkdir()
    (source / "pytorch_model.bin").write_text("the same weights again")
    write_presets(source, {"sum": {"wino": {"threshold": 0.7}}}, "chosen")
    out = merge(source, adapter, tmp_path / "merged")
    for name in ("modeling_llada.py", "generation_config.json", "LICENSE", "image_tokenizer/model.safetensors"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert not (out / ".git").exists() and not (out / "pytorch_model.bin").exists()
    assert load_presets(out) == {"sum": {"wino": {"threshold": 0.7}}}
    assert json.loads((out / "presets.json").read_text())["_source"].startswith(f"{source}, for which they were chosen")
    card = (out / "README.md").read_text()
    assert card.startswith("# A base\n\nOf ours.\n\n## WINO+\n\n") and str(source) in card and str(adapter) in card
    model, tokenizer = wino.load(out)
    assert 3 in end_token_ids(model, tokenizer)
    assert tokenizer.chat_template == wino.load(source)[1].chat_template


def test_a_base_without_settings_gets_those_published_with_wino_plus(base: Path, adapter: Path, tmp_path: Path) -> None:
    assert not (base / "presets.json").exists()
    out = merge(base, adapter, tmp_path / "merged")
    presets = load_presets(out)
    assert {name: own["confidence_threshold"]["threshold"] for name, own in presets.items()} == PUBLISHED
    assert "published with WINO+" in json.loads((out / "presets.json").read_text())["_source"]
    for name in PUBLISHED:
        assert decoder_configs(get_task(name), presets)["confidence_threshold"].threshold == PUBLISHED[name]
    assert (out / "README.md").read_text().startswith("# WINO+\n")


def test_a_merged_model_answers_as_its_base_does(tmp_path: Path) -> None:
    """The command of the base, without an option, on what its training left."""
    source = bundled_folder()
    plain = LoraConfig(r=2, target_modules=["q_proj", "up_proj"])
    get_peft_model(wino.load(source)[0], plain).save_pretrained(tmp_path / "adapter")
    merge(source, tmp_path / "adapter", tmp_path / "merged")
    wino.load(source)[0].save_pretrained(tmp_path / "saved")
    wino.load(source)[1].save_pretrained(tmp_path / "saved")
    answers = [
        CliRunner().invoke(app, ["generate", "--model", str(model), "--json", "sum 34+08-15+27-01"])
        for model in (source, tmp_path / "merged", tmp_path / "saved")
    ]
    assert [answer.exit_code for answer in answers] == [0, 0, 0], answers
    assert answers[0].stdout == answers[1].stdout == answers[2].stdout != ""


def test_a_merged_model_in_shards_loads(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = LLaDAModelLM.save_pretrained
    monkeypatch.setattr(LLaDAModelLM, "save_pretrained", lambda self, at, **_: save(self, at, max_shard_size="20KB"))
    out = merge(base, adapter, tmp_path / "merged")
    assert len(list(out.glob("model-*.safetensors"))) > 1 and (out / "model.safetensors.index.json").is_file()
    monkeypatch.undo()
    whole, _ = wino.load(merge(base, adapter, tmp_path / "whole"))
    for a, b in zip(wino.load(out)[0].parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)
    again = merge(out, adapter_of(out, tmp_path), tmp_path / "again")  # a base in shards
    assert sorted(path.name for path in again.glob("*.safetensors*")) == ["model.safetensors"]


def adapter_of(model: Path, folder: Path, **settings: Any) -> Path:
    """A plain adapter of PEFT's, with every matrix filled, as other trainers write it."""
    lora = LoraConfig(**{"r": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "up_proj"], **settings})
    adapted = get_peft_model(wino.load(model, dtype=torch.float32)[0], lora)
    for name, value in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.2)
    adapted.save_pretrained(folder / "plain")
    return folder / "plain"


def test_an_adapter_of_the_authors_trainer(tmp_path: Path) -> None:
    """Made on their modules with the released list of names, of which o_proj, gate_proj and down_proj match nothing."""
    theirs = authors_layout.build(3)
    model_folder = tmp_path / "base"
    theirs.save_pretrained(model_folder)
    build_tokenizer().save_pretrained(model_folder)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(theirs, LoraConfig(r=8, lora_alpha=8, target_modules=names, bias="none"))
    for name, value in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert "base_model.model.model.transformer.blocks.0.q_proj.lora_A.weight" in stored and len(stored) == 2 * 4 * 3
    out = merge(model_folder, tmp_path / "adapter", tmp_path / "merged")
    merged_by_them = adapted.merge_and_unload()
    merged_by_them.save_pretrained(tmp_path / "theirs")  # as the released merged weights were made
    build_tokenizer().save_pretrained(tmp_path / "theirs")
    ids = torch.randint(5, 60, (2, 20))
    with torch.no_grad():
        expected = authors_layout.own_logits(merged_by_them, ids)
        for folder in (out, tmp_path / "theirs"):
            assert (wino.load(folder)[0](ids).logits - expected).abs().max() < 1e-4
        assert (wino.load(model_folder)[0](ids).logits - expected).abs().max() > 0.1


def edited(adapter: Path, out: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    shutil.copytree(adapter, out)
    tensors = load_file(out / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, out / "adapter_model.safetensors")
    return out


def test_a_plain_adapter_that_does_not_fit_is_refused(base: Path, tmp_path: Path) -> None:
    plain = adapter_of(base, tmp_path)
    first = "base_model.model.model.transformer.blocks.0.q_proj.lora_A.weight"

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors["base_model.model.other.weight"] = tensors.pop(first)

    def enlarge(tensors: dict[str, torch.Tensor]) -> None:
        tensors[first] = torch.zeros(4, 33)

    cases = {
        rf"misses tensors {first}; it has unexpected tensors base_model.model.other.weight": rename,
        rf"has misshapen tensors {first} \(\(4, 33\) instead of \(4, 32\)\)": enlarge,
    }
    for number, (message, change) in enumerate(cases.items()):
        with pytest.raises(ValueError, match=rf"adapter: .* does not fit its configuration on .*: it {message}"):
            merge(base, edited(plain, tmp_path / str(number), change), tmp_path / "merged")
    deeper = tmp_path / "deeper"
    recipe = Recipe(d_model=32, n_layers=3, n_heads=2, mlp_hidden_size=48)
    save_model_folder(build_model(recipe, build_tokenizer()), deeper)
    with pytest.raises(ValueError, match=r"misses tensors .*blocks\.2\."):
        merge(deeper, plain, tmp_path / "merged")
    bare = shutil.copytree(plain, tmp_path / "bare")
    (bare / "adapter_model.safetensors").rename(bare / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"has no adapter_model.safetensors"):
        merge(base, bare, tmp_path / "merged")
    settings = json.loads((plain / "adapter_config.json").read_text())
    for changes, message in (
        ({"target_modules": ["nothing"]}, "does not fit .*nothing.* not found in the base model"),
        ({"peft_type": "IA3", "target_modules": ["q_proj"], "feedforward_modules": []}, "expected a LoRA, got .* IA3"),
        ({"peft_type": "UNKNOWN"}, r"not a configuration of PEFT|expected a LoRA"),
    ):
        other = shutil.copytree(plain, tmp_path / f"other {message[:9]}")
        (other / "adapter_config.json").write_text(json.dumps({**settings, **changes}))
        with pytest.raises(ValueError, match=message):
            merge(base, other, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


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
