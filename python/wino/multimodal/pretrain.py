"""Train the bundled MMaDA from scratch: a small MAGVIT-v2, then a small model that sees, answers and draws with it.

``make tiny-mmada``. Scenes (:mod:`wino.tasks.scenes`) of the training split alone; the model's objective is that of
:mod:`wino.pretrain`, over captions, answers and image codes. Interrupted runs resume exactly.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from ..models.mmada import MMadaConfig, MMadaModelLM
from ..pretrain import (
    SPECIAL_TOKENS,
    Batch,
    Recipe,
    chat_tokenizer,
    draw_items,
    run,
    save_model_folder,
    take_optimizer_steps,
    train,
)
from ..tasks import PICTURE_TASKS
from ..tasks.base import Item
from ..tasks.evaluation import encode_answers
from ..tasks.scenes import SIDE, Captions, words
from .magvit import MagvitConfig, MAGVITv2
from .pixels import to_pixels
from .processor import IMAGE_TOKENIZER, Processor

LAYOUT_TOKENS = ("<|soi|>", "<|eoi|>", "<|t2i|>", "<|mmu|>")
DRAWING = "drawing"  # the family of pictures from captions; those of questions are tasks
_APART = 0.25  # from the ground, of a pixel that belongs to an object
_NO_TEXT = 0.1  # of the drawings' prompts, which classifier-free guidance compares with
PICTURES = MagvitConfig(
    channels=32,
    encoder_multipliers=(1, 1, 2, 3),
    decoder_multipliers=(1, 1, 2, 3),
    encoder_blocks=(1, 1, 1, 2),
    decoder_blocks=(1, 1, 2, 2),
    code_bits=10,
    norm_groups=8,
)
MODEL = Recipe(steps=3000, batch=(("caption", 32), ("question", 24), (DRAWING, 16)))


@dataclass(frozen=True)
class TokenizerRecipe:
    """Everything that decides the image tokenizer's weights.

    For ``soft_fraction`` of the steps the decoder sees tanh(k grid), k rising from 1 to ``sharpness``, then bits,
    through which gradients pass as through that tanh: bits from the start would settle before they mean anything.
    ``emphasis`` weighs pixels that differ from the ground, which most of a scene is; ``entropy`` asks for sure bits
    that differ over the batch.
    """

    seed: int = 0
    steps: int = 2000
    batch: int = 16
    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.99)
    warmup_steps: int = 30
    soft_fraction: float = 0.4
    sharpness: float = 4.0
    emphasis: float = 4.0
    entropy: float = 0.02
    config: MagvitConfig = PICTURES


def pixels_of(items: Sequence[Item], task: Captions) -> Tensor:
    return torch.stack([to_pixels(task.picture(item), SIDE) for item in items])


def tokenizer_loss(model: MAGVITv2, pixels: Tensor, recipe: TokenizerRecipe, step: int) -> dict[str, Tensor]:
    """Weighted absolute error of the reconstruction, and entropy: of each bit, less that of its mean over the batch."""
    soft_steps = recipe.soft_fraction * recipe.steps
    sharpness = 1 + (recipe.sharpness - 1) * min(step / max(soft_steps, 1), 1.0)
    grid = model.encoder(pixels)
    bits = torch.tanh(sharpness * grid)
    if step >= soft_steps:
        bits = bits + (torch.where(grid > 0, 1.0, -1.0) - bits).detach()
    ground = pixels.flatten(2).median(2).values[:, :, None, None]
    apart = (pixels - ground).abs().amax(1, keepdim=True) > _APART
    error = (1 + recipe.emphasis * apart) * (model.decoder(bits) - pixels).abs()
    odds = 2 * sharpness * grid  # of 1: tanh(x) = 2 sigmoid(2 x) - 1
    sure = (F.softplus(odds) - odds * torch.sigmoid(odds)).mean()
    share = torch.sigmoid(odds).mean((0, 2, 3)).clamp(1e-4, 1 - 1e-4)
    spread = F.binary_cross_entropy(share, share, reduction="none").mean()
    return {"error": error.mean(), "entropy": recipe.entropy * (sure - spread)}


def train_image_tokenizer(recipe: TokenizerRecipe, folder: Path, *, checkpoint_every: int = 100) -> MAGVITv2:
    """Run or resume the recipe in ``folder``."""
    torch.manual_seed(recipe.seed)
    model, task = MAGVITv2(recipe.config), Captions()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=recipe.betas)

    def take_step(step: int) -> dict[str, float]:
        rng = random.Random(f"{recipe.seed}/tokenizer/{step}")
        pixels = pixels_of(draw_items(task, recipe.batch, rng), task)
        losses = tokenizer_loss(model, pixels, recipe, step)
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        take_optimizer_steps([optimizer], min((step + 1) / recipe.warmup_steps, 2 * (1 - step / recipe.steps), 1.0))
        return {name: float(loss.detach()) for name, loss in losses.items()}

    run(recipe, folder, model, [optimizer], take_step, checkpoint_every)
    return model.eval().requires_grad_(False)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the scenes' language, special tokens and those of MMaDA's layout."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = [*SPECIAL_TOKENS, "<|unk|>", "<|startoftext|>", *LAYOUT_TOKENS, *words()]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<|unk|>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return chat_tokenizer(backend, LAYOUT_TOKENS, bos_token="<|startoftext|>")


class Pictures:
    """Captions, questions and drawings of scenes, as a corpus of :func:`wino.pretrain.train`."""

    def __init__(self, magvit: MAGVITv2) -> None:
        self.tokenizer = build_tokenizer()
        codes = magvit.config.codebook_size
        self._sizes = {
            "codebook_size": codes,
            "num_vq_tokens": (SIDE // magvit.config.patch) ** 2,
            "llm_vocab_size": len(self.tokenizer),
            "new_vocab_size": len(self.tokenizer) + codes,
            "mask_token_id": self.tokenizer.mask_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        self.processor = Processor(self.tokenizer, MMadaConfig(**self._sizes), magvit)

    def build_model(self, recipe: Recipe) -> MMadaModelLM:
        torch.manual_seed(recipe.seed)
        config = MMadaConfig(
            **self._sizes,
            d_model=recipe.d_model,
            n_layers=recipe.n_layers,
            n_heads=recipe.n_heads,
            mlp_hidden_size=recipe.mlp_hidden_size,
            max_sequence_length=256,
            rope_theta=10000.0,
        )
        return MMadaModelLM(config)

    def batch(self, name: str, count: int, rng: random.Random) -> Batch:
        task = PICTURE_TASKS["caption" if name == DRAWING else name]
        items = draw_items(task, count, rng)
        codes = self.processor.codes([task.picture(item) for item in items])
        layout = self.processor.layout
        if name == DRAWING:
            texts = ["" if rng.random() < _NO_TEXT else item.answer for item in items]
            prompts = [layout.for_picture(text) for text in texts]
            end = torch.full((count, 1), layout.picture_region(0)[-1])
            return _batch(prompts, codes + layout.code_offset, end)
        prompts = [layout.about_picture(picture, item.prompt) for picture, item in zip(codes, items, strict=True)]
        responses = encode_answers(self.tokenizer, task, items)
        return _batch(prompts, responses, responses[:, :0])


def _batch(prompts: list[list[int]], responses: Tensor, behind: Tensor) -> Batch:
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    tokens = torch.cat((padded, responses, behind), dim=1)
    first = torch.tensor([longest - len(prompt) for prompt in prompts])
    visible = torch.arange(tokens.shape[1]) >= first[:, None]
    return Batch(tokens, longest, responses.shape[1], None if bool(visible.all()) else visible)


def save_folder(model: MMadaModelLM, corpus: Pictures, folder: Path) -> None:
    """A checkpoint that :func:`wino.multimodal.load` reads, image tokenizer included."""
    save_model_folder(model, folder, corpus.tokenizer)
    corpus.processor.magvit.save(folder / IMAGE_TOKENIZER)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train wino-tiny-mmada from scratch, its image tokenizer first.")
    parser.add_argument("--out", type=Path, default=Path("build/wino-tiny-mmada"), help="folder of the finished model")
    parser.add_argument("--work", type=Path, default=Path("build/wino-tiny-mmada-run"), help="checkpoints and logs")
    parser.add_argument("--tokenizer-steps", type=int, default=TokenizerRecipe.steps)
    parser.add_argument("--steps", type=int, default=MODEL.steps)
    chosen = parser.parse_args(arguments)
    magvit = train_image_tokenizer(TokenizerRecipe(steps=chosen.tokenizer_steps), chosen.work / "tokenizer")
    corpus = Pictures(magvit)
    settings: dict[str, Any] = {"steps": chosen.steps, "batch": MODEL.batch}
    model = train(Recipe(**settings), chosen.work / "model", corpus)
    assert isinstance(model, MMadaModelLM)
    save_folder(model, corpus, chosen.out)
    print(f"wrote {chosen.out}")


if __name__ == "__main__":
    main()
