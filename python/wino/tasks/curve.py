"""Accuracy under parallelism: models and decoders over thresholds, on the same items, measured once and compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from wino_kernels import __version__
from wino_kernels.backends import cpu_isa

from ..config import GenerationConfig
from ..files import write_atomically
from ..foreign import read_json
from ..models.ends import end_token_ids
from .base import Item, Task
from .evaluation import Evaluation, evaluate
from .statistics import accuracy_interval, bootstrap_interval, mcnemar, paired_difference


class Workbench:
    """A model under a label; each measurement is kept under ``cache`` by what decides it, and read back.

    Args:
        cache: a folder; kept apart by version of Torch and package and by instruction set. None: nothing is kept.

    Attributes:
        fingerprint: a hash of every weight, those of an image tokenizer too.
    """

    def __init__(self, label: str, model: Any, tokenizer: Any, cache: Path | None) -> None:
        self.label, self.model, self.tokenizer = label, model, tokenizer
        self._cache = None if cache is None else cache / f"{torch.__version__}-{__version__}-{cpu_isa()}"

    @cached_property
    def fingerprint(self) -> str:
        digest, magvit = hashlib.sha256(), getattr(self.tokenizer, "magvit", None)
        for parameter in [*self.model.parameters(), *(magvit.parameters() if magvit is not None else ())]:
            digest.update(f"{parameter.dtype} {tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:12]

    @cached_property
    def _decides(self) -> list[Any]:
        """What an answer depends on beside item and settings: weights, how text becomes tokens, what ends it, where."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        text = json.dumps([vocabulary, self.tokenizer.chat_template], sort_keys=True, default=str)
        ends = end_token_ids(self.model, self.tokenizer)
        device = next(self.model.parameters()).device.type
        return [self.fingerprint, hashlib.sha256(text.encode()).hexdigest(), ends, device]

    def name_of(self, task: Task, items: Sequence[Item], config: GenerationConfig) -> str:
        """The name of a measurement: the same for the same model, items and settings alone."""
        keys = hashlib.sha256("\n".join(item.key for item in items).encode()).hexdigest()
        key = json.dumps([self._decides, task.name, keys, config.to_diff_dict()], sort_keys=True, default=str)
        return f"{task.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"

    def run(
        self,
        task: Task,
        items: Sequence[Item],
        config: GenerationConfig,
        *,
        batch_size: int = 128,
        on_batch: Callable[[int], None] | None = None,
        prompts: Sequence[Sequence[int]] | None = None,
    ) -> Evaluation:
        """Evaluate, or read what an earlier run measured; ``on_batch`` hears of every item either way.

        What an interrupted run decoded is kept too, and gone on with. ``prompts``: as of :func:`evaluate`.
        """
        about: dict[str, Any] = {"batch_size": batch_size, "on_batch": on_batch, "prompts": prompts}
        if self._cache is None:
            return evaluate(self.model, self.tokenizer, task, items, config, **about)
        path = self._cache / f"{self.name_of(task, items, config)}.json"
        if path.exists():
            measured = _read_measured(path)
            if on_batch is not None:
                on_batch(len(items))
            return measured
        path.parent.mkdir(parents=True, exist_ok=True)
        journal = path.with_suffix(".partial.jsonl")
        result = evaluate(self.model, self.tokenizer, task, items, config, journal=journal, **about)
        write_atomically(path, json.dumps(asdict(result), default=str))
        journal.unlink(missing_ok=True)
        return result


def _read_measured(path: Path) -> Evaluation:
    try:
        measured = Evaluation(**read_json(path))
        if len({len(getattr(measured, name)) for name in ("texts", "correct", "tokens", "steps")}) != 1:
            raise TypeError
        return measured
    except (ValueError, TypeError):
        raise ValueError(f"{path}: expected a measurement; remove the file to measure again") from None


@dataclass(frozen=True)
class Point:
    """One measurement of the curve.

    ``decoder`` may say more than the decoder's name, e.g. "wino, verify_last"; ``measured``: :meth:`Workbench.name_of`.
    """

    task: str
    model: str
    decoder: str
    config: GenerationConfig
    result: Evaluation
    measured: str = ""

    @property
    def threshold(self) -> float | None:
        has_one = self.config.decoder in ("wino", "confidence_threshold")
        return float(self.config.threshold) if has_one and isinstance(self.config.threshold, int | float) else None

    @property
    def label(self) -> str:
        """Model, decoder and what sets its speed."""
        name = f"{self.model} + {self.decoder}"
        if self.threshold is not None:
            return f"{name} {self.threshold:g}"
        tokens = self.config.max_new_tokens / (self.config.steps or self.config.max_new_tokens)
        return name if tokens == 1 else f"{name} {tokens:g} a step"

    def row(self) -> dict[str, Any]:
        """The figures as one flat record; intervals are 95 %."""
        result = self.result
        low, high = accuracy_interval(result.correct)
        steps_low, steps_high = bootstrap_interval(result.steps)
        return {
            "task": self.task,
            "model": self.model,
            "decoder": self.decoder,
            "threshold": self.threshold,
            **result.row(),
            "ci_low": low,
            "ci_high": high,
            "steps_low": steps_low,
            "steps_high": steps_high,
            "settings": self.config.to_diff_dict(),
            "measured": self.measured,
        }


