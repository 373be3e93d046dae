"""``wino collect``: WINO trajectories over a training set, as JSON lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..config import GenerationConfig
from ..plus.collect import TEMPERATURES, THRESHOLD, THRESHOLD_BACK, Shard, collect, training_items
from ..plus.records import read_trajectories
from ..progress import ProgressReport
from ..tasks import Item, Task
from .evaluate import task_to_run
from .outcome import Skipped
from .session import check_writable, numbers_of, open_session

_GENERATED = 1000


def run_collect(
    task_name: str,
    settings: dict[str, Any],
    *,
    out: Path,
    model: str,
    device: str,
    data: Path | None,
    n: int | None,
    item_seed: int,
    batch_size: int,
    temperatures: str | None,
    skip_invalid: bool,
    allow_code_execution: bool,
    allow_unsandboxed: bool,
    asked: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Collect, and say how many records the file has now."""
    check_writable(out)
    task = task_to_run(task_name, allow_code_execution, allow_unsandboxed, asked)
    skipped = Skipped(skip_invalid)
    items, source = _items(task, data, n, item_seed, skipped)
    shard = _shard()
    session = open_session(model, device, pictures=task.has_pictures)
    own = {**task.presets.get("wino", {}), "threshold": THRESHOLD, "threshold_back": THRESHOLD_BACK}
    defaults = {"max_new_tokens": task.max_new_tokens, **own}
    config = GenerationConfig(**{**defaults, **settings, "decoder": "wino"})
    tried = TEMPERATURES if temperatures is None else tuple(numbers_of("--temperatures", temperatures))

    def checked() -> None:
        skipped.tell()
        session.announce()

    with ProgressReport(_share(task, shard), len(items[shard.rank :: shard.world])) as report:
        complete = collect(
            session.model,
            session.tokenizer,
            task,
            items,
            out,
            config,
            name=model,
            temperatures=tried,
            batch_size=batch_size,
            shard=shard,
            source=source,
            on_checked=checked,
            on_items=report.advance,
            on_invalid=skipped,
        )
    if not complete:
        print(f"process {shard.rank + 1} of {shard.world} is done; others are not yet", file=sys.stderr)
        return
    total = correct = 0
    for record in read_trajectories(out):
        total, correct = total + 1, correct + record.correct
    print(f"{out}: {total} records, {correct} correct")


def _share(task: Task, shard: Shard) -> str:
    return task.name if shard.world == 1 else f"{task.name} {shard.rank + 1}/{shard.world}"


def _items(
    task: Task, data: Path | None, n: int | None, item_seed: int, skipped: Skipped
) -> tuple[list[Item], set[str] | None]:
    """The items to collect, each once, and the keys of all that the file has."""
    if data is None:
        return training_items(task, _GENERATED if n is None else n, item_seed), None
    found = task.load(data, skipped)
    if not found:
        raise skipped.none_left(str(data))
    items = {item.key: item for item in found}
    if len(items) < len(found):
        print(f"{data}: {len(found) - len(items)} rows repeat others and are collected once", file=sys.stderr)
    return list(items.values())[:n], set(items)


def _shard() -> Shard:
    """Of ``torchrun`` and ``accelerate launch``."""
    return Shard(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
