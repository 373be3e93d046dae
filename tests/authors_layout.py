"""A stand-in for the authors' modelling code: their module names, configuration fields and transformers-4 class layout.

Like that code it calls no ``post_init``, overrides ``tie_weights()`` without arguments, reads ``config.use_cache`` and
wraps plain ``nn.Module`` layers in a ``PreTrainedModel``, and so breaks under transformers 5 in the same places. The
arithmetic is written out independently of the package.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

FIELDS: dict[str, Any] = {
    "d_model": 48,
    "n_heads": 6,
    "n_kv_heads": 6,
    "n_layers": 3,
    "mlp_ratio": 4,
    "mlp_hidden_size": 80,
    "activation_type": "silu",
    "block_type": "llama",
    "block_group_size": 1,
    "alibi": False,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 10000.0,
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,
    "embedding_dropout": 0.0,
    "multi_query_attention": None,
    "attention_layer_norm": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "bias_for_layer_norm": False,
    "rms_norm_eps": 1e-5,
    "max_sequence_length": 96,
    "include_bias": False,
    "include_qkv_bias": False,
    "scale_logits": False,
    "vocab_size": 60,
    "embedding_size": 64,
    "weight_tying": False,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "mask_token_id": 1,
    "init_std": 0.25,
    "use_cache": False,
}


class AuthorsConfig(PretrainedConfig):
    model_type = "llada"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**FIELDS, **kwargs})


class RMSLayerNorm(nn.Module):
    def __init__(self, config: AuthorsConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.ones(config.d_model))
        self.register_parameter("bias", None)
        self.eps = config.rms_norm_eps

    def forward(self, x: Tensor) -> Tensor:
        variance = x.to(torch.float32).square().mean(dim=-1, keepdim=True)
        return self.weight * (x.to(torch.float32) / torch.sqrt(variance + self.eps)).to(x.dtype)


class RotaryEmbedding(nn.Module):
    """Rotates pairs (i, i + d / 2) as complex numbers, from a table over all positions."""

    def __init__(self, config: AuthorsConfig) -> None:
        super().__init__()
        half = config.d_model // config.n_heads // 2
        frequencies = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.arange(config.max_sequence_length, dtype=torch.float64)[:, None] * frequencies
        self.table = torch.polar(torch.ones_like(angles), angles)

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor:
        real, imaginary = x.float().chunk(2, dim=-1)
        turned = torch.complex(real, imaginary) * self.table[position_ids].to(torch.complex64)
        return torch.cat((turned.real, turned.imag), dim=-1).to(x.dtype)


class LLaDALlamaBlock(nn.Module):
    def __init__(self, config: AuthorsConfig) -> None:
        super().__init__()
        d, hidden = config.d_model, config.mlp_hidden_size or config.mlp_ratio * config.d_model
        kv = d // config.n_heads * config.n_kv_heads
        qkv_bias = config.include_bias or config.include_qkv_bias
        self.config = config
        self.attn_out = nn.Linear(d, d, bias=config.include_bias)
        self.ff_out = nn.Linear(hidden, d, bias=config.include_bias)
        self.rotary_emb = RotaryEmbedding(config)
        self.attn_norm = RMSLayerNorm(config)
        self.ff_norm = RMSLayerNorm(config)
        self.q_proj = nn.Linear(d, d, bias=qkv_bias)
        self.k_proj = nn.Linear(d, kv, bias=qkv_bias)
        self.v_proj = nn.Linear(d, kv, bias=qkv_bias)
        self.ff_proj = nn.Linear(d, hidden, bias=config.include_bias)
        self.up_proj = nn.Linear(d, hidden, bias=config.include_bias)

    def forward(self, x: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> Tensor:
        batch, length, d = x.shape
        shape = (batch, length, -1, d // self.config.n_heads)
        normed = self.attn_norm(x)
        query, key, value = (p(normed).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        query, key = self.rotary_emb(query, position_ids), self.rotary_emb(key, position_ids)
        group = self.config.n_heads // self.config.n_kv_heads
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        scores = query @ key.transpose(-1, -2) / math.sqrt(shape[-1])
        if attention_mask is not None:
            scores = scores.masked_fill(~attention_mask, -math.inf)
        x = x + self.attn_out((scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, length, d))
        normed = self.ff_norm(x)
        return x + self.ff_out(F.silu(self.ff_proj(normed)) * self.up_proj(normed))


class LLaDAModel(nn.Module):
    def __init__(self, config: AuthorsConfig) -> None:
        super().__init__()
        self.config = config
        blocks = [LLaDALlamaBlock(config) for _ in range(config.n_layers)]
        size = config.block_group_size
        groups = [nn.ModuleList(blocks[i : i + size]) for i in range(0, config.n_layers, size)]
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.embedding_size, config.d_model),
                "emb_drop": nn.Dropout(config.embedding_dropout),
                "ln_f": RMSLayerNorm(config),
            }
        )
        self.transformer.update(
            {"block_groups": nn.ModuleList(groups)} if size > 1 else {"blocks": nn.ModuleList(blocks)}
        )
        if not config.weight_tying:
            self.transformer["ff_out"] = nn.Linear(config.d_model, config.embedding_size, bias=config.include_bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None) -> Tensor:
        x = self.transformer.emb_drop(self.transformer.wte(input_ids))
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1])
        grouped = "block_groups" in self.transformer
        for block in [b for g in self.transformer.block_groups for b in g] if grouped else self.transformer.blocks:
            x = block(x, attention_mask, position_ids)
        x = self.transformer.ln_f(x)
        logits = F.linear(x, self.transformer.wte.weight) if self.config.weight_tying else self.transformer.ff_out(x)
        return logits / math.sqrt(self.config.d_model) if self.config.scale_logits else logits


class LLaDAModelLM(PreTrainedModel):
    config_class = AuthorsConfig
    base_model_prefix = "model"
    _no_split_modules = ["LLaDABlock", "LLaDASequentialBlock", "LLaDALlamaBlock"]  # noqa: RUF012 - their spelling

    def __init__(self, config: AuthorsConfig, model: LLaDAModel | None = None) -> None:
        super().__init__(config)
        self.model = LLaDAModel(config) if model is None else model

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        attention_bias: Tensor | None = None,
        past_key_values: list[Tensor] | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        use_cache = self.config.use_cache if use_cache is None else use_cache
        return_dict = self.config.use_return_dict if return_dict is None else return_dict
        logits = self.model(input_ids, attention_mask, position_ids)
        return CausalLMOutputWithPast(logits=logits) if return_dict else (logits,)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.transformer.wte

    def tie_weights(self) -> None:
        if self.config.weight_tying:
            self.model.transformer.ff_out = self.model.transformer.wte


class MMadaConfig(PretrainedConfig):
    """No defaults: all it knows comes from the checkpoint."""

    model_type = "mmada"


class MMadaModelLM(LLaDAModelLM):
    config_class = MMadaConfig

    def mmu_generate(self, idx: Tensor, **settings: Any) -> str:
        return "the authors' own loop"


def build(seed: int = 0, kind: type[LLaDAModelLM] = LLaDAModelLM, **fields: Any) -> Any:
    """A random model in evaluation mode, on either transformers version; norms and biases are random too."""
    torch.manual_seed(seed)
    model = kind(kind.config_class(**{**FIELDS, **fields})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=model.config.init_std)
            else:
                parameter.normal_(mean=float("norm" in name or "ln_f" in name), std=0.2)
    return model


def own_logits(model: LLaDAModelLM, input_ids: Tensor, **arguments: Any) -> Tensor:
    """Logits of the stand-in's own arithmetic, which transformers 5 reaches only past the outer class."""
    with torch.no_grad():
        return model.model(input_ids, arguments.get("attention_mask"), arguments.get("position_ids"))
