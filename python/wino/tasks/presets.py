"""The decoders compared by the demo and the reports, with thresholds chosen on the validation split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..config import GenerationConfig
from .base import Task

PRESETS_FILE = "presets.json"


def load_presets(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Task -> decoder label -> settings, as stored beside a model's weights; empty if the model has none.

    Raises:
        ValueError: the file is there but not of that form.
    """
    path = folder / PRESETS_FILE
    if not path.exists():
        return {}
    try:
        presets = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    tasks = presets.values() if isinstance(presets, dict) else (None,)
    if not all(isinstance(task, dict) and all(isinstance(s, dict) for s in task.values()) for task in tasks):
        raise ValueError(f"{path}: expected task -> decoder -> settings")
    for task, decoders in presets.items():
        for decoder, settings in decoders.items():
            try:
                # A block length divides the task's generation length, which is not known here.
                GenerationConfig(**{"max_new_tokens": settings.get("block_length") or 1, **settings})
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, {task}, {decoder}: {error}") from error
    return presets


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
