"""The decoders by name; every one runs in the loop of :mod:`wino.generation`."""

from __future__ import annotations

from .base import BlockState, Decoder
from .confidence_threshold import ConfidenceThreshold
from .low_confidence import LowConfidence
from .maskgit import MaskGit
from .prophet import Prophet
from .wino import Wino

DECODERS: dict[str, type[Decoder]] = {
    "wino": Wino,
    "low_confidence": LowConfidence,
    "confidence_threshold": ConfidenceThreshold,
    "prophet": Prophet,
    "maskgit": MaskGit,
}

__all__ = ["DECODERS", "BlockState", "Decoder"]
