"""The settings of ``transformers.GenerationConfig`` in this loop: honoured, carried along, or refused by name."""

from __future__ import annotations

from functools import cache
from typing import Any

import transformers

HONOURED = (
    "max_length",
    "do_sample",
    "top_k",
    "top_p",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "eos_token_id",
    "pad_token_id",
    "stop_strings",
    "num_return_sequences",
    "use_cache",
    "return_dict_in_generate",
)
"""Those that :class:`wino.GenerationConfig` documents beside its own; None: not set."""

CARRIED = ("bos_token_id", "_from_model_config", "_commit_hash", "_original_object_hash", "transformers_version")
"""What says something of a file or of an empty prompt, which is refused here: kept, and nothing depends on it."""

# Defaults of transformers 4, which 5 writes as None, and values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "min_length": (0,),
    "min_new_tokens": (0,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "typical_p": (1.0,),
    "min_p": (0.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "diversity_penalty": (0.0,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "length_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "guidance_scale": (1.0,),
    "num_assistant_tokens": (20,),
    "num_assistant_tokens_schedule": ("constant",),
    "assistant_confidence_threshold": (0.4,),
    "assistant_lookbehind": (10,),
    "target_lookbehind": (10,),
}

_INSTEAD = {
    **dict.fromkeys(("min_length", "min_new_tokens"), "suppress_tokens keeps the end tokens from being drafted"),
    "max_time": "stop_at_eos and stop_strings end a decode early",
    "guidance_scale": "cfg_scale is classifier-free guidance, guidance_scale = cfg_scale + 1",
    **dict.fromkeys(("num_beams", "num_beam_groups", "penalty_alpha"), "num_return_sequences draws several answers"),
    **dict.fromkeys(
        ("cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "return_legacy_cache"),
        "cache is 'none', 'prefix' or 'dual'",
    ),
    **dict.fromkeys(("compile_config", "disable_compile"), "compile_step compiles the step"),
    **dict.fromkeys(("output_scores", "output_logits"), "return_trace records every step's confidences"),
    **dict.fromkeys(
        ("forced_bos_token_id", "forced_eos_token_id", "forced_decoder_ids", "force_words_ids", "constraints"),
        "tokens that must stand somewhere are given in generation_ids",
    ),
    **dict.fromkeys(
        ("typical_p", "min_p", "top_h", "epsilon_cutoff", "eta_cutoff"), "top_k and top_p filter what is drawn"
    ),
    "sequence_bias": "suppress_tokens bans tokens",
}


@cache
def _defaults() -> dict[str, Any]:
    return dict(vars(transformers.GenerationConfig()))


@cache
def known_settings() -> frozenset[str]:
    """Every attribute that the installed transformers gives a configuration."""
    return frozenset((*_defaults(), *HONOURED, *CARRIED))


def refuse_foreign(settings: dict[str, Any]) -> None:
    """Raise for a setting of transformers that asks for what this loop does not do.

    Args:
        settings: names and values; ours, ``HONOURED`` and ``CARRIED`` ones left out.

    Raises:
        ValueError: names the setting, and what to do instead.
    """
    defaults = _defaults()
    for name, value in settings.items():
        asks_nothing = value is None or value is False or value == [] or value == {}
        neutral = (defaults.get(name), *_NEUTRAL.get(name, ()))
        if asks_nothing or any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral):
            continue
        instead = _INSTEAD.get(name, "a masked diffusion decode has nothing of the kind")
        raise ValueError(f"{name}: not supported, got {value!r}; {instead}. Leave it out")
