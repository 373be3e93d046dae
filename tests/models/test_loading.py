"""``wino.load``: folders in the published layout, and one clear sentence for each that does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from llada_models import build_llada
from safetensors.torch import load_file, save_file

import wino
from wino.models import LLaDAModelLM, loading


@pytest.fixture
def folder(tokenizer_folder: Path) -> Path:
    """A whole checkpoint, bfloat16, in one file."""
    build_llada().to(torch.bfloat16).save_pretrained(tokenizer_folder)
    return tokenizer_folder


def edit_tensors(folder: Path, edit: Any) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_folder(folder: Path) -> None:
    model, tokenizer = wino.load(folder)
    assert type(model) is LLaDAModelLM and not model.training
    assert {value.dtype for value in model.state_dict().values()} == {torch.bfloat16}
    saved = load_file(folder / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert tokenizer.mask_token_id == model.config.mask_token_id == 1
    assert tokenizer("c")["input_ids"] == [4]


def test_dtype_and_device(folder: Path) -> None:
    model, _ = wino.load(str(folder), dtype=torch.float32, device="cpu")
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    out = wino.generate(model, torch.tensor([[2, 3, 4]]), max_new_tokens=8, block_length=4)
    assert out.sequences.shape == (1, 11)


def test_shards(folder: Path) -> None:
    whole, _ = wino.load(folder)
    (folder / "model.safetensors").unlink()
    whole.save_pretrained(folder, max_shard_size="10KB")
    sharded, _ = wino.load(folder)
    assert all(torch.equal(value, sharded.state_dict()[name]) for name, value in whole.state_dict().items())
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {shard.name}"):
        wino.load(folder)


def test_tensors_that_do_not_fit_are_named(folder: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.transformer.blocks.1.k_proj.weight"]
        tensors["model.transformer.ln_f.weight"] = torch.ones(47)
        tensors["model.transformer.wpe.weight"] = torch.ones(3)

    edit_tensors(folder, edit)
    with pytest.raises(ValueError) as caught:
        wino.load(folder)
    message = str(caught.value)
    assert "misses tensors model.transformer.blocks.1.k_proj.weight;" in message
    assert "has unexpected tensors model.transformer.wpe.weight;" in message
    assert "has misshapen tensors model.transformer.ln_f.weight ((47,) instead of (48,))" in message
    assert "\n" not in message


def test_files_that_are_missing_or_broken(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        wino.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no such folder, and neither 'wino-tiny' nor a hub id"):
        wino.load("nowhere")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="no usable tokenizer"):
        wino.load(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a readable safetensors file"):
        wino.load(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        wino.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        wino.load(folder)


def test_another_models_folder(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "llama"}))
    with pytest.raises(ValueError, match="expected model_type 'llada' or 'mmada', got 'llama'"):
        wino.load(folder)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        wino.load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("{}", "expected weight_map"),
        ("[]", "expected an object, got list"),
        ('{"weight_map": ["model.safetensors"]}', "expected weight_map"),
        ('{"weight_map": {"model.transformer.ln_f.weight": 1}}', "expected weight_map"),
    ],
)
def test_a_broken_shard_index(folder: Path, content: str, message: str) -> None:
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=rf"model\.safetensors\.index\.json\b.* {message}"):
        wino.load(folder)


def test_a_configuration_without_heads(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "n_heads": 0}))
    with pytest.raises(ValueError, match=r"config\.json: .*n_heads must be a positive integer, got 0"):
        wino.load(folder)


def test_the_hub_is_asked_for_an_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def deliver(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        if name != "owner/name":
            raise OSError("no connection\nand more lines")
        return str(folder)

    monkeypatch.setattr(loading, "snapshot_download", deliver)
    assert type(wino.load("owner/name")[0]) is LLaDAModelLM
    with pytest.raises(FileNotFoundError, match=r"owner/other: .* the hub did not deliver it \(no connection\)$"):
        wino.load("owner/other")
    assert asked == ["owner/name", "owner/other"]


def test_the_bundled_model_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading.resources, "files", lambda package: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"wino-tiny comes without weights here .*make tiny"):
        wino.load("wino-tiny")
