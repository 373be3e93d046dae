"""``wino eval``: decoders on a task's items, as a table and as JSON."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console

from ..config import GenerationConfig
from ..files import write_atomically
from ..progress import ProgressReport
from ..tasks import SPLITS, Item, Task, get_task
from ..tasks.curve import Workbench
from ..tasks.evaluation import Evaluation, encode_checked
from ..tasks.presets import decoder_configs, preset_of
from ..tasks.text import CodeTask, TextTask
from .errors import BadInputError
from .outcome import Skipped, check_replaces, kept_report
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


def task_to_run(
    name: str,
    allow_code_execution: bool,
    allow_unsandboxed: bool = False,
    asked: Mapping[str, str] = MappingProxyType({}),
) -> Task:
    """The task, if grading it needs nothing that was not allowed; ``asked``: options of :meth:`TextTask.ask`."""
    task = get_task(name)
    if isinstance(task, TextTask):
        task.ask(**asked)
    elif asked:
        raise BadInputError(f"--{next(iter(asked)).replace('_', '-')}: task {name} makes its own questions")
    if isinstance(task, CodeTask):
        if allow_code_execution:
            task.allow_code_execution(allow_unsandboxed)
        task.check_allowed()
    return task


def select_items(
    task: Task, data: Path | None, split: str, item_seed: int, n: int | None, skipped: Skipped | None = None
) -> list[Item]:
    """The first ``n`` items of a published file, or of a generated split; ``skipped`` is told of unusable rows."""
    skipped = skipped or Skipped(wanted=False)
    if split not in SPLITS[1:]:
        raise BadInputError(f"split: expected one of {', '.join(SPLITS[1:])}, got {split!r}")
    if data is None:
        return list(islice(task.items(split, item_seed), _GENERATED if n is None else n))
    items = list(islice(task.read(data, skipped), n))
    if not items:
        raise skipped.none_left(str(data))
    return items


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
    device: str,
    batch_size: int,
    json_file: Path | None,
    skip_invalid: bool = False,
    allow_code_execution: bool = False,
    allow_unsandboxed: bool = False,
    asked: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Evaluate, print the table, write the JSON file.

    What an interrupted run decoded stays in a folder beside the JSON file, from which the same command goes on.
    """
    task, skipped = task_to_run(task_name, allow_code_execution, allow_unsandboxed, asked), Skipped(skip_invalid)
    items = select_items(task, data, split, item_seed, n, skipped)
    if json_file is not None:
        check_writable(json_file)
    with kept_report(json_file):
        session = open_session(model, device, pictures=task.has_pictures)
        configs = select_configs(task, settings, session.presets)
        source = f"generated {split} items, seed {item_seed}" if data is None else str(data)
        items, prompts = _checked(session, task, items, configs, source, skipped)
        kept = None if json_file is None else json_file.with_name(f"{json_file.name}.partial")
        bench = Workbench(model, session.model, session.tokenizer, kept)
        names = {} if json_file is None else {k: bench.name_of(task, items, config) for k, config in configs.items()}
        if json_file is not None:
            check_replaces(json_file, names.values())
        session.announce()
        with _kept(kept):
            evaluations = evaluate_all(bench, task, items, configs, batch_size, prompts)
        _print(task, items, evaluations, f"{source}), model {model}", batch_size)
        if json_file is None or kept is None:
            return
        about = {
            "task": task.name,
            "source": {"data": str(data)} if data is not None else {"split": split, "item_seed": item_seed},
            "model": model,
            "n": len(items),
            "unanswerable": _unanswerable(items),
            "skipped": skipped.about(),
            "batch_size": batch_size,
        }
        written = about | _results(items, evaluations, names)
        write_atomically(json_file, json.dumps(written, indent=1, ensure_ascii=False) + "\n")
        shutil.rmtree(kept, ignore_errors=True)


def _checked(
    session: Session,
    task: Task,
    items: list[Item],
    configs: dict[str, GenerationConfig],
    source: str,
    skipped: Skipped,
) -> tuple[list[Item], list[list[int]]]:
    """The items that the model can decode with every one of ``configs``, and their prompts; those left out are told."""
    with ProgressReport("checking", len(items)) as report:
        items, prompts = encode_checked(
            session.model,
            session.tokenizer,
            task,
            items,
            list(configs.values()),
            on_invalid=skipped,
            on_item=report.advance,
        )
    if not items:
        raise skipped.none_left(source)
    skipped.tell()
    return items, prompts


@contextmanager
def _kept(folder: Path | None) -> Iterator[None]:
    """Say where the decoded answers lie if the block ends early."""
    try:
        yield
    except BaseException:
        if folder is not None and folder.exists():
            print(f"{folder} keeps what was decoded; the same command goes on from there", file=sys.stderr)
        raise


def _unanswerable(items: list[Item]) -> int:
    return sum(not item.answer for item in items)


def _print(task: Task, items: list[Item], evaluations: dict[str, Evaluation], about: str, batch_size: int) -> None:
    console = Console(highlight=False)
    console.print(f"{task.name}: {len(items)} items ({about}", markup=False, soft_wrap=True)
    print_table(console, evaluations)
    console.print(legend(min(batch_size, len(items))), style="dim", soft_wrap=not console.is_terminal)
    unanswered = _unanswerable(items)
    if unanswered and not isinstance(task, TextTask):
        console.print(
            f"{unanswered} of {len(items)} items cannot be answered with plus and minus; they count as wrong.",
            soft_wrap=True,
        )
    sys.stdout.flush()


def evaluate_all(
    bench: Workbench,
    task: Task,
    items: list[Item],
    configs: dict[str, GenerationConfig],
    batch_size: int,
    prompts: list[list[int]] | None = None,
) -> dict[str, Evaluation]:
    """Label -> figures of every configuration on ``items``; ``prompts`` as of :meth:`Workbench.run`."""
    evaluations = {}
    with ProgressReport(task.name, len(items) * len(configs)) as report:
        for label, config in configs.items():
            evaluations[label] = bench.run(
                task, items, config, batch_size=batch_size, on_batch=report.advance, prompts=prompts
            )
    return evaluations


def _results(items: list[Item], evaluations: dict[str, Evaluation], names: dict[str, str]) -> dict[str, Any]:
    results = [
        {
            "decoder": label,
            "measured": names[label],
            "settings": evaluation.config,
            **evaluation.row(),
            "texts": evaluation.texts,
            "correct": evaluation.correct,
            "tokens": evaluation.tokens,
            "steps": evaluation.steps,
        }
        for label, evaluation in evaluations.items()
    ]
    asked = [{"key": item.key, "prompt": item.prompt, "answer": item.answer} for item in items]
    return {"results": results, "items": asked}
