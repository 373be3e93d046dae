"""Is a draft confidence of 0.9 right nine times in ten? Reliability of a model's confidences on masked answers."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import wino_kernels

from .base import Item, Task
from .evaluation import encode_answers, encode_items

_BATCH = 128


@dataclass(frozen=True)
class Reliability:
    """Masked answer positions in ten bins of confidence.

    Attributes:
        count: positions in each bin [0, 0.1), ..., [0.9, 1].
        confidence: mean confidence in each bin, 0 where it is empty.
        accuracy: how often the drafted token is the item's worked answer's.
    """

    count: list[int]
    confidence: list[float]
    accuracy: list[float]

    @property
    def expected_calibration_error(self) -> float:
        """Mean over positions of |confidence - accuracy| of their bin."""
        gaps = zip(self.count, self.confidence, self.accuracy, strict=True)
        return sum(n * abs(c - a) for n, c, a in gaps) / sum(self.count)


@torch.no_grad()
def reliability(model: Any, tokenizer: Any, task: Task, items: Sequence[Item], *, seed: int = 0) -> Reliability:
    """Draft every item with a random part of its worked answer masked, and compare with that answer.

    As in LLaDA's training, k ~ U{1..L} of the L answer tokens are masked, end tokens included. Where several answers
    are right (sudoku), only the worked one counts.

    Raises:
        ValueError: an item has no worked answer, or one that does not fit the task's generation length.
    """
    confidence: list[float] = []
    right: list[bool] = []
    rng = random.Random(seed)
    for first in range(0, len(items), _BATCH):
        batch = items[first : first + _BATCH]
        prompts, visible = encode_items(tokenizer, task, batch)
        answers = encode_answers(tokenizer, task, batch)
        masked = torch.zeros_like(answers, dtype=torch.bool)
        for row in masked:
            row[rng.sample(range(len(row)), rng.randint(1, len(row)))] = True
        tokens = torch.cat((prompts, answers.masked_fill(masked, model.config.mask_token_id)), 1)
        attention = torch.cat((visible, torch.ones_like(answers)), 1)
        positions = (attention.cumsum(1) - 1).clamp(min=0)
        logits = model(tokens, attention_mask=attention, position_ids=positions).logits[:, prompts.shape[1] :]
        drafted, probability = wino_kernels.draft_confidence(logits[masked].float())
        confidence += probability.tolist()
        right += (drafted == answers[masked]).tolist()
    return binned(confidence, right)


def binned(confidence: Sequence[float], right: Sequence[bool]) -> Reliability:
    """The figures of drafts with these confidences, of which those are right."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(10)]
    for c, r in zip(confidence, right, strict=True):
        bins[min(int(c * 10), 9)].append((c, r))
    mean = [(sum(c for c, _ in b) / len(b), sum(r for _, r in b) / len(b)) if b else (0.0, 0.0) for b in bins]
    return Reliability([len(b) for b in bins], [m[0] for m in mean], [m[1] for m in mean])


def plot_reliability(figures: Iterable[tuple[str, str, Reliability]], path: Path) -> None:
    """Accuracy against confidence, a panel a task, a line a model, from (task, model, reliability).

    Needs matplotlib (``pip install 'wino-kernels[eval]'``).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: dict[str, dict[str, Reliability]] = {}
    for task, model, found in figures:
        panels.setdefault(task, {})[model] = found
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4 * len(panels), 4), constrained_layout=True, squeeze=False)
    for axis, (task, models) in zip(axes[0], panels.items(), strict=True):
        axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
        for model, found in models.items():
            filled = [i for i, n in enumerate(found.count) if n >= 20]
            label = f"{model} (ECE {found.expected_calibration_error:.3f})"
            x, y = [found.confidence[i] for i in filled], [found.accuracy[i] for i in filled]
            axis.plot(x, y, marker="o", markersize=4, label=label)
        axis.set(title=task, xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
