"""Pictures from text, as MMaDA draws them: MaskGIT over the image codes, with classifier-free guidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import USED_BY, GenerationConfig
from ..generation import GenerationOutput, generate
from ..prompts import pad_left
from .layout import PromptLayout


def drawing_config(layout: PromptLayout, **settings: Any) -> GenerationConfig:
    """Settings of MMaDA's demonstration (``maskgit``, 15 steps, guidance 3.5), and those given in their place.

    Of the demonstration's, another ``decoder`` takes those that it goes by.

    Raises:
        ValueError, TypeError: as :class:`wino.GenerationConfig`.
    """
    defaults: dict[str, Any] = {
        "decoder": "maskgit",
        "max_new_tokens": layout.num_codes + 1,
        "token_range": layout.token_range,
        "steps": 15,
        "cfg_scale": 3.5,
        "temperature": 1.0,
        "choice_temperature": 1.0,
    }
    decoder = settings.get("decoder", "maskgit")
    fitting = {name: value for name, value in defaults.items() if decoder in USED_BY.get(name, (decoder,))}
    return GenerationConfig(**{**fitting, **settings})


def draw(
    model: Any, layout: PromptLayout, texts: Sequence[str], config: GenerationConfig | None = None, **call: Any
) -> tuple[Tensor, GenerationOutput]:
    """Image codes (B, num_codes) int64 for descriptions, and the decode; ``MAGVITv2.decode_code`` makes pixels of them.

    Args:
        model: a :class:`wino.models.MMadaModelLM`, or a MMaDA after ``wino.patch``.
        texts: what each picture shows; equal ones with equal seeds give equal pictures. "": any picture.
        config: from :func:`drawing_config`. Any decoder works on the codes; of WINO's, ``max_accept`` must be raised
            for a picture's many tokens; on the bundled model it draws no better than ``maskgit`` (docs/pictures.md).
        **call: further arguments of :func:`wino.generate`, such as ``streamer``; no settings, which are ``config``'s.

    Raises:
        ValueError, TypeError: as :class:`PromptLayout` and :func:`wino.generate`.
    """
    if isinstance(texts, str):
        raise TypeError("texts: expected a sequence of descriptions, got one text")
    config = drawing_config(layout) if config is None else config
    if settings := call.keys() & config.to_dict().keys():
        raise TypeError(f"{', '.join(sorted(settings))}: expected in config, from drawing_config, not beside it")
    ids, mask = pad_left([layout.for_picture(text) for text in texts])
    if config.cfg_scale > 0:
        guide = pad_left([layout.for_picture("")] * len(texts))
        call = {"unconditional_ids": guide[0], "unconditional_mask": guide[1], **call}
    region = torch.tensor([layout.picture_region(model.config.mask_token_id)] * len(texts))
    out = generate(model, ids, mask, config, generation_ids=region, **call)
    return layout.codes_of(out.sequences[:, ids.shape[1] :]), out
