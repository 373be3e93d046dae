"""LLaDA: a bidirectional LLaMA-style transformer in the Hugging Face layout of ``GSAI-ML/LLaDA-8B``.

Its forward pass is that of :mod:`wino.models.forward`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .architecture import (
    DROPOUTS,
    FIXED_FIELDS,
    SIZE,
    check_architecture,
    check_field,
    check_foreign,
    rope_theta_of,
    take_synonyms,
    warn_of_unknown,
)
from .companions import copy_settings
from .forward import Known, RMSNorm, block_forward, call_block, check_modules, language_model_forward


class LLaDAConfig(PretrainedConfig):
    """Configuration with the field names of the published checkpoints.

    Fields of the authors' configuration that only matter for training (dropouts, initialisation) are kept and ignored;
    so are fields that are not known, with a warning. ``rope_theta`` may stand in ``rope_parameters``, where newer
    versions of transformers keep it; without either it is 500000.

    Raises:
        ValueError: a field has a wrong type or value, or would change the forward pass in a way LLaDA-8B does not use.
    """

    model_type = "llada"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    def __init__(
        self,
        d_model: int = 4096,
        n_heads: int = 32,
        n_kv_heads: int | None = None,
        n_layers: int = 32,
        mlp_hidden_size: int | None = None,
        mlp_ratio: int = 4,
        vocab_size: int = 126464,
        embedding_size: int | None = None,
        max_sequence_length: int = 4096,
        rope_theta: float | None = None,
        rope_full_precision: bool = True,
        rms_norm_eps: float = 1e-5,
        mask_token_id: int = 126336,
        eos_token_id: int | list[int] | None = 126081,
        pad_token_id: int | None = 126081,
        weight_tying: bool = False,
        include_bias: bool = False,
        include_qkv_bias: bool = False,
        scale_logits: bool = False,
        init_std: float = 0.02,
        **kwargs: Any,
    ) -> None:
        rope = {name: kwargs.pop(name, None) for name in ("rope_parameters", "rope_scaling")}
        theta = rope_theta_of(rope)
        self.d_model = d_model
        self.n_heads = n_heads
        self.n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        self.n_layers = n_layers
        self.mlp_ratio = mlp_ratio
        self.mlp_hidden_size: Any = mlp_hidden_size
        self.vocab_size = vocab_size
        self.embedding_size: Any = embedding_size
        self.max_sequence_length = max_sequence_length
        self.rope_theta = rope_theta if rope_theta is not None else 500000.0 if theta is None else theta
        self.rope_full_precision = rope_full_precision
        self.rms_norm_eps = rms_norm_eps
        self.mask_token_id = mask_token_id
        self.weight_tying = weight_tying
        self.include_bias = include_bias
        self.include_qkv_bias = include_qkv_bias
        self.scale_logits = scale_logits
        self.init_std = init_std
        # Written out because the authors' defaults differ: a checkpoint of ours must mean the same to their code.
        for name, allowed in FIXED_FIELDS.items():
            setattr(self, name, kwargs.pop(name, allowed[0]))
        for name in DROPOUTS:
            setattr(self, name, kwargs.pop(name, 0.0))
        self.block_group_size = kwargs.pop("block_group_size", 1)
        self.eos_token_id, self.pad_token_id = eos_token_id, pad_token_id
        check_architecture(self, rope)
        if self.block_group_size != 1:
            raise ValueError(f"LLaDA configuration: block_group_size must be 1, got {self.block_group_size!r}")
        self.mlp_hidden_size = mlp_ratio * d_model if mlp_hidden_size is None else mlp_hidden_size
        self.embedding_size = embedding_size or vocab_size
        check_field("mlp_hidden_size", self.mlp_hidden_size, SIZE)
        take_synonyms(self, kwargs)
        warn_of_unknown(check_foreign(kwargs))
        # Whether the head is tied is weight_tying alone, as to the authors' code; transformers must not tie a second
        # time.
        kwargs["tie_word_embeddings"] = False
        kwargs.update(eos_token_id=eos_token_id, pad_token_id=pad_token_id)
        super().__init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        return self.d_model

    @property
    def num_hidden_layers(self) -> int:
        return self.n_layers

    @property
    def num_attention_heads(self) -> int:
        return self.n_heads


class LLaDABlock(nn.Module):
    """One transformer block; :func:`block_forward` is its forward pass."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        d, bias = config.d_model, config.include_bias
        qkv_bias = bias or config.include_qkv_bias
        kv = d // config.n_heads * config.n_kv_heads
        self.attn_norm = RMSNorm(d, config.rms_norm_eps)
        self.q_proj = nn.Linear(d, d, bias=qkv_bias)
        self.k_proj = nn.Linear(d, kv, bias=qkv_bias)
        self.v_proj = nn.Linear(d, kv, bias=qkv_bias)
        self.attn_out = nn.Linear(d, d, bias=bias)
        self.ff_norm = RMSNorm(d, config.rms_norm_eps)
        self.ff_proj = nn.Linear(d, config.mlp_hidden_size, bias=bias)
        self.up_proj = nn.Linear(d, config.mlp_hidden_size, bias=bias)
        self.ff_out = nn.Linear(config.mlp_hidden_size, d, bias=bias)

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        """:func:`block_forward` of this block and these arguments."""
        return block_forward(self, x, *others)


