"""Train the bundled model from scratch: a small LLaDA on the three task families (``make tiny``).

The objective is LLaDA's (arXiv 2502.09992, eq. 5) in its low-variance form: instead of masking every response token
with probability t, k of the L response tokens are masked with k uniform on 1..L, and the loss is the mean
cross-entropy of those k. Prompts are never masked. Everything that is random at step i follows from (seed, i), so an
interrupted run resumes exactly where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedTokenizerFast

from .models.llada import LLaDAConfig, LLaDAModelLM
from .models.loading import save_tokenizer
from .progress import ProgressReport
from .tasks import TASKS, Item, Task
from .tasks.evaluation import encode_answers

SPECIAL_TOKENS = ("<|endoftext|>", "<|mdm_mask|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|endoftext|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the trained weights.

    ``batch`` gives the items of each family in one optimiser step. Learning rates are constant after ``warmup_steps``
    and fall linearly to zero over the last ``decay_fraction`` of ``steps``.
    """

    seed: int = 0
    steps: int = 5000
    d_model: int = 192
    n_layers: int = 6
    n_heads: int = 6
    mlp_hidden_size: int = 512
    batch: tuple[tuple[str, int], ...] = (("sudoku", 20), ("countdown", 56), ("sum", 48))
    muon_lr: float = 0.02
    muon_weight_decay: float = 0.05
    adam_lr: float = 2e-3
    adam_betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    warmup_steps: int = 100
    decay_fraction: float = 0.7


class Batch(NamedTuple):
    """Rows of one family.

    Attributes:
        tokens: (B, P + L + rest): prompts, responses, what is behind them and never masked.
        start: P; length: L.
        visible: (B, P + L + rest) bool, False at left padding; None: all.
    """

    tokens: Tensor
    start: int
    length: int
    visible: Tensor | None = None


class Corpus(Protocol):
    """What a model is trained on: its tokenizer, and batches of each family that a recipe names."""

    @property
    def tokenizer(self) -> Any: ...

    def build_model(self, recipe: Recipe) -> LLaDAModelLM:
        """Randomly initialised, of the recipe's shape, float32."""

    def batch(self, name: str, count: int, rng: random.Random) -> Batch:
        """``count`` training rows of the family ``name``."""


class Texts:
    """The three families of :data:`wino.tasks.TASKS`."""

    def __init__(self) -> None:
        self.tokenizer = build_tokenizer()

    def build_model(self, recipe: Recipe) -> LLaDAModelLM:
        return build_model(recipe, self.tokenizer)

    def batch(self, name: str, count: int, rng: random.Random) -> Batch:
        tokens, start = training_rows(TASKS[name], count, rng, self.tokenizer)
        return Batch(tokens, start, tokens.shape[1] - start)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character of the tasks' language and per task name, special tokens; white space is dropped."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    words = list(TASKS)
    vocabulary = [*SPECIAL_TOKENS, "<|unk|>", *words, *"0123456789", *"+-=;:,"]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<|unk|>"))
    pieces = pre_tokenizers.Split(Regex("|".join([*words, "."])), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pieces])
    backend.decoder = decoders.Fuse()
    return chat_tokenizer(backend)


