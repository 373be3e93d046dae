"""Models: weights in, hidden rows out."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .backbone import Backbone, backbone_of
from .llada import LLaDAConfig, LLaDAModelLM
from .loading import load
from .patching import PatchHandle, patch, patched

__all__ = ["Backbone", "LLaDAConfig", "LLaDAModelLM", "PatchHandle", "backbone_of", "load", "patch", "patched"]


def _register() -> None:
    """Make ``AutoConfig`` and ``AutoModel`` know LLaDA; what someone else registered under that name stays."""
    name = LLaDAConfig.model_type
    if name not in CONFIG_MAPPING or CONFIG_MAPPING[name].__module__ == LLaDAConfig.__module__:
        AutoConfig.register(name, LLaDAConfig, exist_ok=True)
    AutoModel.register(LLaDAConfig, LLaDAModelLM, exist_ok=True)
    AutoModelForCausalLM.register(LLaDAConfig, LLaDAModelLM, exist_ok=True)


_register()
