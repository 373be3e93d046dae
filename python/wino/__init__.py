"""wino: revocable decoding (WINO) for masked diffusion language models, on the kernels of ``wino_kernels``."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

_missing = [name for name in ("transformers", "tokenizers", "safetensors") if find_spec(name) is None]
if _missing:
    raise ImportError(
        f"wino needs the extra 'decode' ({', '.join(_missing)} missing): pip install 'wino-kernels[decode]'. "
        "The operators alone need no extra: import wino_kernels"
    )

if TYPE_CHECKING:
    from wino_kernels import __version__

    from .config import GenerationConfig
    from .generation import GenerationOutput, generate
    from .integrations.authors import patch
    from .models import PatchHandle, load
    from .trace import StepRecord

__all__ = [
    "GenerationConfig",
    "GenerationOutput",
    "PatchHandle",
    "StepRecord",
    "__version__",
    "generate",
    "load",
    "patch",
]

# Imported at first use: `wino --help` should not wait for Torch.
_HOMES = {
    "GenerationConfig": "wino.config",
    "GenerationOutput": "wino.generation",
    "PatchHandle": "wino.models",
    "StepRecord": "wino.trace",
    "__version__": "wino_kernels",
    "generate": "wino.generation",
    "load": "wino.models",
    "patch": "wino.integrations.authors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wino' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
