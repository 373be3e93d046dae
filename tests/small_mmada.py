"""A MMaDA of a few thousand parameters with its image tokenizer, untrained."""

from __future__ import annotations

from pathlib import Path

import torch

from wino.multimodal import MagvitConfig, MAGVITv2
from wino.multimodal.pretrain import Pictures, save_folder
from wino.pretrain import Recipe

IMAGE_TOKENIZER = MagvitConfig(
    channels=4,
    encoder_multipliers=(1, 1, 1, 1),
    decoder_multipliers=(1, 1, 1, 1),
    encoder_blocks=(1, 1, 1, 1),
    decoder_blocks=(1, 1, 1, 1),
    code_bits=4,
    norm_groups=2,
)
SHAPE = {"d_model": 32, "n_layers": 1, "n_heads": 2, "mlp_hidden_size": 48}


def build_corpus() -> Pictures:
    torch.manual_seed(0)
    return Pictures(MAGVITv2(IMAGE_TOKENIZER).eval().requires_grad_(False))


def save_small_mmada(folder: Path) -> Path:
    """Written as a checkpoint to ``folder``, which is returned."""
    corpus = build_corpus()
    save_folder(corpus.build_model(Recipe(**SHAPE)), corpus, folder)
    return folder
