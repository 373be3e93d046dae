"""What tasks with pictures need of one MMaDA: tokenizer, image tokenizer, prompt layout."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..models.loading import checkpoint_folder
from ..models.loading import load as load_model
from ..models.mmada import MMadaModelLM
from ..prompts import pad_left
from .layout import PromptLayout
from .magvit import MAGVITv2
from .pixels import Source, to_pixels

IMAGE_TOKENIZER = "image_tokenizer"  # folder beside a bundled model's weights
PUBLISHED_IMAGE_TOKENIZER = "showlab/magvitv2"


class Processor:
    """Stands in for the tokenizer, whose attributes it has, wherever pictures come with the prompts.

    Attributes:
        tokenizer, magvit, layout: its parts.
        side: pixels of a picture's side.
    """

    def __init__(self, tokenizer: Any, config: Any, magvit: MAGVITv2) -> None:
        """Raises ``ValueError`` if ``magvit`` has other codes than ``config``, or a picture is not square."""
        self.tokenizer, self.magvit = tokenizer, magvit
        self.layout = PromptLayout(tokenizer, config)
        if magvit.config.codebook_size != self.layout.codebook_size:
            raise ValueError(
                f"image tokenizer: the model has {self.layout.codebook_size} codes, it {magvit.config.codebook_size}"
            )
        grid = math.isqrt(self.layout.num_codes)
        if grid**2 != self.layout.num_codes:
            raise ValueError(f"num_vq_tokens: {self.layout.num_codes} codes are no square")
        self.side = grid * magvit.config.patch

    def __getattr__(self, name: str) -> Any:
        if name == "tokenizer":  # asked for while a copy is being built
            raise AttributeError(name)
        return getattr(self.tokenizer, name)

    def __len__(self) -> int:
        return len(self.tokenizer)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tokenizer(*args, **kwargs)

    def codes(self, pictures: Sequence[Source], fit: Literal["crop", "squash"] = "crop") -> Tensor:
        """Codes (B, N) int64 of pictures; ``fit`` as of :func:`wino.multimodal.to_pixels`.

        Raises:
            ValueError: no pictures, or one that :func:`wino.multimodal.to_pixels` refuses.
        """
        if not pictures:
            raise ValueError("pictures: expected at least one")
        device = next(self.magvit.parameters()).device
        pixels = torch.stack([to_pixels(picture, self.side, fit) for picture in pictures])
        return self.magvit.get_code(pixels.to(device))

    def encode_with_pictures(
        self,
        prompts: Sequence[str],
        pictures: Sequence[Source | list[Source]],
        fit: Literal["crop", "squash"] = "crop",
    ) -> tuple[Tensor, Tensor]:
        """Each prompt with its picture, or a list of several, left-padded: ids and mask (B, P) int64, on the CPU.

        Raises:
            TypeError: ``prompts`` is one text.
            ValueError: not as many pictures as prompts, or what :meth:`codes` and :class:`PromptLayout` refuse.
        """
        if isinstance(prompts, str):
            raise TypeError("prompts: expected a sequence of prompts, got one text")
        if len(prompts) != len(pictures):
            expected = f"one, or a list of some, for each of {len(prompts)} prompts"
            raise ValueError(f"pictures: expected {expected}, got {len(pictures)}")
        shown = [several if isinstance(several, list) else [several] for several in pictures]
        codes = self.codes(list(itertools.chain(*shown)), fit).cpu().split([len(several) for several in shown])
        about = self.layout.about_picture
        return pad_left([about(list(own), prompt) for own, prompt in zip(codes, prompts, strict=True)])


def load(
    name_or_path: str | Path,
    *,
    image_tokenizer: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = "auto",
) -> tuple[MMadaModelLM, Processor]:
    """A MMaDA and its processor; arguments and errors as of :func:`wino.load`.

    Args:
        image_tokenizer: folder or hub id; None: the folder ``image_tokenizer`` beside the weights, or
            ``showlab/magvitv2`` where there is none.
    """
    model, tokenizer = load_model(name_or_path, dtype=dtype, device=device)
    if not isinstance(model, MMadaModelLM):
        raise ValueError(f"{name_or_path}: expected a MMaDA, got model_type {model.config.model_type!r}")
    if image_tokenizer is None:
        beside = checkpoint_folder(name_or_path) / IMAGE_TOKENIZER
        image_tokenizer = beside if beside.is_dir() else PUBLISHED_IMAGE_TOKENIZER
    return model, Processor(tokenizer, model.config, MAGVITv2.load(image_tokenizer, device=model.device))
