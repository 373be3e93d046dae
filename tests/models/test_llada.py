"""LLaDA as an ordinary transformers model: the forward pass, configurations, saving and loading."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import authors_layout
import pytest
import reference_loop
import torch
from authors_layout import own_logits
from llada_models import build_llada
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import wino.models
from wino.models import LLaDAConfig, LLaDAModelLM


def tokens(batch: int = 2, length: int = 40) -> Tensor:
    return torch.randint(2, 60, (batch, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    "fields", [{}, {"n_kv_heads": 3}, {"weight_tying": True}, {"scale_logits": True}, {"include_bias": True}]
)
def test_logits_are_those_of_the_authors_layout(fields: dict[str, Any]) -> None:
    """Weights and configuration go over by name, as they are."""
    theirs = authors_layout.build(**fields)
    ours = LLaDAModelLM(LLaDAConfig(**theirs.config.to_dict())).eval()
    ours.load_state_dict(theirs.state_dict())
    arguments = {
        "attention_mask": reference_loop.visibility(32, 8, 8),
        "position_ids": torch.tensor([*range(32), *range(8, 16)]),
    }
    for call in ({}, arguments):
        torch.testing.assert_close(
            ours(tokens(), **call).logits, own_logits(theirs, tokens(), **call), atol=1e-4, rtol=0
        )


def test_padding_mask_and_positions_make_left_padding_invisible() -> None:
    model, ids = build_llada(), tokens(1, 20)
    padded = torch.cat((torch.zeros(1, 5, dtype=torch.int64), ids), dim=1)
    mask = torch.tensor([[0] * 5 + [1] * 20])
    positions = torch.tensor([[0] * 5 + list(range(20))])
    torch.testing.assert_close(
        model(padded, attention_mask=mask, position_ids=positions).logits[:, 5:], model(ids).logits, atol=1e-5, rtol=0
    )


def test_positions_are_per_sequence() -> None:
    model, ids = build_llada(), tokens()
    positions = torch.stack((torch.arange(40), torch.arange(40).roll(7)))
    both = model(ids, position_ids=positions).logits
    for row in range(2):
        single = model(ids[row : row + 1], position_ids=positions[row]).logits
        torch.testing.assert_close(both[row : row + 1], single, atol=1e-5, rtol=0)


def test_integer_masks_and_one_mask_for_all_sequences() -> None:
    model, ids = build_llada(), tokens()
    mask = reference_loop.visibility(32, 16, 8)
    expected = model(ids, attention_mask=mask.expand(2, 1, 40, 40)).logits
    assert torch.equal(model(ids, attention_mask=mask).logits, expected)
    assert torch.equal(model(ids, attention_mask=mask.long()).logits, expected)


@pytest.mark.parametrize(
    ("arguments", "kind", "match"),
    [
        ({"attention_mask": torch.ones(2, 39, dtype=torch.bool)}, ValueError, r"attention_mask: .* got \(2, 39\)"),
        ({"attention_mask": torch.ones(40, 40, dtype=torch.bool)}, ValueError, r"attention_mask: .* got \(40, 40\)"),
        ({"attention_mask": torch.zeros(2, 1, 40, 40)}, TypeError, "attention_mask: .* torch.float32"),
        ({"position_ids": torch.arange(39)}, ValueError, r"position_ids: .* got \(39,\)"),
        ({"past_key_values": [1]}, ValueError, "past_key_values"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any], kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        build_llada()(tokens(), **arguments)


@pytest.mark.parametrize(
    "fields",
    [
        {"block_type": "sequential"},
        {"activation_type": "swiglu"},
        {"rope": False},
        {"block_group_size": 2},
        {"include_bias": True, "bias_for_layer_norm": None},
        {"d_model": 50},
        {"n_kv_heads": 4},
    ],
)
def test_another_architecture_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="LLaDA configuration: "):
        build_llada(**fields)


@pytest.mark.parametrize("value", [0, -6, 48.0, "48"])
@pytest.mark.parametrize(
    "name", ["d_model", "n_heads", "n_kv_heads", "n_layers", "mlp_hidden_size", "vocab_size", "max_sequence_length"]
)
def test_sizes_that_are_none_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"LLaDA configuration: {name} must be a positive integer, got {value!r}"):
        build_llada(**{name: value})


def test_an_embedding_size_of_zero_is_the_vocabularys() -> None:
    assert build_llada(embedding_size=0).config.embedding_size == 60
    with pytest.raises(ValueError, match="embedding_size must be a positive integer, got -1"):
        build_llada(embedding_size=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard_size", ["40KB", "5GB"])
@pytest.mark.parametrize("auto_class", [LLaDAModelLM, AutoModel, AutoModelForCausalLM])
def test_saving_and_loading_changes_nothing(
    tmp_path: Path, dtype: torch.dtype, shard_size: str, auto_class: Any
) -> None:
    model = build_llada(n_kv_heads=2, rope_theta=123.0).to(dtype)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) == 1) == (shard_size == "5GB")
    again, info = auto_class.from_pretrained(tmp_path, torch_dtype=dtype, output_loading_info=True)
    assert type(again) is LLaDAModelLM and again.dtype == dtype
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)
    assert again.config.rope_theta == 123.0


def test_the_saved_configuration_says_what_the_authors_code_needs(tmp_path: Path) -> None:
    """Their defaults describe another architecture, so every field that matters is written out."""
    build_llada().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["architectures"] == ["LLaDAModelLM"] and saved["model_type"] == "llada"
    assert {
        "block_type": "llama",
        "activation_type": "silu",
        "layer_norm_type": "rms",
        "rope": True,
    }.items() <= saved.items()
    training_only = {"use_cache", "vocab_size"}
    assert set(authors_layout.FIELDS) - set(saved) <= training_only
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is LLaDAConfig
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (48, 3, 6)


def test_building_on_the_meta_device_allocates_nothing() -> None:
    with torch.device("meta"):
        model = LLaDAModelLM(LLaDAConfig(mlp_hidden_size=12288))
    assert all(value.is_meta for value in model.state_dict().values()) and not list(model.buffers())
    assert sum(value.numel() for value in model.parameters()) == 8_015_581_184  # as published for LLaDA-8B


def test_embeddings_can_be_resized_and_saved(tmp_path: Path) -> None:
    model = build_llada()
    model.resize_token_embeddings(70)
    assert model(tokens()).logits.shape[-1] == 70
    model.save_pretrained(tmp_path)
    assert LLaDAModelLM.from_pretrained(tmp_path).model.transformer.wte.weight.shape == (70, 48)


def test_registering_again_is_safe_and_leaves_others_alone() -> None:
    try:
        AutoConfig.register("llada", authors_layout.AuthorsConfig, exist_ok=True)
        importlib.reload(wino.models)
        assert type(AutoConfig.for_model("llada")) is authors_layout.AuthorsConfig
    finally:
        AutoConfig.register("llada", LLaDAConfig, exist_ok=True)
    importlib.reload(wino.models)
    assert type(AutoConfig.for_model("llada")) is LLaDAConfig
