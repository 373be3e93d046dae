"""Train the bundled MMaDA from scratch: a small MAGVIT-v2, then a small model that sees, answers and draws with it.

``make tiny-mmada``. Scenes (:mod:`wino.tasks.scenes`) of the training split alone; the model's objective is that of
:mod:`wino.pretrain`, over captions, answers and image codes. Interrupted runs resume exactly.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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
from ..tasks.evaluation import encode_answers
from ..tasks.scenes import (
    CELL,
    COLOURS,
    DRAWING,
    SHAPES,
    SIDE,
    SIZES,
    Captions,
    Scene,
    draw_scene,
    render,
    scene_of,
    words,
)
from .magvit import MagvitConfig, MAGVITv2
from .pixels import to_pixels
from .processor import IMAGE_TOKENIZER, Processor

LAYOUT_TOKENS = ("<|soi|>", "<|eoi|>", "<|t2i|>", "<|mmu|>")
# What is in each cell, three words each at a fixed place: the short way to learn to see, and to draw.
INVENTORY, BLUEPRINT = "inventory", "blueprint"
_APART = 0.25  # from the ground, of a pixel that belongs to an object
_NAMES = (len(COLOURS) + 1, len(SIZES), len(SHAPES))  # what a cell can hold: colours and none, sizes, shapes
_NOTHING = -1
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
MODEL = Recipe(
    steps=4000,
    decay_fraction=0.6,
    batch=(("caption", 30), ("question", 20), (INVENTORY, 14), (DRAWING, 12), (BLUEPRINT, 10)),
)


@dataclass(frozen=True)
class TokenizerRecipe:
    """Everything that decides the image tokenizer's weights.

    Half of the pictures have two to four objects, half are crowded (up to nine, which no task has), so that less of
    what is learnt from is empty. For ``soft_fraction`` of the steps the decoder sees tanh(k grid), k rising from 1 to
    ``sharpness``, then bits, through which gradients pass as through that tanh: bits from the start would settle before
    they mean anything. ``emphasis`` weighs pixels that differ from the ground; ``entropy`` asks for sure bits that
    differ over the batch; ``naming`` for bits of which a small head, dropped afterwards, can name what is in each cell:
    an absolute error alone spends them on places and colours and leaves shapes blurred.
    """

    seed: int = 0
    steps: int = 3000
    batch: int = 16
    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.99)
    warmup_steps: int = 30
    soft_fraction: float = 0.3
    sharpness: float = 4.0
    emphasis: float = 4.0
    entropy: float = 0.02
    naming: float = 0.2
    config: MagvitConfig = PICTURES


class TokenizerTraining(nn.Module):
    """The image tokenizer, and the head that names what its bits show: colour, size and shape of each cell's object."""

    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        self.magvit = MAGVITv2(config)
        side = CELL // config.patch
        self.names = nn.Sequential(
            nn.Conv2d(config.code_bits, 128, side, stride=side), nn.GELU(), nn.Conv2d(128, sum(_NAMES), 1)
        )


