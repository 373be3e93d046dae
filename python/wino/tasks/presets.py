"""The decoders compared by the demo and the reports, with thresholds chosen on the validation split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..config import GenerationConfig
from ..files import write_atomically
from ..foreign import read_json
from .base import Task
from .text import TEXT_TASKS
from .visual import VISUAL_TASKS

PRESETS_FILE = "presets.json"
_LARGEST_FILE = 1 << 20

#: Beside the tasks of a presets file: a sentence that says where its settings come from.
SOURCE = "_source"


def load_presets(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Task -> decoder label -> settings, as stored beside a model's weights; empty if the model has none.

    The file's sentence under ``SOURCE`` is for its readers, and left out here.

    Raises:
        ValueError: the file is there but not of that form.
    """
    path = folder / PRESETS_FILE
    if not path.exists():
        return {}
    presets = read_json(path, _LARGEST_FILE)
    if isinstance(presets, dict) and not isinstance(presets.pop(SOURCE, ""), str):
        raise ValueError(f"{path}: {SOURCE}: expected a sentence that says where the settings come from")
    tasks = presets.values() if isinstance(presets, dict) else (None,)
    if not all(isinstance(task, dict) and all(isinstance(s, dict) for s in task.values()) for task in tasks):
        raise ValueError(f"{path}: expected task -> decoder -> settings")
    for task, decoders in presets.items():
        for decoder, settings in decoders.items():
            try:
                # A block length divides the task's generation length, which is not known here.
                GenerationConfig(
                    **{"decoder": decoder, "max_new_tokens": settings.get("block_length") or 1, **settings}
                )
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, {task:.80}, {decoder:.80}: {error!s:.300}") from error
    return presets


def write_presets(folder: Path, presets: dict[str, dict[str, dict[str, Any]]], source: str) -> None:
    """Write a model's settings, with a sentence that says where they come from, for :func:`load_presets`."""
    text = json.dumps({SOURCE: source, **presets}, indent=2, ensure_ascii=False)
    write_atomically(folder / PRESETS_FILE, text + "\n")


def plus_presets() -> dict[str, dict[str, dict[str, Any]]]:
    """The settings with which WINO+ models of 8B parameters are evaluated in the released code, by task."""
    found = {}
    for task in (*TEXT_TASKS, *VISUAL_TASKS):
        if task.plus_threshold is not None:
            settings = task().presets["confidence_threshold"]
            found[task.name] = {"confidence_threshold": {**settings, "threshold": task.plus_threshold}}
    return found


def preset_of(task: Task, presets: dict[str, dict[str, dict[str, Any]]], decoder: str) -> dict[str, Any]:
    """The settings chosen for a model, else those that the task's papers use."""
    return presets.get(task.name, {}).get(decoder) or task.presets.get(decoder, {})


def baseline_configs(task: Task) -> dict[str, GenerationConfig]:
    """LLaDA's own decoder at one, two and four tokens a step."""
    return {
        f"low_confidence, {k} a step" if k > 1 else "low_confidence": GenerationConfig(
            decoder="low_confidence", max_new_tokens=task.max_new_tokens, steps=task.max_new_tokens // k
        )
        for k in (1, 2, 4)
    }


def decoder_configs(task: Task, presets: dict[str, dict[str, dict[str, Any]]]) -> dict[str, GenerationConfig]:
    """Label -> settings of every decoder shown side by side for ``task``."""
    configs = baseline_configs(task)
    for label in ("confidence_threshold", "wino"):
        settings = preset_of(task, presets, label)
        configs[label] = GenerationConfig(**{"decoder": label, "max_new_tokens": task.max_new_tokens, **settings})
    return configs
