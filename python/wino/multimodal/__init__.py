"""Pictures for MMaDA: pixels to codes and back, prompts of codes and text (extra ``multimodal``)."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("PIL") is None:
    raise ImportError(
        "wino.multimodal needs the extra 'multimodal' (Pillow is missing): pip install 'wino-kernels[multimodal]'"
    )

from ..prompts import pad_left
from .drawing import draw, drawing_config
from .layout import PromptLayout
from .magvit import MagvitConfig, MAGVITv2
from .pixels import from_pixels, open_image, to_pixels
from .processor import Processor, load

__all__ = [
    "MAGVITv2",
    "MagvitConfig",
    "Processor",
    "PromptLayout",
    "draw",
    "drawing_config",
    "from_pixels",
    "load",
    "open_image",
    "pad_left",
    "to_pixels",
]
