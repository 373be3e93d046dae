"""What lies beside a checkpoint's weights: tokenizer, settings, model card, remote code, an image tokenizer."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path

from ..files import write_atomically

#: Settings of a decode: task -> decoder -> settings (:mod:`wino.tasks.presets`), and those of transformers.
SETTINGS_FILES = ("presets.json", "generation_config.json")

# Weights in any format and what is about them, other trainings' notes, and what is hidden (a clone's .git holds all
# weights again).
_NOT_BESIDE = (
    "*.safetensors",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.gguf",
    "*.h5",
    "*.msgpack",
    "*.index.json",
    "config.json",
    "adapter_config.json",
    "wino_plus.json",
    ".*",
)


def copy_companions(source: Path, target: Path) -> None:
    """Copy everything of the checkpoint ``source`` but its weights and ``config.json`` into the folder ``target``.

    Folders are copied whole: what lies in them is of others, such as an image tokenizer's weights. Files that
    ``target`` has already are replaced.
    """

    def ignore(at: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(at) == source and any(fnmatch(name, p) for p in _NOT_BESIDE)]

    shutil.copytree(source, target, ignore=ignore, dirs_exist_ok=True)


def copy_settings(source: Path, target: Path) -> None:
    """Copy ``SETTINGS_FILES`` from one checkpoint to another that has none of its own."""
    for name in SETTINGS_FILES:
        if (source / name).is_file() and not (target / name).exists():
            shutil.copyfile(source / name, target / name)


def add_to_card(folder: Path, heading: str, text: str) -> None:
    """Append a section to the model card of ``folder``, or begin one with it."""
    card = folder / "README.md"
    before = card.read_text(encoding="utf-8", errors="replace").rstrip() + "\n\n" if card.is_file() else ""
    write_atomically(card, f"{before}{'## ' if before else '# '}{heading}\n\n{text}\n")
