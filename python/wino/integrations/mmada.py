"""MMaDA's generate methods, with the authors' signatures, on our loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..config import GenerationConfig
from ..generation import GenerationOutput, generate


def mmu_generate(
    model: Any,
    idx: Tensor | None = None,
    input_embeddings: None = None,
    max_new_tokens: int = 128,
    steps: int = 128,
    block_length: int = 128,
    temperature: float = 0.0,
    top_k: Any = None,
    eot_token: Any = None,
    cfg_scale: float = 0.0,
    remasking: str = "low_confidence",
    mask_id: int = 126336,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """``MMadaModelLM.mmu_generate`` of the authors: low_confidence (docs/spec.md section 4) of prompts ``idx`` (B, P).

    ``top_k`` and ``eot_token`` change nothing there, so they are refused. ``attention_mask`` is (B, P) or
    (B, P + max_new_tokens), 0 at left padding. Random draws follow ``torch.manual_seed``.

    Returns:
        (B, P + max_new_tokens) int64.

    Raises:
        ValueError, TypeError: as :func:`wino.generate`; embeddings instead of tokens; another mask token than the
            model's.
    """
    for name, value in (("top_k", top_k), ("eot_token", eot_token)):
        if value is not None:
            raise ValueError(
                f"mmu_generate: {name}: changes nothing in the authors' method, got {value!r}; leave it out"
            )
    if input_embeddings is not None:
        raise ValueError("mmu_generate: input_embeddings is not supported, only token ids in idx")
    config = GenerationConfig(
        decoder="low_confidence",
        max_new_tokens=max_new_tokens,
        steps=steps,
        block_length=block_length,
        temperature=temperature,
        cfg_scale=cfg_scale,
        remasking=remasking,
        seed=_seed(temperature > 0 or remasking == "random"),
    )
    return _generate("mmu_generate", model, idx, attention_mask, mask_id, config).sequences


def mmu_generate_wino(
    model: Any,
    prompt: Tensor | None = None,
    gen_length: int = 128,
    block_length: int = 128,
    temperature: float = 0.0,
    mask_id: int = 126336,
    threshold: float = 0.8,
    threshold_back: float = 0.9,
) -> tuple[Tensor, int]:
    """``mmu_generate_wino`` of WINO's authors (docs/spec.md section 3), of one or more prompts (B, P) of equal length.

    Returns:
        (B, P + gen_length) int64, and the forward passes that the slowest of them took.

    Raises:
        ValueError, TypeError: as :func:`wino.generate`; another mask token than the model's.
    """
    config = GenerationConfig(
        decoder="wino",
        max_new_tokens=gen_length,
        block_length=block_length,
        temperature=temperature,
        threshold=threshold,
        threshold_back=threshold_back,
        seed=_seed(temperature > 0),
    )
    out = _generate("mmu_generate_wino", model, prompt, None, mask_id, config)
    return out.sequences, int(out.steps.max())


def mmu_generate_confidence_threshold(
    model: Any,
    prompt: Tensor | None = None,
    steps: int = 128,
    gen_length: int = 128,
    block_length: int = 128,
    temperature: float = 0.0,
    remasking: str = "low_confidence",
    mask_id: int = 126336,
    confidence_threshold: float | None = 0.9,
) -> tuple[Tensor, int]:
    """The method of WINO+'s authors: confidence_threshold (docs/spec.md section 4) of prompts (B, P) of equal length.

    With a threshold ``steps`` decides nothing, as there, but has to be a multiple of the number of blocks. Without one
    (None) it is low_confidence in that many steps.

    Returns:
        (B, P + gen_length) int64, and the forward passes that the slowest of them took.

    Raises:
        ValueError, TypeError: as :func:`wino.generate`; another mask token than the model's; ``remasking`` at random
            with a threshold, which would compare random numbers with it.
    """
    name = "mmu_generate_confidence_threshold"
    if confidence_threshold is not None and remasking != "low_confidence":
        raise ValueError(f"{name}: remasking: only 'low_confidence' has a confidence_threshold, got {remasking!r}")
    shared: dict[str, Any] = {"max_new_tokens": gen_length, "block_length": block_length, "temperature": temperature}
    # Also checks steps where they decide nothing.
    fixed = GenerationConfig(decoder="low_confidence", steps=steps, remasking=remasking, **shared)
    if confidence_threshold is None:
        config = fixed
    else:
        config = GenerationConfig(decoder="confidence_threshold", threshold=confidence_threshold, **shared)
    config.seed = _seed(temperature > 0 or remasking == "random")
    out = _generate(name, model, prompt, None, mask_id, config)
    return out.sequences, int(out.steps.max())


METHODS: dict[str, Callable[..., Any]] = {
    "mmu_generate": mmu_generate,
    "mmu_generate_wino": mmu_generate_wino,
    "mmu_generate_confidence_threshold": mmu_generate_confidence_threshold,
}


def _generate(
    name: str, model: Any, prompt: Tensor | None, mask: Tensor | None, mask_id: int, config: GenerationConfig
) -> GenerationOutput:
    if prompt is None:
        raise TypeError(f"{name}: needs token ids (B, P), got None")
    if mask_id != model.config.mask_token_id:
        raise ValueError(f"{name}: mask_id: the model's mask token is {model.config.mask_token_id}, got {mask_id}")
    if mask is not None and mask.dim() == 2:
        behind = mask[:, prompt.shape[1] :]
        if behind.shape[1] not in (0, config.max_new_tokens):
            raise ValueError(
                f"{name}: attention_mask: expected {prompt.shape[1]} columns, or {config.max_new_tokens} more, got "
                f"{mask.shape[1]}"
            )
        if behind.numel() and not bool(behind.all()):
            raise ValueError(f"{name}: attention_mask hides a part of the generation region")
        mask = mask[:, : prompt.shape[1]]
    return generate(model, prompt, mask, config)


def _seed(needed: bool) -> int:
    """From Torch's generator, so that ``torch.manual_seed`` governs as in the authors' code; untouched if unneeded."""
    return int(torch.randint(2**62, ())) if needed else 0
