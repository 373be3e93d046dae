"""Which fields a configuration of LLaDA or MMaDA may have, and at which values: those of LLaDA-8B's forward pass."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers

#: No size of a model is larger; a product of two and a dtype's bytes fits 64 bits.
LARGEST_SIZE = 1 << 24
_LARGEST_NUMBER = 1e300  # so are NaN and what no float holds

# Fields of the authors' configuration that would change the forward pass, and their values in LLaDA-8B, ours first.
FIXED_FIELDS: dict[str, tuple[Any, ...]] = {
    "block_type": ("llama",),
    "activation_type": ("silu",),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "bias_for_layer_norm": (False, None),
    "attention_layer_norm": (False,),
    "input_emb_norm": (False,),
    "rope": (True,),
    "alibi": (False,),
    "multi_query_attention": (None, False),
}

# The same of other families and of the library: what they must be, if they are there, to change nothing.
_FOREIGN_FIELDS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), (None, 0)),
    **dict.fromkeys(("attention_bias", "mlp_bias", "qk_norm", "use_qk_norm", "qk_layernorm"), (False, None)),
    **dict.fromkeys(("use_sliding_window", "is_decoder", "add_cross_attention", "is_encoder_decoder"), (False, None)),
    "w_clip_vit": (False, None),
    "partial_rotary_factor": (1, None),
    "hidden_act": ("silu", None),
    "pruned_heads": ({}, None),
}

# Fields of other families that name the same as one of ours.
_SYNONYMS = {
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "intermediate_size": "mlp_hidden_size",
    "max_position_embeddings": "max_sequence_length",
}

#: Configuration fields that only matter for training.
DROPOUTS = ("attention_dropout", "residual_dropout", "embedding_dropout")

# Fields that published checkpoints have and that change nothing here.
_HARMLESS = frozenset(
    (
        *("alibi_bias_max", "architectures", "attention_layer_norm_with_affine", "attn_implementation", "auto_map"),
        *("bos_token_id", "chunk_size_feed_forward", "cls_token_id", "dtype", "experts_implementation"),
        *("finetuning_task", "flash_attention", "gradient_checkpointing", "id2label", "init_cutoff_factor"),
        *("init_device", "init_fn", "initializer_range", "label2id", "llm_model_path", "model_type", "name_or_path"),
        *("num_labels", "output_attentions", "output_hidden_states", "precision", "prefix", "pretrained_model_path"),
        *("problem_type", "return_dict", "sep_token_id", "task_specific_params", "tie_encoder_decoder"),
        *("tie_word_embeddings", "tokenizer_class", "torch_dtype", "torchscript", "transformers_version"),
        *("use_bfloat16", "use_cache"),
    )
)
# Of these, what transformers would act upon: kernels fetched from the hub, tables of labels.
_ACTED_UPON = ("attn_implementation", "experts_implementation", "id2label", "label2id", "num_labels", "pruned_heads")
_MATHEMATICS = re.compile(
    "attn|attention|rope|rotary|position|norm|head|expert|moe|router|gat(e|ing)|bias|activation|_act$|hidden|scal|cap$"
    "|clip|window|quant|embed|layer|mlp|ffn|kv|resid|logit|multiplier|causal|mask|conv|lora|dim$|codebook|vision"
)

Check = tuple[str, Callable[[Any], bool]]


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST_NUMBER


def _is_id(value: Any) -> bool:
    return _is_integer(value) and 0 <= value < LARGEST_SIZE


def _or_none(check: Check) -> Check:
    return check[0], lambda value: value is None or check[1](value)


def _is_end(value: Any) -> bool:
    return value is None or _is_id(value) or (isinstance(value, list | tuple) and all(map(_is_id, value)))


SIZE: Check = ("a positive integer", lambda value: _is_integer(value) and value > 0)
_FLAG: Check = ("true or false", lambda value: isinstance(value, bool))
_POSITIVE: Check = ("a finite number above 0", lambda value: _is_number(value) and value > 0)
_SHARE: Check = ("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
_ID: Check = ("a token id", _is_id)

_CHECKS: dict[str, Check] = {
    **dict.fromkeys(("d_model", "n_heads", "n_layers", "vocab_size", "max_sequence_length", "mlp_ratio"), SIZE),
    **dict.fromkeys(("n_kv_heads", "mlp_hidden_size", "embedding_size"), _or_none(SIZE)),
    **dict.fromkeys(("rope_full_precision", "weight_tying", "include_bias", "scale_logits"), _FLAG),
    **dict.fromkeys(("rope_theta", "rms_norm_eps"), _POSITIVE),
    **dict.fromkeys(DROPOUTS, _SHARE),
    "include_qkv_bias": _or_none(_FLAG),
    "init_std": ("a finite number of at least 0", lambda value: _is_number(value) and value >= 0),
    "mask_token_id": _ID,
    "eos_token_id": ("a token id, a list of them or null", _is_end),
    "pad_token_id": _or_none(_ID),
}

#: What a checkpoint has to say itself: it cannot be told from the weights, and defaults differ between codes.
REQUIRED = ("d_model", "n_heads", "n_layers", "vocab_size", "max_sequence_length", "rms_norm_eps", "mask_token_id")


def check_field(name: str, value: Any, check: Check) -> None:
    """Raise ``ValueError`` unless ``value`` passes ``check``."""
    if not check[1](value):
        raise ValueError(f"LLaDA configuration: {name} must be {check[0]}, got {shown(value)}")
    if _is_integer(value) and value > LARGEST_SIZE:
        raise ValueError(f"LLaDA configuration: {name} must be at most {LARGEST_SIZE}, got {shown(value)}")


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_architecture(config: Any, rope: Mapping[str, Any] | None = None) -> None:
    """Raise ``ValueError`` if ``config`` (ours or the authors') asks for a forward pass that LLaDA-8B does not use.

    Fields that ``config`` does not have count as LLaDA-8B's.

    Args:
        rope: where ``rope_parameters`` and ``rope_scaling`` stand; None: in ``config``.
    """
    check_foreign({name: getattr(config, name) for name in _known_foreign() if hasattr(config, name)})
    for name, allowed in FIXED_FIELDS.items():
        _check_fixed(name, getattr(config, name, allowed[0]), allowed)
    for name, check in _CHECKS.items():
        if hasattr(config, name):
            value = getattr(config, name)
            if name != "embedding_size" or value != 0 or isinstance(value, bool):  # 0 stands for vocab_size, like None
                check_field(name, value, check)
    theta = rope_theta_of(vars(config) if rope is None else rope)
    if theta is not None and theta != config.rope_theta:
        raise ValueError(
            f"LLaDA configuration: rope_theta is {config.rope_theta!r}, in rope_parameters or rope_scaling {theta!r}"
        )
    if getattr(config, "include_bias", False) and getattr(config, "bias_for_layer_norm", False) is None:
        raise ValueError("LLaDA configuration: bias_for_layer_norm=None is not supported with include_bias=True")
    if config.d_model % config.n_heads or (config.d_model // config.n_heads) % 2:
        raise ValueError(
            "LLaDA configuration: d_model must be an even multiple of n_heads, "
            f"got {config.d_model} and {config.n_heads}"
        )
    n_kv_heads = config.n_heads if config.n_kv_heads is None else config.n_kv_heads
    if config.n_heads % n_kv_heads:
        raise ValueError(f"LLaDA configuration: n_kv_heads must divide n_heads, got {n_kv_heads} and {config.n_heads}")


def _known_foreign() -> tuple[str, ...]:
    return (*_FOREIGN_FIELDS, "clip_qkv", "sliding_window", "quantization_config")


def _check_fixed(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    # 1 is 1.0, but not true.
    if not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in allowed):
        raise ValueError(f"LLaDA configuration: {name}={shown(value)} is not supported, only {allowed[0]!r}")


def check_foreign(fields: Mapping[str, Any]) -> list[str]:
    """Look at fields that are not ours; returns those of which nothing is known, and which only their names excuse.

    Raises:
        ValueError: one is known to change the forward pass, or its name suggests that it does.
    """
    unknown = []
    for name, allowed in _FOREIGN_FIELDS.items():
        if name in fields:
            _check_fixed(name, fields[name], allowed)
    for name, value in fields.items():
        if value is None or name.startswith("_") or name in _HARMLESS or name in _FOREIGN_FIELDS:
            continue
        if name in _of_generation():
            continue
        if _MATHEMATICS.search(name) or hasattr(transformers.PretrainedConfig, name):
            raise ValueError(
                f"LLaDA configuration: {name}={shown(value)} is not supported: LLaDA-8B's forward pass has nothing of "
                "that name; remove the field if it changes nothing"
            )
        unknown.append(name)
    return unknown


def _of_generation() -> frozenset[str]:
    """Settings of decoding, which older versions of transformers keep in the model's configuration."""
    return frozenset(vars(transformers.GenerationConfig()))


def take_synonyms(config: Any, fields: dict[str, Any]) -> None:
    """Remove from ``fields`` those that repeat one of ``config`` in another family's words.

    Raises:
        ValueError: one has another value.
    """
    for name, ours in _SYNONYMS.items():
        value = fields.pop(name, None)
        if value is not None and (isinstance(value, bool) or value != getattr(config, ours)):
            raise ValueError(f"LLaDA configuration: {name}={shown(value)}, but {ours} is {getattr(config, ours)!r}")


def warn_of_unknown(names: list[str]) -> None:
    if names:
        listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        warnings.warn(f"LLaDA configuration: fields that are not known here and change nothing: {listed}", stacklevel=4)


def rope_theta_of(fields: Mapping[str, Any]) -> Any:
    """The rotary base that ``rope_parameters`` or ``rope_scaling`` name, None if they name none.

    Raises:
        ValueError: one of them asks for other angles than a plain rotary embedding.
    """
    theta = None
    for name in ("rope_parameters", "rope_scaling"):
        value = fields.get(name)
        if value is None:
            continue
        plain = isinstance(value, dict) and all(
            entry in ("default", None)
            if key in ("rope_type", "type")
            else entry in (1, None)
            if key == "partial_rotary_factor"
            else key == "rope_theta"
            for key, entry in value.items()
        )
        if not plain:
            raise ValueError(f"LLaDA configuration: {name}={shown(value)} is not supported, only a plain rope_theta")
        if value.get("rope_theta") is not None:
            check_field(f"{name}.rope_theta", value["rope_theta"], _POSITIVE)
            if theta is not None and theta != value["rope_theta"]:
                raise ValueError(f"LLaDA configuration: rope_parameters and rope_scaling name two rope_theta: {theta}")
            theta = value["rope_theta"]
    return theta


def of_checkpoint(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a checkpoint's config.json for its configuration; without what transformers would act upon.

    Raises:
        ValueError: one that has to be there is not, has the wrong type, or is of another family.
    """
    check_foreign({name: fields[name] for name in _known_foreign() if name in fields})
    missing = [name for name in REQUIRED if fields.get(name) is None]
    if fields.get("rope_theta") is None and rope_theta_of(fields) is None:
        missing.append("rope_theta")
    if fields.get("mlp_hidden_size") is None and fields.get("mlp_ratio") is None:
        missing.append("mlp_hidden_size")
    if missing:
        raise ValueError(f"LLaDA configuration: {', '.join(missing)} missing or null")
    for name in ("dtype", "torch_dtype"):
        value = fields.get(name)
        if value is not None and not (isinstance(value, str) and isinstance(getattr(torch, value, None), torch.dtype)):
            raise ValueError(f"LLaDA configuration: {name} must be the name of a dtype, got {shown(value)}")
    embedding = fields.get("embedding_size") or fields["vocab_size"]
    kept = {name: value for name, value in fields.items() if not name.startswith("_") and name not in _ACTED_UPON}
    if _is_integer(embedding) and _is_integer(fields["vocab_size"]) and fields["vocab_size"] > embedding:
        raise ValueError(
            f"LLaDA configuration: vocab_size must be at most embedding_size = {shown(embedding)}, "
            f"got {shown(fields['vocab_size'])}"
        )
    kept.update((name, kept.get(name)) for name in ("eos_token_id", "pad_token_id"))  # our defaults are LLaDA-8B's
    ends = fields.get("eos_token_id")
    ids = {"mask_token_id": fields["mask_token_id"], "pad_token_id": fields.get("pad_token_id")}
    ids.update((f"eos_token_id[{i}]", end) for i, end in enumerate(ends if isinstance(ends, list) else [ends]))
    for name, value in ids.items():
        if _is_integer(value) and _is_integer(embedding) and not 0 <= value < embedding:
            raise ValueError(f"LLaDA configuration: {name} must lie in [0, {embedding}), got {shown(value)}")
    return kept
