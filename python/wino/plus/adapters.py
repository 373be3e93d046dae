"""Adapters that somebody else wrote: looked at before PEFT reads them."""

from __future__ import annotations

from pathlib import Path

from ..foreign import read_json
from ..models.loading import DTYPES, inside, read_header

WEIGHTS = "adapter_model.safetensors"
LARGEST_RANK = 1 << 16
_SETTINGS = "adapter_config.json"
# Fields by which PEFT imports modules, fetches files or looks for data, at what they must be: nothing.
_UNUSED = ("megatron_config", "eva_config", "corda_config", "loftq_config", "arrow_config", "layer_replication")


def check_adapter(folder: Path) -> None:
    """Raise unless ``folder`` holds a LoRA as safetensors, with settings that do no more than say where it goes.

    Raises:
        FileNotFoundError: settings or weights are missing; a pickled ``adapter_model.bin`` is not read.
        ValueError: not a LoRA, not JSON, another dtype than floating point, a setting that would import code or change
            the base (named), or a file that leads out of the folder.
    """
    path = folder / _SETTINGS
    settings = read_json(inside(folder, path))
    kind = settings.get("peft_type") if isinstance(settings, dict) else type(settings).__name__
    if kind != "LORA":
        raise ValueError(f"adapter: expected a LoRA, got {folder} with peft_type {kind!s:.60}")
    for name in _UNUSED:
        if settings.get(name):
            raise ValueError(f"{path}: {name}={settings[name]!r:.60} is not supported, only null")
    rank = settings.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 0 < rank <= LARGEST_RANK:
        raise ValueError(f"{path}: r must be an integer from 1 to {LARGEST_RANK}, got {rank!r:.60}")
    weights = folder / WEIGHTS
    if not weights.is_file():
        # A pickled adapter_model.bin can hold code, so it is not read.
        raise FileNotFoundError(f"adapter: {folder} has no {WEIGHTS}; save it with safe_serialization=True")
    inside(folder, weights)
    for name, dtype, _ in read_header(weights):
        if dtype not in DTYPES:
            raise ValueError(f"{weights}: the tensor {name:.80} is {dtype}, expected one of {', '.join(DTYPES)}")