def training_scenes(count: int, rng: random.Random) -> list[Scene]:
    """The first half of two to four objects, of the training split, the rest of five to nine."""
    asked = [scene_of(item) for item in draw_items(Captions(), count // 2, rng)]
    return asked + [draw_scene(rng, 5, 9) for _ in range(count - len(asked))]


def tokenizer_loss(
    model: TokenizerTraining, scenes: Sequence[Scene], recipe: TokenizerRecipe, step: int
) -> dict[str, Tensor]:
    """Weighted absolute error of the reconstruction; entropy: of each bit, less that of its mean over the batch; and
    cross-entropy of the names."""
    pixels = torch.stack([to_pixels(render(scene), SIDE) for scene in scenes])
    soft_steps = recipe.soft_fraction * recipe.steps
    sharpness = 1 + (recipe.sharpness - 1) * min(step / max(soft_steps, 1), 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grid = model.magvit.encoder(pixels).float()
        bits = torch.tanh(sharpness * grid)
        if step >= soft_steps:
            bits = bits + (torch.where(grid > 0, 1.0, -1.0) - bits).detach()
        picture, named = model.magvit.decoder(bits).float(), model.names(bits).float()
    ground = pixels.flatten(2).median(2).values[:, :, None, None]
    apart = (pixels - ground).abs().amax(1, keepdim=True) > _APART
    error = (1 + recipe.emphasis * apart) * (picture - pixels).abs()
    odds = 2 * sharpness * grid  # of 1: tanh(x) = 2 sigmoid(2 x) - 1
    sure = (F.softplus(odds) - odds * torch.sigmoid(odds)).mean()
    share = torch.sigmoid(odds).mean((0, 2, 3)).clamp(1e-4, 1 - 1e-4)
    spread = F.binary_cross_entropy(share, share, reduction="none").mean()
    names = zip(named.flatten(2).split(_NAMES, dim=1), _names_of(scenes), strict=True)
    naming = torch.stack([F.cross_entropy(guess, name, ignore_index=_NOTHING) for guess, name in names]).sum()
    return {"error": error.mean(), "entropy": recipe.entropy * (sure - spread), "naming": recipe.naming * naming}


def _names_of(scenes: Sequence[Scene]) -> list[Tensor]:
    """Colour (or none), size and shape (B, 9) of each cell's object; of an empty cell no size, no shape."""
    colour = torch.full((len(scenes), 9), len(COLOURS))
    size, shape = (torch.full((len(scenes), 9), _NOTHING) for _ in range(2))
    for row, scene in enumerate(scenes):
        for thing in scene:
            colour[row, thing.place] = list(COLOURS).index(thing.colour)
            size[row, thing.place], shape[row, thing.place] = SIZES.index(thing.size), SHAPES.index(thing.shape)
    return [colour, size, shape]


def train_image_tokenizer(recipe: TokenizerRecipe, folder: Path, *, checkpoint_every: int = 100) -> MAGVITv2:
    """Run or resume the recipe in ``folder``."""
    torch.manual_seed(recipe.seed)
    model = TokenizerTraining(recipe.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=recipe.betas)

    def take_step(step: int) -> dict[str, float]:
        rng = random.Random(f"{recipe.seed}/tokenizer/{step}")
        losses = tokenizer_loss(model, training_scenes(recipe.batch, rng), recipe, step)
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        take_optimizer_steps([optimizer], min((step + 1) / recipe.warmup_steps, 2 * (1 - step / recipe.steps), 1.0))
        return {name: float(loss.detach()) for name, loss in losses.items()}

    run(recipe, folder, model, [optimizer], take_step, checkpoint_every)
    return model.magvit.eval().requires_grad_(False)


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
        if name in (INVENTORY, BLUEPRINT):
            scenes = training_scenes(count, rng)
            codes = self.processor.codes([render(scene) for scene in scenes])
            return (self._seen if name == INVENTORY else self._drawn)(codes, [_inventory(scene) for scene in scenes])
        task = PICTURE_TASKS["caption" if name == DRAWING else name]
        items = draw_items(task, count, rng)
        codes = self.processor.codes([task.picture(item) for item in items])
        if name == DRAWING:
            return self._drawn(codes, ["" if rng.random() < _NO_TEXT else item.answer for item in items])
        about = self.processor.layout.about_picture
        prompts = [about(picture, item.prompt) for picture, item in zip(codes, items, strict=True)]
        responses = encode_answers(self.tokenizer, task, items)
        return _batch(prompts, responses, responses[:, :0])

    def _seen(self, codes: Tensor, texts: list[str]) -> Batch:
        prompts = [self.processor.layout.about_picture(picture, "what is there ?") for picture in codes]
        responses = torch.tensor(self.tokenizer(texts, add_special_tokens=False)["input_ids"])
        return _batch(prompts, responses, responses[:, :0])

    def _drawn(self, codes: Tensor, texts: list[str]) -> Batch:
        layout = self.processor.layout
        end = torch.full((len(codes), 1), layout.picture_region(0)[-1])
        return _batch([layout.for_picture(text) for text in texts], codes + layout.code_offset, end)


def _inventory(scene: Scene) -> str:
    there = {thing.place: thing.name for thing in scene}
    return " ".join(there.get(place, "is no object") for place in range(9))


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
    corpus.processor.magvit.save(folder / IMAGE_TOKENIZER, torch.float16)
    settings = {"max_new_tokens": max(task.max_new_tokens for task in PICTURE_TASKS.values())}
    (folder / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train wino-tiny-mmada from scratch, its image tokenizer first.")
    parser.add_argument("--out", type=Path, default=Path("build/wino-tiny-mmada"), help="folder of the finished model")
    parser.add_argument("--work", type=Path, default=Path("build/wino-tiny-mmada-run"), help="checkpoints and logs")
    parser.add_argument("--tokenizer-steps", type=int, default=TokenizerRecipe.steps)
    parser.add_argument("--steps", type=int, default=MODEL.steps)
    chosen = parser.parse_args(arguments)
    magvit = train_image_tokenizer(TokenizerRecipe(steps=chosen.tokenizer_steps), chosen.work / "tokenizer")
    # The model learns the codes of the weights that go with it, which are rounded.
    magvit.save(chosen.work / IMAGE_TOKENIZER, torch.float16)
    corpus = Pictures(MAGVITv2.load(chosen.work / IMAGE_TOKENIZER))
    model = train(replace(MODEL, steps=chosen.steps), chosen.work / "model", corpus)
    assert isinstance(model, MMadaModelLM)
    save_folder(model, corpus, chosen.out)
    print(f"wrote {chosen.out}")


if __name__ == "__main__":
    main()
