"""Merge a trained adapter into its base: a checkpoint that loads wherever the base loads."""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict

from ..models.llada import LLaDAConfig, LLaDAModelLM
from ..models.loading import check_shapes, checkpoint_folder, load, read_header, without_weights
from .adapters import WEIGHTS, check_adapter
from .identity import check_base, is_trained_here, read_identity
from .outcome import complete


def merge(base: str | Path, adapter: Path, out: Path) -> Path:
    """Write ``base`` with ``adapter`` merged in as the folder ``out``.

    The sum is taken in float32 (4 bytes a parameter of memory) and rounded once to the base's dtype. Everything of the
    base's folder that is neither weights nor about them (tokenizer, configuration, settings, model card, remote code)
    is copied (:mod:`wino.plus.outcome`). ``out`` appears whole or not at all.

    Args:
        base: as :func:`wino.load` takes it.
        adapter: the ``final`` folder of a stage of ``wino train``; or any LoRA in PEFT's layout with safetensors, such
            as one that the authors' trainer wrote. Of those only names and shapes of the tensors can be compared with
            the base, not whether they were trained on it.
        out: must not exist.

    Raises:
        FileExistsError: ``out`` exists.
        FileNotFoundError: no such base or adapter.
        ValueError: the adapter belongs to another base (which field differs), does not fit it (which tensors), is none
            of LoRA's, or ``adapter`` holds no adapter.
    """
    if out.exists():
        raise FileExistsError(f"out: {out} exists; choose another folder or remove it")
    config = _read_adapter_config(adapter)
    identity = read_identity(adapter) if is_trained_here(adapter) else None
    source = checkpoint_folder(base)
    model, tokenizer = load(source)
    dtype = next(model.parameters()).dtype
    if identity is not None:
        check_base(identity, model, tokenizer, str(base))
    _check_tensors(adapter, config, model, str(base))
    merged = PeftModel.from_pretrained(model.float(), str(adapter)).merge_and_unload()
    unfinished = out.with_name(f".{out.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    done = f"The weights are those of `{base}` with the adapter `{adapter}` added to them by `wino merge`."
    complete(unfinished, source, str(base), done)
    merged.to(dtype).save_pretrained(unfinished, max_shard_size="5GB")
    shutil.copy(source / "config.json", unfinished / "config.json")
    unfinished.rename(out)
    return out


def _read_adapter_config(adapter: Path) -> LoraConfig:
    if not adapter.is_dir():
        raise FileNotFoundError(f"adapter: no folder {adapter}")
    if not (adapter / "adapter_config.json").is_file():
        if is_trained_here(adapter):
            raise ValueError(f"adapter: {adapter} holds a whole model, which needs no merging")
        raise ValueError(
            f"adapter: expected the result of `wino train` or another LoRA in PEFT's layout, got {adapter} without "
            "adapter_config.json"
        )
    check_adapter(adapter)
    try:
        return cast(LoraConfig, PeftConfig.from_pretrained(str(adapter)))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{adapter / 'adapter_config.json'}: not a configuration of PEFT ({error})") from error


def _check_tensors(adapter: Path, config: LoraConfig, model: LLaDAModelLM, base: str) -> None:
    """Raise ``ValueError`` unless the adapter's tensors are those that its configuration has on ``model``."""
    config = deepcopy(config)
    config.init_lora_weights = False  # some ways to begin look at the base's weights, and shapes have none
    try:
        skeleton: Any = PeftModel(without_weights(cast(LLaDAConfig, model.config)), config, low_cpu_mem_usage=True)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"adapter: {adapter} does not fit {base} ({reason})") from error
    expected = get_peft_model_state_dict(skeleton, save_embedding_layers=False)
    shapes = {name: tuple(value.shape) for name, value in expected.items()}
    found = {name: shape for name, _, shape in read_header(adapter / WEIGHTS)}
    check_shapes(f"adapter: {adapter}", found, shapes, f"its configuration on {base}")