def compare(point: Point, reference: Point) -> dict[str, Any]:
    """``point`` against ``reference`` on the same items: differences with 95 % intervals, p-value of the accuracies.

    Raises:
        ValueError: they were not measured on the same items of one task.
    """
    ours, theirs = point.result, reference.result
    if point.task != reference.task or len(ours.correct) != len(theirs.correct):
        raise ValueError(f"reference: expected the items of {point.label}, got {reference.task} {reference.label}")
    steps = [a - b for a, b in zip(ours.steps, theirs.steps, strict=True)]
    return {
        "task": point.task,
        "point": point.label,
        "reference": reference.label,
        "accuracy_difference": paired_difference(ours.correct, theirs.correct),
        "p_value": mcnemar(ours.correct, theirs.correct),
        "steps_difference": (sum(steps) / len(steps), *bootstrap_interval(steps)),
        "steps_saved": 1 - ours.mean_steps / theirs.mean_steps,
    }


def markdown_table(points: Sequence[Point], reference: Point | None = None) -> str:
    """One line a point; with ``reference``, also how each differs from it."""
    scores = list(points[0].result.scores) if points else []
    columns = ["model + decoder", "accuracy %", "95 %", *scores, "steps", "step reduction", "tokens/forward"]
    if reference is not None:
        columns += [f"accuracy against {reference.label}, points", "p", "fewer steps"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for point in points:
        row = point.row()
        cells = [
            point.label,
            f"{100 * row['accuracy']:.1f}",
            f"{100 * row['ci_low']:.1f} - {100 * row['ci_high']:.1f}",
            *(f"{row[name]:.3f}" for name in scores),
            f"{row['mean_steps']:.2f}",
            f"{row['step_reduction']:.2f}x",
            f"{row['tokens_per_forward']:.2f}",
        ]
        if reference is not None:
            found = compare(point, reference)
            mean, low, high = (100 * value for value in found["accuracy_difference"])
            saved = f"{100 * found['steps_saved']:.0f} %" if found["steps_saved"] >= 0 else "more"
            cells += [f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]", f"{found['p_value']:.2g}", saved]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot_curves(rows: Iterable[dict[str, Any]], path: Path, titles: dict[str, str] | None = None) -> None:
    """Accuracy against tokens per forward, a panel a task, a line for each model and decoder; rows as of ``Point.row``.

    Needs matplotlib (``pip install 'wino-kernels[eval]'``).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: dict[str, dict[tuple[str, str], list[dict[str, Any]]]] = {}
    for row in rows:
        panels.setdefault(row["task"], {}).setdefault((row["model"], row["decoder"]), []).append(row)
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(5 * len(panels), 4.4), constrained_layout=True, squeeze=False
    )
    models = list(dict.fromkeys(model for panel in panels.values() for model, _ in panel))
    decoders = list(dict.fromkeys(decoder for panel in panels.values() for _, decoder in panel))
    for axis, (task, lines) in zip(axes[0], panels.items(), strict=True):
        for (model, decoder), points in lines.items():
            points = sorted(points, key=lambda p: p["tokens_per_forward"])
            x, y = [p["tokens_per_forward"] for p in points], [100 * p["accuracy"] for p in points]
            # At 100 % the interval's end may lie a rounding error below the point.
            below = [max(0.0, 100 * (p["accuracy"] - p["ci_low"])) for p in points]
            above = [max(0.0, 100 * (p["ci_high"] - p["accuracy"])) for p in points]
            number, kind = models.index(model), decoders.index(decoder)
            axis.errorbar(
                x,
                y,
                yerr=[below, above],
                color=f"C{kind}",
                marker="os^vDP"[kind % 6],
                linestyle=("-", "--", ":", "-.")[number % 4],
                markerfacecolor=f"C{kind}" if number == 0 else "white",
                markersize=4,
                linewidth=1.2,
                capsize=2,
                label=decoder if len(models) == 1 else f"{model} + {decoder}",
            )
        axis.set(title=(titles or {}).get(task, task), xlabel="tokens per forward", ylabel="accuracy %")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
