"""Configurations of other families, and broken ones: one line that names file and field, or the right model."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from llada_models import build_llada

import wino
from wino.models import LLaDAConfig, MMadaConfig

# The fields of GSAI-ML/LLaDA-8B-Instruct that are not about sizes.
PUBLISHED = {
    "activation_type": "silu", "alibi": False, "alibi_bias_max": 8.0, "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0, "attention_layer_norm": False, "attention_layer_norm_with_affine": True,
    "auto_map": {"AutoConfig": "configuration_llada.LLaDAConfig", "AutoModel": "modeling_llada.LLaDAModelLM"},
    "bias_for_layer_norm": False, "block_group_size": 1, "block_type": "llama", "embedding_dropout": 0.0,
    "flash_attention": False, "include_bias": False, "include_qkv_bias": False, "init_cutoff_factor": None,
    "init_device": "meta", "init_fn": "mitchell", "init_std": 0.02, "input_emb_norm": False, "layer_norm_type": "rms",
    "layer_norm_with_affine": True, "mlp_ratio": 4, "multi_query_attention": None, "precision": "amp_bf16",
    "residual_dropout": 0.0, "rope": True, "rope_full_precision": True, "scale_logits": False,
    "transformers_version": "4.46.3", "use_cache": False, "weight_tying": False,
}  # fmt: skip
# What inclusionAI/LLaDA-MoE-7B-A1B has in place of our sizes.
MIXTURE = {
    "model_type": "llada", "attention_bias": False, "clip_qkv": None, "dense_intermediate_size": 8192,
    "expert_intermediate_size": 1024, "hidden_act": "silu", "hidden_size": 2048, "num_attention_heads": 16,
    "num_experts": 64, "num_experts_per_tok": 8, "num_hidden_layers": 16, "qk_layernorm": True, "rope_theta": 50000,
    "rms_norm_eps": 1e-5, "vocab_size": 157184,
}  # fmt: skip


@pytest.fixture
def folder(tokenizer_folder: Path) -> Path:
    build_llada().to(torch.bfloat16).save_pretrained(tokenizer_folder)
    return tokenizer_folder


def write(folder: Path, fields: dict[str, Any], *without: str) -> None:
    path = folder / "config.json"
    kept = {name: value for name, value in json.loads(path.read_text()).items() if name not in without}
    path.write_text(json.dumps({**kept, **fields}))


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        wino.load(folder)
    message = str(caught.value)
    assert "config.json: " in message and "\n" not in message and len(message) < 500
    return message


SIZES = ("d_model", "n_heads", "n_kv_heads", "n_layers", "mlp_hidden_size", "vocab_size", "embedding_size")
FLAGS = ("rope_full_precision", "weight_tying", "include_bias", "include_qkv_bias", "scale_logits")
NUMBERS = ("rope_theta", "rms_norm_eps")


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in (*SIZES, "max_sequence_length") for value in (-1, 1.5, True, "8", [], {}, 2**40, 2**70)]
    + [(name, value) for name in FLAGS for value in (0, 1, "false", [])]
    + [(name, value) for name in NUMBERS for value in (0, -1.0, True, "1e-5", [], 10**400)]
    + [("mask_token_id", value) for value in (None, -1, 1.0, True, "1", 60, 2**70)]
    + [(name, value) for name in ("eos_token_id", "pad_token_id") for value in (-1, 1.0, True, "1", 60)]
    + [("eos_token_id", [0, 60]), ("eos_token_id", [0, "a"]), ("residual_dropout", 2), ("init_std", "x")]
    + [("dtype", "int8_of_mine"), ("dtype", 3)],
)
def test_wrong_values_are_named(folder: Path, name: str, value: Any) -> None:
    write(folder, {name: value}, "torch_dtype")
    assert name in refusal(folder)


@pytest.mark.parametrize("name", ["d_model", "n_heads", "n_layers", "vocab_size", *NUMBERS, "mask_token_id"])
def test_what_a_checkpoint_must_say(folder: Path, name: str) -> None:
    write(folder, {}, name)
    assert f"{name} missing" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("rope_scaling", "linear"),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 20000.0}),
        ("rope_parameters", {"full_attention": {"rope_theta": 10000.0}}),
        ("rope_parameters", {"rope_theta": "10000"}),
        ("partial_rotary_factor", 0.5),
        ("clip_qkv", 8.0),
        ("alibi", True),
        ("rope", False),
        ("rope", 1),
        ("activation_type", "swiglu"),
        ("hidden_act", "gelu"),
        ("block_type", "sequential"),
        ("block_group_size", 2),
        ("layer_norm_type", "default"),
        ("layer_norm_with_affine", False),
        ("bias_for_layer_norm", True),
        ("attention_layer_norm", True),
        ("input_emb_norm", True),
        ("multi_query_attention", True),
        ("attention_bias", True),
        ("qk_norm", True),
        ("sliding_window", 512),
        ("is_decoder", True),
        ("num_experts", 8),
        ("logits_soft_cap", 30.0),
        ("residual_multiplier", 0.5),
        ("embedding_multiplier", 12),
        ("head_dim", 64),
        ("hidden_size", 47),
        ("num_hidden_layers", 2),
        ("quantization_config", {"quant_method": "gptq", "bits": 4}),
        ("to_dict", 5),
        ("save_pretrained", "x"),
    ],
)
def test_mathematics_that_is_not_ours(folder: Path, name: str, value: Any) -> None:
    write(folder, {name: value})
    assert name in refusal(folder)


def test_another_family_under_our_name(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(MIXTURE))
    assert "num_experts=64 is not supported" in refusal(folder)


def test_published_fields_and_those_that_repeat_ours(folder: Path) -> None:
    expected, _ = wino.load(folder)
    repeated = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 80}
    neutral = {"rope_scaling": None, "clip_qkv": None, "num_experts": 0, "attention_bias": False, "head_scale": None}
    labels = {"id2label": 5, "num_labels": "x", "attn_implementation": "owner/kernel", "_attn_implementation": "a/b"}
    write(folder, {**PUBLISHED, **repeated, **neutral, **labels, "eos_token_id": [0, 2]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, _ = wino.load(folder)
    ids = torch.arange(2, 14)[None]
    assert torch.equal(model(ids).logits, expected(ids).logits)
    assert model.config._attn_implementation == expected.config._attn_implementation
    assert model.config.eos_token_id == [0, 2]


def test_the_rotary_base_of_newer_configurations(folder: Path) -> None:
    expected, _ = wino.load(folder)
    ids = torch.arange(2, 14)[None]
    for name in ("rope_parameters", "rope_scaling"):
        write(folder, {name: {"rope_type": "default", "rope_theta": 10000.0}}, "rope_theta", "rope_parameters")
        model, _ = wino.load(folder)
        assert model.config.rope_theta == 10000.0
        assert torch.equal(model(ids).logits, expected(ids).logits)
        write(folder, {}, name)
    write(folder, {"rope_theta": 10000.0, "rope_parameters": {"rope_type": "default", "rope_theta": 10000}})
    assert wino.load(folder)[0].config.rope_theta == 10000.0


def test_a_field_that_is_not_known_is_warned_of_once(folder: Path) -> None:
    write(folder, {"our_run": "2026-11", "license": "mit"})
    with pytest.warns(UserWarning, match="not known here and change nothing: our_run, license") as caught:
        wino.load(folder)
    assert len(caught) == 1


def test_a_configuration_is_written_and_read_again(tmp_path: Path) -> None:
    for made in (LLaDAConfig(rope_theta=123.0), MMadaConfig(rope_theta=5.0)):
        made.save_pretrained(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert type(made).from_pretrained(tmp_path).to_dict() == made.to_dict()
    assert LLaDAConfig().rope_theta == 500000.0


@pytest.mark.parametrize("name", ["codebook_size", "num_vq_tokens", "llm_vocab_size", "new_vocab_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8", None, 2**70])
def test_sizes_of_the_image_half(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        MMadaConfig(**{name: value})
