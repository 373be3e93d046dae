"""Merge a trained adapter into its base: a checkpoint that loads wherever the base loads."""

from __future__ import annotations

import shutil
from pathlib import Path

from peft import PeftModel

from ..models.loading import checkpoint_folder, load
from .identity import check_base, read_identity

_OF_THE_BASE = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.md", "presets.json", "config.json")


def merge(base: str | Path, adapter: Path, out: Path) -> Path:
    """Write ``base`` with ``adapter`` merged in as the folder ``out``.

    The sum is taken in float32 (4 bytes a parameter of memory) and rounded once to the base's dtype. Everything of the
    base's folder that is neither weights nor about them (tokenizer, configuration, remote code) is copied. ``out``
    appears whole or not at all.

    Args:
        base: as :func:`wino.load` takes it.
        adapter: the ``final`` folder of a stage of ``wino train``.
        out: must not exist.

    Raises:
        FileExistsError: ``out`` exists.
        FileNotFoundError: no such base or adapter.
        ValueError: the adapter belongs to another base (which field differs), or holds no adapter.
    """
    if out.exists():
        raise FileExistsError(f"out: {out} exists; choose another folder or remove it")
    if not adapter.is_dir():
        raise FileNotFoundError(f"adapter: no folder {adapter}")
    identity = read_identity(adapter)
    if not (adapter / "adapter_config.json").is_file():
        raise ValueError(f"adapter: {adapter} holds a whole model, which needs no merging")
    source = checkpoint_folder(base)
    model, tokenizer = load(source)
    dtype = next(model.parameters()).dtype
    check_base(identity, model, tokenizer, str(base))
    merged = PeftModel.from_pretrained(model.float(), str(adapter)).merge_and_unload()
    unfinished = out.with_name(f".{out.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    of_the_base = shutil.ignore_patterns(*_OF_THE_BASE)  # but what lies in folders is of others, such as a tokenizer's
    shutil.copytree(source, unfinished, ignore=lambda at, names: of_the_base(at, names) if Path(at) == source else [])
    merged.to(dtype).save_pretrained(unfinished, max_shard_size="5GB")
    shutil.copy(source / "config.json", unfinished / "config.json")
    unfinished.rename(out)
    return out
