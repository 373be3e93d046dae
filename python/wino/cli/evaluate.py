"""``wino eval``: decoders on a task's items, as a table and as JSON."""

from __future__ import annotations

import json
import math
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from ..config import GenerationConfig
from ..files import write_atomically
from ..progress import ProgressReport
from ..tasks import SPLITS, Item, Task, get_task
from ..tasks.evaluation import Evaluation, evaluate
from ..tasks.presets import decoder_configs, preset_of
from ..tasks.text import CodeTask, TextTask
from .errors import BadInputError
from .report import legend, print_table
from .session import Presets, Session, check_writable, open_session

_GENERATED = 200
_SHARED = (
    "max_new_tokens",
    "block_length",
    "cfg_scale",
    "temperature",
    "seed",
    "stop_at_eos",
    "cache",
    "cache_refresh",
)
"""The settings that every decoder has."""


def task_to_run(name: str, allow_code_execution: bool) -> Task:
    """The task, if grading it needs nothing that was not allowed."""
    task = get_task(name)
    if isinstance(task, CodeTask):
        if allow_code_execution:
            task.allow_code_execution()
        task.check_allowed()
    return task


def select_items(task: Task, data: Path | None, split: str, item_seed: int, n: int | None) -> list[Item]:
    """The first ``n`` items of a published file, or of a generated split."""
    if split not in SPLITS[1:]:
        raise BadInputError(f"split: expected one of {', '.join(SPLITS[1:])}, got {split!r}")
    if data is None:
        return list(islice(task.items(split, item_seed), _GENERATED if n is None else n))
    items = task.load(data)
    if not items:
        raise BadInputError(f"{data}: no items in it")
    return items[:n]


def select_configs(task: Task, settings: dict[str, Any], presets: Presets) -> dict[str, GenerationConfig]:
    """Label -> settings: every decoder of the comparison, or the one asked for; ``settings`` over their presets."""
    if "decoder" not in settings:
        for name in settings:
            if name not in _SHARED:
                raise BadInputError(f"--{name.replace('_', '-')} belongs to one decoder: name it with --decoder")
        return {label: with_shared(config, settings) for label, config in decoder_configs(task, presets).items()}
    decoder = settings["decoder"]
    preset = {"max_new_tokens": task.max_new_tokens, **preset_of(task, presets, decoder)}
    if "max_new_tokens" in settings:
        preset = {name: value for name, value in preset.items() if name not in ("block_length", "steps")}
    return {decoder: GenerationConfig(**{**preset, **settings})}


def with_shared(config: GenerationConfig, settings: dict[str, Any]) -> GenerationConfig:
    """``config`` with ``settings``, at as many tokens a step as before where the decoder has a number of steps."""
    merged = config.to_dict() | settings
    if "max_new_tokens" in settings:
        merged["block_length"] = settings.get("block_length")
    if config.decoder in ("low_confidence", "prophet") and config.steps is not None:
        tokens_a_step = config.max_new_tokens // config.steps
        block = merged["block_length"] or merged["max_new_tokens"]
        merged["steps"] = merged["max_new_tokens"] // block * math.ceil(block / tokens_a_step)
    return GenerationConfig(**merged)


def run_eval(
    task_name: str,
    settings: dict[str, Any],
    *,
    data: Path | None,
    n: int | None,
    split: str,
    item_seed: int,
    model: str,
    device: str | None,
    batch_size: int,
    json_file: Path | None,
    allow_code_execution: bool = False,
) -> None:
    """Evaluate, print the table, write the JSON file."""
    task = task_to_run(task_name, allow_code_execution)
    items = select_items(task, data, split, item_seed, n)
    if json_file is not None:
        check_writable(json_file)
    session = open_session(model, device, tasks=[task])
    configs = select_configs(task, settings, session.presets)
    evaluations = evaluate_all(session, task, items, configs, batch_size)
    console = Console(highlight=False)
    source = f"generated {split} items, seed {item_seed}" if data is None else str(data)
    console.print(f"{task.name}: {len(items)} items ({source}), model {model}", markup=False, soft_wrap=True)
    print_table(console, evaluations)
    console.print(legend(min(batch_size, len(items))), style="dim", soft_wrap=not console.is_terminal)
    unanswered = sum(not item.answer for item in items)
    if unanswered and not isinstance(task, TextTask):
        console.print(
            f"{unanswered} of {len(items)} items cannot be answered with plus and minus; they count as wrong.",
            soft_wrap=True,
        )
    sys.stdout.flush()
    if json_file is not None:
        about = {
            "task": task.name,
            "source": {"data": str(data)} if data is not None else {"split": split, "item_seed": item_seed},
            "model": model,
            "n": len(items),
            "unanswerable": unanswered,
            "batch_size": batch_size,
        }
        write_atomically(
            json_file, json.dumps(about | _results(items, evaluations), indent=1, ensure_ascii=False) + "\n"
        )


def evaluate_all(
    session: Session, task: Task, items: list[Item], configs: dict[str, GenerationConfig], batch_size: int
) -> dict[str, Evaluation]:
    """Label -> figures of every configuration on ``items``."""
    evaluations = {}
    with ProgressReport(task.name, len(items) * len(configs)) as report:
        for label, config in configs.items():
            evaluations[label] = evaluate(
                session.model, session.tokenizer, task, items, config, batch_size=batch_size, on_batch=report.advance
            )
    return evaluations


def _results(items: list[Item], evaluations: dict[str, Evaluation]) -> dict[str, Any]:
    results = [
        {
            "decoder": label,
            "settings": evaluation.config,
            **evaluation.row(),
            "texts": evaluation.texts,
            "correct": evaluation.correct,
            "tokens": evaluation.tokens,
            "steps": evaluation.steps,
        }
        for label, evaluation in evaluations.items()
    ]
    return {"results": results, "items": [{"prompt": item.prompt, "answer": item.answer} for item in items]}