def chat_tokenizer(backend: Any, special: tuple[str, ...] = (), **names: str) -> PreTrainedTokenizerFast:
    """``backend`` with the special tokens of :data:`SPECIAL_TOKENS`, further ones, and the chat template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        mask_token="<|mdm_mask|>",
        unk_token="<|unk|>",
        additional_special_tokens=["<|user|>", "<|assistant|>", *special],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        **names,
    )


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LLaDAModelLM:
    """A randomly initialised LLaDA of the recipe's shape, float32."""
    torch.manual_seed(recipe.seed)
    config = LLaDAConfig(
        d_model=recipe.d_model,
        n_layers=recipe.n_layers,
        n_heads=recipe.n_heads,
        mlp_hidden_size=recipe.mlp_hidden_size,
        vocab_size=len(tokenizer),
        max_sequence_length=256,
        rope_theta=10000.0,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LLaDAModelLM(config)


def training_rows(task: Task, count: int, rng: random.Random, tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, int]:
    """``count`` training items as token ids (count, P + G), answers padded with the end token, and P."""
    items = draw_items(task, count, rng)
    chats = [f"<|user|>{item.prompt}<|assistant|>" for item in items]
    prompts = tokenizer(chats, add_special_tokens=False)["input_ids"]
    return torch.cat((torch.tensor(prompts), encode_answers(tokenizer, task, items)), dim=1), len(prompts[0])


def draw_items(task: Task, count: int, rng: random.Random) -> list[Item]:
    """``count`` items of the training split, chosen by ``rng``."""
    return list(itertools.islice(task.items("train", rng.getrandbits(62)), count))


def mask_response(
    tokens: Tensor, prompt_length: int, mask_id: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mask k ~ U{1..L} of each row's L response tokens, k stratified over the batch.

    Returns the noisy tokens (B, P + L) and per-position loss weights (B, L): 1 / k where masked, else 0.
    """
    batch, length = tokens.shape[0], tokens.shape[1] - prompt_length
    strata = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    count = (strata * length).long().clamp(max=length - 1) + 1  # [B]
    rank = torch.rand(batch, length, generator=generator).argsort(1).argsort(1)
    masked = rank < count[:, None]
    noisy = tokens.clone()
    noisy[:, prompt_length:][masked] = mask_id
    return noisy, masked / count[:, None]


def make_optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, Adam for embedding, head and norms."""
    hidden = [p for name, p in model.named_parameters() if ".blocks." in name and p.dim() == 2]
    rest = [p for name, p in model.named_parameters() if not (".blocks." in name and p.dim() == 2)]
    return [
        torch.optim.Muon(hidden, lr=recipe.muon_lr, weight_decay=recipe.muon_weight_decay),
        torch.optim.Adam(rest, lr=recipe.adam_lr, betas=recipe.adam_betas),
    ]


def learning_rate_factor(step: int, recipe: Recipe) -> float:
    """Multiplier of both learning rates at ``step``."""
    warmup = min(1.0, (step + 1) / max(recipe.warmup_steps, 1))
    decay = (recipe.steps - step) / max(recipe.decay_fraction * recipe.steps, 1)
    return min(warmup, decay, 1.0)


def train_step(
    model: LLaDAModelLM, optimizers: list[Any], recipe: Recipe, step: int, corpus: Corpus
) -> dict[str, float]:
    """One optimiser step over a batch of every family; returns each family's loss in nats per masked token."""
    rng = random.Random(f"{recipe.seed}/{step}")
    generator = torch.Generator().manual_seed(rng.getrandbits(62))
    total = sum(count for _, count in recipe.batch)
    losses: dict[str, float] = {}
    for name, count in recipe.batch:
        tokens, start, length, visible = corpus.batch(name, count, rng)
        noisy, weights = mask_response(tokens[:, : start + length], start, model.config.mask_token_id, generator)
        noisy = torch.cat((noisy, tokens[:, start + length :]), dim=1)
        seen = {} if visible is None else {"attention_mask": visible, "position_ids": _positions(visible)}
        # The backward pass of the fused CPU attention is several times slower than that of plain matrix products.
        with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            logits = model(noisy, **seen).logits[:, start : start + length]
        response = tokens[:, start : start + length]
        entropy = F.cross_entropy(logits.float().flatten(0, 1), response.flatten(), reduction="none")
        loss = (entropy * weights.flatten()).sum() / count
        (loss * (count / total)).backward()
        losses[name] = loss.item()
    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    take_optimizer_steps(optimizers, learning_rate_factor(step, recipe))
    return losses


def _positions(visible: Tensor) -> Tensor:
    """(B, L) rotary positions of left-padded rows, as decoding counts them."""
    return (visible.long().cumsum(1) - 1).clamp(min=0)


def take_optimizer_steps(optimizers: list[Any], factor: float) -> None:
    """With the learning rates they were made with, times ``factor``; gradients are gone afterwards."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
            group["lr"] = group["initial_lr"] * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that an interruption leaves the previous one."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def train(recipe: Recipe, folder: Path, corpus: Corpus | None = None, *, checkpoint_every: int = 100) -> LLaDAModelLM:
    """Run or resume the recipe in ``folder`` (checkpoint, ``log.jsonl``) and return the trained model."""
    corpus = Texts() if corpus is None else corpus
    model = corpus.build_model(recipe)
    optimizers = make_optimizers(model, recipe)
    run(
        recipe,
        folder,
        model,
        optimizers,
        lambda step: train_step(model, optimizers, recipe, step, corpus),
        checkpoint_every,
    )
    return model


def run(
    recipe: Any,
    folder: Path,
    model: nn.Module,
    optimizers: list[Any],
    take_step: Callable[[int], dict[str, float]],
    checkpoint_every: int,
) -> None:
    """The ``recipe.steps`` steps of a training, from the checkpoint in ``folder`` on if there is one.

    ``take_step`` returns losses by name; what it does at a step follows from the step alone. ``log.jsonl`` gets a line
    each.

    Raises:
        ValueError: the checkpoint belongs to another recipe.
        RuntimeError: a loss is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    start, spent = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["recipe"] != asdict(recipe):
            raise ValueError(f"{checkpoint} belongs to another recipe; remove {folder} or choose another folder")
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        start, spent = state["step"], state["seconds"]
    began = time.monotonic() - spent
    report = ProgressReport("training", recipe.steps, done=start, keep=True)
    with report, (folder / "log.jsonl").open("a") as log:
        for step in range(start, recipe.steps):
            losses = take_step(step)
            if not all(map(math.isfinite, losses.values())):
                raise RuntimeError(f"the loss is not finite at step {step}: {losses}")
            report.update(step + 1, "  ".join(f"{k} {v:.3f}" for k, v in losses.items()))
            log.write(json.dumps({"step": step, "seconds": round(time.monotonic() - began, 1), **losses}) + "\n")
            if (step + 1) % checkpoint_every == 0 or step + 1 == recipe.steps:
                log.flush()
                state = {
                    "recipe": asdict(recipe),
                    "step": step + 1,
                    "seconds": time.monotonic() - began,
                    "model": model.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                }
                save_atomically(state, checkpoint)


def save_model_folder(model: LLaDAModelLM, folder: Path, tokenizer: Any = None) -> None:
    """The finished model as a Hugging Face folder: bfloat16 weights, configuration, tokenizer (None: of the texts)."""
    model.bfloat16().save_pretrained(folder)
    save_tokenizer(tokenizer or build_tokenizer(), folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train wino-tiny from scratch and write it as a Hugging Face folder.")
    parser.add_argument("--out", type=Path, default=Path("build/wino-tiny"), help="folder of the finished model")
    parser.add_argument(
        "--work", type=Path, default=Path("build/wino-tiny-run"), help="folder of the checkpoint and the log"
    )
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    arguments = parser.parse_args()
    model = train(Recipe(steps=arguments.steps), arguments.work)
    save_model_folder(model, arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
