"""Load the bundled model, a checkpoint folder or a hub id; refuse a checkpoint that does not fit its configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

from ..device import choose_device
from ..files import write_atomically
from ..foreign import read_json
from .architecture import of_checkpoint
from .llada import LLaDAConfig, LLaDAModelLM
from .mmada import MMadaConfig, MMadaModelLM

MODELS: dict[str, tuple[type[LLaDAConfig], type[LLaDAModelLM]]] = {
    config.model_type: (config, model) for config, model in ((LLaDAConfig, LLaDAModelLM), (MMadaConfig, MMadaModelLM))
}
BUNDLED = "wino-tiny"
_RECIPES = {BUNDLED: "make tiny", "wino-tiny-plus": "make plus", "wino-tiny-mmada": "make tiny-mmada"}
_INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"
#: Those of safetensors that weights may have; all others are of quantised ones.
DTYPES = ("F64", "F32", "BF16", "F16")
_LARGEST_HEADER = 1 << 24  # bytes; LLaDA-8B's has 35,000
_BLOCK = re.compile(r"model\.transformer\.blocks\.(\d{1,9})\.")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def load(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = "auto",
) -> tuple[LLaDAModelLM, PreTrainedTokenizerBase]:
    """A LLaDA or MMaDA in evaluation mode, and its tokenizer.

    Args:
        name_or_path: one that comes with the package: ``"wino-tiny"``, ``"wino-tiny-plus"`` (the same after WINO+)
            or ``"wino-tiny-mmada"``; or a folder in the Hugging Face layout of LLaDA or MMaDA (``config.json``,
            safetensors in one file or sharded, tokenizer files); or a hub id such as ``"GSAI-ML/LLaDA-8B-Instruct"``.
        dtype: of the parameters, or its name, such as "bfloat16"; None: that of the checkpoint's embedding (bfloat16
            for ours and LLaDA-8B).
        device: where to put the model; "auto" or None: a CUDA GPU where there is one, else the CPU.

    Raises:
        FileNotFoundError: no such folder or hub id, or a file is missing from it.
        TypeError: a dtype that is neither a ``torch.dtype`` nor a text.
        ValueError: a checkpoint of neither, or tensors are missing, unexpected or misshapen (named); found before any
            weight is read. No floating-point dtype, or a device that cannot be used here. A file that leads out of the
            folder. Code that the checkpoint brings never runs, and pickled weights are not read.
    """
    wanted, where = None if dtype is None else floating_dtype(dtype), choose_device(device)
    folder = checkpoint_folder(name_or_path)
    check_links(folder)
    config = _read_config(folder)
    shards = _check_tensors(folder, config)
    generation_config = _read_generation_config(folder)
    tokenizer = read_tokenizer(folder, config)
    model = _read_model(shards, config, wanted, where)
    if generation_config is not None:
        model.generation_config = generation_config
    return model, tokenizer


def floating_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """``dtype`` or what it names, "bfloat16" or "torch.bfloat16". See :func:`load` for what it raises."""
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(dtype, str | torch.dtype):
        raise TypeError(f"dtype: expected a torch.dtype or its name, got {type(dtype).__name__}")
    if not isinstance(found, torch.dtype) or not found.is_floating_point or found.itemsize < 2:
        raise ValueError(f"dtype: expected bfloat16, float16, float32 or float64, got {dtype!r:.60}")
    return found


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


def check_links(folder: Path) -> None:
    """Raise ``ValueError`` if a file of ``folder`` that is read with a model is a link to what lies outside.

    Links into the blobs of a hub cache, which every downloaded snapshot consists of, are followed.
    """
    for pattern in (*_HUB_FILES, "additional_chat_templates/*"):
        for path in folder.glob(pattern):
            inside(folder, path)


def inside(folder: Path, path: Path) -> Path:
    """``path`` with its links followed. Raises ``ValueError`` if that is neither in ``folder`` nor in a hub cache."""
    target, home = path.resolve(), folder.resolve()
    in_cache = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
    if home not in target.parents and not in_cache:
        raise ValueError(f"{path} leads out of its folder; put the file itself there")
    return target


def _read_config(folder: Path) -> LLaDAConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no config.json")
    fields = _read_object(path)
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODELS:
        expected = " or ".join(repr(name) for name in MODELS)
        raise ValueError(f"{path}: expected model_type {expected}, got {model_type!r:.60}")
    try:
        config = MODELS[model_type][0].from_dict(of_checkpoint(fields))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error!s:.400}") from error
    config.name_or_path = str(folder)
    return config


def _read_generation_config(folder: Path) -> GenerationConfig | None:
    """What the checkpoint says of its use, its end tokens for one; None without the file."""
    path = folder / GENERATION_CONFIG_NAME
    if not path.is_file():
        return None
    try:
        return GenerationConfig(**_read_object(path))
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: {error!s:.400}") from error


def _read_object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object, got {type(content).__name__}")
    return content


def _shard_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if not index.is_file():
        names = [_WEIGHTS]
    else:
        weight_map = _read_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError(f"{index}: expected weight_map, an object from tensor names to file names")
        names = sorted(set(weight_map.values()))
        for name in names:
            if (
                not name.endswith(".safetensors")
                or Path(name).is_absolute()
                or {"..", "\0"} & {*Path(name).parts, *name}
            ):
                raise ValueError(f"{index}: expected weights in safetensors files of its folder, got {name!r:.80}")
    for name in names:
        if not (folder / name).is_file():
            pickled = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(kind))
            hint = f" but {_listed(pickled)}: pickled weights can run code and are not read" if pickled else ""
            raise FileNotFoundError(f"{folder} has no {name}{hint}")
    return [inside(folder, folder / name) for name in names]


def _check_tensors(folder: Path, config: LLaDAConfig) -> list[Path]:
    """The checkpoint's files, after comparing the shapes in their headers with those ``config`` implies."""
    shards = _shard_files(folder)
    found: dict[str, tuple[int, ...]] = {}
    for shard in shards:
        for name, dtype, shape in read_header(shard):
            if name in found:
                raise ValueError(f"{shard}: the tensor {name:.80} is in another file too")
            if dtype not in DTYPES:
                raise ValueError(
                    f"{shard}: the tensor {name:.80} is {dtype}; quantised weights are not supported, only "
                    f"{', '.join(DTYPES)}"
                )
            found[name] = shape
    # A million layers are told from the names, before anything is built.
    blocks = {int(match[1]) for match in map(_BLOCK.match, found) if match}
    if len(blocks) != config.n_layers:
        raise ValueError(
            f"the checkpoint {folder} does not fit its config.json: it has tensors of {len(blocks)} blocks, n_layers "
            f"is {config.n_layers}"
        )
    expected = {name: tuple(value.shape) for name, value in without_weights(config).state_dict().items()}
    check_shapes(f"the checkpoint {folder}", found, expected)
    return shards


