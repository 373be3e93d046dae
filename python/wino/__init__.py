"""wino: revocable decoding (WINO) for masked diffusion language models, on the kernels of ``wino_kernels``."""

from __future__ import annotations

from wino_kernels import __version__

try:
    import safetensors as _safetensors  # noqa: F401
    import tokenizers as _tokenizers  # noqa: F401
    import transformers as _transformers  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"wino needs the extra 'decode' ({error.name} is missing): pip install 'wino-kernels[decode]'. "
        "The operators alone need no extra: import wino_kernels"
    ) from error

from .config import GenerationConfig
from .generation import GenerationOutput, generate
from .models import PatchHandle, load, patch
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
