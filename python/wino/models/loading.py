"""Load the bundled model, a checkpoint folder or a hub id; refuse a checkpoint that does not fit its configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

from .llada import LLaDAConfig, LLaDAModelLM
from .mmada import MMadaConfig, MMadaModelLM

MODELS: dict[str, tuple[type[LLaDAConfig], type[LLaDAModelLM]]] = {
    config.model_type: (config, model) for config, model in ((LLaDAConfig, LLaDAModelLM), (MMadaConfig, MMadaModelLM))
}
BUNDLED = "wino-tiny"
_RECIPES = {BUNDLED: "make tiny", "wino-tiny-plus": "make plus", "wino-tiny-mmada": "make tiny-mmada"}
_INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def load(
    name_or_path: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> tuple[LLaDAModelLM, PreTrainedTokenizerBase]:
    """A LLaDA or MMaDA in evaluation mode, and its tokenizer.

    Args:
        name_or_path: one that comes with the package: ``"wino-tiny"``, ``"wino-tiny-plus"`` (the same after WINO+)
            or ``"wino-tiny-mmada"``; or a folder in the Hugging Face layout of LLaDA or MMaDA (``config.json``,
            safetensors in one file or sharded, tokenizer files); or a hub id such as ``"GSAI-ML/LLaDA-8B-Instruct"``.
        dtype: of the parameters; None: that of the checkpoint's embedding (bfloat16 for ours and LLaDA-8B).
        device: where to put the model; None: the CPU.

    Raises:
        FileNotFoundError: no such folder or hub id, or a file is missing from it.
        ValueError: a checkpoint of neither, or tensors are missing, unexpected or misshapen (named); found before any
            weight is read.
    """
    folder = checkpoint_folder(name_or_path)
    config = _read_config(folder)
    shards = _check_tensors(folder, config)
    generation_config = _read_generation_config(folder)
    model = _read_model(shards, config, dtype, torch.device("cpu" if device is None else device))
    if generation_config is not None:
        model.generation_config = generation_config
    return model, _read_tokenizer(folder)


def checkpoint_folder(name_or_path: str | Path) -> Path:
    """The folder of a checkpoint that :func:`load` accepts; a hub id is downloaded."""
    name = str(name_or_path)
    if name in _RECIPES:
        return bundled_folder(name)
    return local_folder(name_or_path, _HUB_FILES, f"neither {BUNDLED!r} nor a hub id owner/name")


def bundled_folder(name: str = BUNDLED) -> Path:
    folder = Path(str(resources.files("wino") / "assets" / name))
    if not (folder / _WEIGHTS).is_file():
        raise FileNotFoundError(
            f"{name} comes without weights here (no {folder / _WEIGHTS}); train it: {_RECIPES[name]}"
        )
    return folder


def local_folder(
    name_or_path: str | Path, hub_files: Sequence[str], otherwise: str = "not a hub id owner/name"
) -> Path:
    """The folder of that path, or ``hub_files`` of that hub id, downloaded.

    Raises:
        FileNotFoundError: neither; the message ends with ``otherwise`` if it cannot be an id.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    looks_like_id = isinstance(name_or_path, str) and name_or_path.count("/") == 1 and name_or_path[0] not in "./~"
    if not looks_like_id:
        raise FileNotFoundError(f"{name_or_path}: no such folder, and {otherwise}")
    try:
        return Path(snapshot_download(str(name_or_path), allow_patterns=list(hub_files)))
    except Exception as error:  # the hub client raises its own, HTTP and OS errors alike
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"{name_or_path}: no such folder, and the hub did not deliver it ({reason})") from error


def _read_config(folder: Path) -> LLaDAConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no config.json")
    fields = _read_json(path)
    model_type = fields.get("model_type") if isinstance(fields, dict) else None
    if model_type not in MODELS:
        expected = " or ".join(repr(name) for name in MODELS)
        raise ValueError(f"{path}: expected model_type {expected}, got {model_type!r}")
    try:
        config = MODELS[model_type][0].from_pretrained(folder)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    config.name_or_path = str(folder)
    return config


def _read_generation_config(folder: Path) -> GenerationConfig | None:
    """What the checkpoint says of its use, its end tokens for one; None without the file."""
    path = folder / GENERATION_CONFIG_NAME
    if not path.is_file():
        return None
    fields = _read_json(path)
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: expected an object, got {type(fields).__name__}")
    try:
        return GenerationConfig(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _shard_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if not index.is_file():
        names = [_WEIGHTS]
    else:
        content = _read_json(index)
        weight_map = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError(f"{index}: expected weight_map, an object from tensor names to file names")
        names = sorted(set(weight_map.values()))
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}")
    return [folder / name for name in names]


def _check_tensors(folder: Path, config: LLaDAConfig) -> list[Path]:
    """The checkpoint's files, after comparing the shapes in their headers with those ``config`` implies."""
    expected = {name: tuple(value.shape) for name, value in _without_weights(config).state_dict().items()}
    shards = _shard_files(folder)
    found: dict[str, tuple[int, ...]] = {}
    for shard in shards:
        try:
            with safe_open(shard, framework="pt") as file:
                found.update({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{shard} is not a readable safetensors file: {error}") from error
    check_shapes(f"the checkpoint {folder}", found, expected)
    return shards


def check_shapes(what: str, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ``ValueError`` naming the tensors that ``found`` misses, has beyond ``expected``, or has misshapen."""
    common = [name for name in expected if name in found]
    problems = {
        "misses": [name for name in expected if name not in found],
        "has unexpected": [name for name in found if name not in expected],
        "has misshapen": [
            f"{name} ({found[name]} instead of {expected[name]})" for name in common if found[name] != expected[name]
        ],
    }
    faults = [f"{verb} tensors {_listed(names)}" for verb, names in problems.items() if names]
    if faults:
        raise ValueError(f"{what} does not fit its config.json: it {'; it '.join(faults)}")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _read_model(
    shards: list[Path], config: LLaDAConfig, dtype: torch.dtype | None, device: torch.device
) -> LLaDAModelLM:
    model = _without_weights(config)
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        tensors.update(load_file(shard, device=str(device)))
    model.load_state_dict(tensors, assign=True)
    module: nn.Module = model
    module.to(dtype or tensors["model.transformer.wte.weight"].dtype)
    return model.eval()


def _without_weights(config: LLaDAConfig) -> LLaDAModelLM:
    with torch.device("meta"):
        return MODELS[config.model_type][1](config)


def _read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # what transformers raises here depends on its version and on the file
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"{folder} has no usable tokenizer ({reason})") from error