def read_header(path: Path) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of every tensor in a safetensors file.

    Raises:
        ValueError: the file is not one, or its header is larger than that of any model.
    """
    try:
        with open(path, "rb") as head:
            length = int.from_bytes(head.read(8), "little")
        if length > _LARGEST_HEADER:
            raise ValueError(f"{path} is not a readable safetensors file: a header of {length} bytes")
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                yield name, part.get_dtype(), tuple(part.get_shape())
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error


def check_shapes(
    what: str,
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    wanted_by: str = "its config.json",
) -> None:
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
        raise ValueError(f"{what} does not fit {wanted_by}: it {'; it '.join(faults)}")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _read_model(
    shards: list[Path], config: LLaDAConfig, dtype: torch.dtype | None, device: torch.device
) -> LLaDAModelLM:
    model = without_weights(config)
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        tensors.update(load_weights(shard, str(device)))
    model.load_state_dict(tensors, assign=True)
    module: nn.Module = model
    module.to(dtype or tensors["model.transformer.wte.weight"].dtype)
    return model.eval()


def load_weights(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a safetensors file; :func:`read_header` says what it raises."""
    for _ in read_header(path):
        pass
    return load_file(path, device=device)


def without_weights(config: LLaDAConfig) -> LLaDAModelLM:
    with torch.device("meta"):
        return MODELS[config.model_type][1](config)


def read_tokenizer(folder: Path, config: LLaDAConfig | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint's folder; no code of its own runs, and no file outside is opened.

    Args:
        config: that of the checkpoint, if it was read already.

    Raises:
        FileNotFoundError: there is none, or transformers cannot read it.
        ValueError: it is code that the checkpoint brings, names other files, or its settings are no JSON.
    """
    check_links(folder)
    config = _read_config(folder) if config is None else config  # else transformers reads it, hostile or not
    path = folder / "tokenizer_config.json"
    settings = _read_object(path) if path.is_file() else {}
    for name, value in settings.items():
        if re.search("_files?$", name) and value is not None and name != "special_tokens_map_file":
            raise ValueError(f"{path}: {name} names another file; remove it, tokenizer files stand beside this one")
    extra = settings.get("extra_special_tokens")
    is_older = int(transformers.__version__.split(".")[0]) < 5
    told: dict[str, Any] = {}
    if is_older and isinstance(extra, list):  # 5 writes it so; before, the list had another name
        told |= {"extra_special_tokens": {}, "additional_special_tokens": extra}
    if is_older and "tokenizer_file" in settings:  # a null keeps it from looking beside the settings
        told["tokenizer_file"] = str(folder / "tokenizer.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, config=config, trust_remote_code=False, local_files_only=True, **told
        )
        tokenizer("a")  # settings of wrong types are noticed in use alone
        return tokenizer
    except BaseException as error:  # transformers raises what its version likes; its Rust half panics past Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError):
            raise
        if "auto_map" in settings:
            raise ValueError(
                f"{path}: the tokenizer is Python code that the checkpoint brings (auto_map), which never runs here; "
                "save it as a tokenizer.json and remove auto_map"
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(f"{folder} has no usable tokenizer ({reason:.300})") from error


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer as every supported version of transformers reads it.

    Version 5 names a class and a list of special tokens that 4 does not know, and keeps the chat template in a file
    that 4 does not read.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = _read_object(path)
    if isinstance(extra := settings.pop("extra_special_tokens", None), list):
        settings["additional_special_tokens"] = extra
    elif extra is not None:
        settings["extra_special_tokens"] = extra
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(tokenizer.chat_template, str):
        settings["chat_template"] = tokenizer.chat_template
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    write_atomically(path, json.dumps(settings, indent=2) + "\n")
