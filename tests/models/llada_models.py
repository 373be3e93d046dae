"""Small random models of our own class."""

from __future__ import annotations

from typing import Any

import torch

from wino.models import LLaDAConfig, LLaDAModelLM


def build_llada(seed: int = 0, **fields: Any) -> LLaDAModelLM:
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "d_model": 48, "n_heads": 6, "n_layers": 3, "mlp_hidden_size": 80, "vocab_size": 60, "max_sequence_length": 96,
        "rope_theta": 10000.0, "mask_token_id": 1, "eos_token_id": 0, "pad_token_id": 0, "init_std": 0.25,
    }  # fmt: skip
    model = LLaDAModelLM(LLaDAConfig(**{**settings, **fields})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(mean=float("norm" in name or "ln_f" in name), std=0.2)
    return model
