"""Models: weights in, hidden rows out."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .backbone import Backbone, backbone_of
from .ends import end_token_ids
from .llada import LLaDAConfig, LLaDAModelLM
from .loading import load
from .mmada import MMadaConfig, MMadaModelLM
from .patching import PatchHandle, patched

__all__ = [
    "Backbone",
    "LLaDAConfig",
    "LLaDAModelLM",
    "MMadaConfig",
    "MMadaModelLM",
    "PatchHandle",
    "backbone_of",
    "end_token_ids",
    "load",
    "patched",
]


def _register() -> None:
    """Make ``AutoConfig`` and ``AutoModel`` know our models; what someone else registered under a name stays."""
    for config, model in ((LLaDAConfig, LLaDAModelLM), (MMadaConfig, MMadaModelLM)):
        name = config.model_type
        if name not in CONFIG_MAPPING or CONFIG_MAPPING[name].__module__ == config.__module__:
            AutoConfig.register(name, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)


_register()