OURS = Known({RMSNorm: RMSNorm.forward}, frozenset({LLaDABlock}), are_called=True)


class LLaDAModel(nn.Module):
    """Holds ``transformer`` with the names of the published checkpoints: ``wte``, ``blocks``, ``ln_f``, ``ff_out``."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.embedding_size, config.d_model),
                "blocks": nn.ModuleList(LLaDABlock(config) for _ in range(config.n_layers)),
                "ln_f": RMSNorm(config.d_model, config.rms_norm_eps),
            }
        )
        if not config.weight_tying:
            self.transformer["ff_out"] = nn.Linear(config.d_model, config.embedding_size, bias=config.include_bias)


class LLaDAModelLM(PreTrainedModel):
    """LLaDA with its LM head; an ordinary transformers model without a causal mask."""

    config_class: type[LLaDAConfig] = LLaDAConfig
    base_model_prefix = "model"
    _no_split_modules = ["LLaDABlock"]  # noqa: RUF012 - transformers declares it per instance
    _supports_sdpa = True
    main_input_name = "input_ids"

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__(config)
        self.model = LLaDAModel(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.init_std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.transformer["wte"]

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.transformer["wte"] = value

    def get_output_embeddings(self) -> nn.Module | None:
        return None if self.config.weight_tying else self.model.transformer["ff_out"]

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.model.transformer["ff_out"] = value

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, *args: Any, **kwargs: Any) -> None:
        """As transformers'; the settings beside the weights (presets.json, generation_config.json) come along."""
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process and self.config.name_or_path:
            copy_settings(Path(self.config.name_or_path), Path(save_directory))

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self.config.embedding_size = embeddings.num_embeddings
        return embeddings

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        return_dict: bool | None = None,
        **unsupported: Any,
    ) -> CausalLMOutput | tuple[Tensor]:
        """Logits of every position.

        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, L) key padding, or (B, 1, L, L) or (1, 1, L, L) visibility, boolean or integer; True
                or 1 = may be attended. None: everything is visible.
            position_ids: (L,) or (B, L) int64 rotary positions; None: 0 .. L - 1.
            return_dict: False: a plain tuple ``(logits,)``.

        Returns:
            ``CausalLMOutput`` with ``logits`` (B, L, embedding_size) in the model's dtype.

        Raises:
            ValueError: a shape does not fit, or another argument of the authors' forward (caches, labels) was given.
            TypeError: a floating-point ``attention_mask``.
        """
        if not torch.compiler.is_compiling():
            check_modules(self, OURS, None, is_called=True)
        return language_model_forward(
            self, input_ids, attention_mask, position_ids, return_dict, run=call_block, **unsupported
        )
