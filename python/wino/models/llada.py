"""LLaDA: a bidirectional LLaMA-style transformer in the Hugging Face layout of ``GSAI-ML/LLaDA-8B``.

The forward pass is written as functions over a module tree with LLaDA's parameter names (``wte``, ``blocks``, ``ln_f``,
``ff_out``), so that a model of the authors' own code and ours take the same path (see :mod:`wino.models.patching`).
Sub-modules are called, so that wrapped projections (LoRA) count; read are only those that nothing wraps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from wino_kernels import norm_qkv_rope, out_norm_swiglu
from wino_kernels.backends import has_kernel
from wino_kernels.eager.norm_qkv_rope import rms_norm, rotate, rows_of

from ..cache import Store

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps query (B, Hq, Lq, d), key and value (B, Hkv, Lk, d) to the attention output (B, Hq, Lq, d)."""

# Fields of the authors' configuration that would change the forward pass, and their values in LLaDA-8B, ours first.
_FIXED_FIELDS: dict[str, tuple[Any, ...]] = {
    "block_type": ("llama",),
    "activation_type": ("silu",),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "bias_for_layer_norm": (False, None),
    "attention_layer_norm": (False,),
    "input_emb_norm": (False,),
    "rope": (True,),
    "alibi": (False,),
    "multi_query_attention": (None, False),
}
_SIZES = ("d_model", "n_heads", "n_kv_heads", "n_layers", "mlp_hidden_size", "vocab_size", "max_sequence_length")

#: The linear layers of a block, by name.
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out")

#: Configuration fields that only matter for training.
DROPOUTS = ("attention_dropout", "residual_dropout", "embedding_dropout")


def check_architecture(config: Any) -> None:
    """Raise ``ValueError`` if ``config`` (ours or the authors') asks for a forward pass that LLaDA-8B does not use.

    Fields that ``config`` does not have count as LLaDA-8B's.
    """
    for name, allowed in _FIXED_FIELDS.items():
        value = getattr(config, name, allowed[0])
        if value not in allowed:
            raise ValueError(f"LLaDA configuration: {name}={value!r} is not supported, only {allowed[0]!r}")
    if getattr(config, "include_bias", False) and getattr(config, "bias_for_layer_norm", False) is None:
        raise ValueError("LLaDA configuration: bias_for_layer_norm=None is not supported with include_bias=True")
    sizes = {name: getattr(config, name, None) for name in _SIZES}
    sizes["embedding_size"] = getattr(config, "embedding_size", None) or None  # 0 stands for vocab_size, like None
    for name, value in sizes.items():
        if value is not None and not (isinstance(value, int) and value > 0):
            raise ValueError(f"LLaDA configuration: {name} must be a positive integer, got {value!r}")
    if config.d_model % config.n_heads or (config.d_model // config.n_heads) % 2:
        raise ValueError(
            "LLaDA configuration: d_model must be an even multiple of n_heads, "
            f"got {config.d_model} and {config.n_heads}"
        )
    n_kv_heads = config.n_heads if config.n_kv_heads is None else config.n_kv_heads
    if config.n_heads % n_kv_heads:
        raise ValueError(f"LLaDA configuration: n_kv_heads must divide n_heads, got {n_kv_heads} and {config.n_heads}")


class LLaDAConfig(PretrainedConfig):
    """Configuration with the field names of the published checkpoints.

    Fields of the authors' configuration that only matter for training (dropouts, initialisation) are kept and ignored.

    Raises:
        ValueError: a field would change the forward pass in a way LLaDA-8B does not use.
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
        rope_theta: float = 500000.0,
        rope_full_precision: bool = True,
        rms_norm_eps: float = 1e-5,
        mask_token_id: int = 126336,
        eos_token_id: int = 126081,
        pad_token_id: int = 126081,
        weight_tying: bool = False,
        include_bias: bool = False,
        include_qkv_bias: bool = False,
        scale_logits: bool = False,
        init_std: float = 0.02,
        **kwargs: Any,
    ) -> None:
        self.d_model = d_model
        self.n_heads = n_heads
        self.n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        self.n_layers = n_layers
        self.mlp_hidden_size = mlp_ratio * d_model if mlp_hidden_size is None else mlp_hidden_size
        self.mlp_ratio = mlp_ratio
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size or vocab_size
        self.max_sequence_length = max_sequence_length
        self.rope_theta = rope_theta
        self.rope_full_precision = rope_full_precision
        self.rms_norm_eps = rms_norm_eps
        self.mask_token_id = mask_token_id
        self.weight_tying = weight_tying
        self.include_bias = include_bias
        self.include_qkv_bias = include_qkv_bias
        self.scale_logits = scale_logits
        self.init_std = init_std
        # Written out because the authors' defaults differ: a checkpoint of ours must mean the same to their code.
        for name, allowed in _FIXED_FIELDS.items():
            setattr(self, name, kwargs.pop(name, allowed[0]))
        for name in DROPOUTS:
            setattr(self, name, kwargs.pop(name, 0.0))
        self.block_group_size = kwargs.pop("block_group_size", 1)
        check_architecture(self)
        if self.block_group_size != 1:
            raise ValueError(f"LLaDA configuration: block_group_size must be 1, got {self.block_group_size}")
        # Tying is expressed by the absence of ff_out; transformers must not tie a second time.
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


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 and cast back before the weight is applied, as LLaDA does."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class LLaDABlock(nn.Module):
    """Parameters of one transformer block; :func:`block_forward` is its forward pass.

    Decoding calls that function on any such module; training calls the module, so that what wraps modules sees it.
    """

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

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], config: Any, attend: Attend) -> Tensor:
        """:func:`block_forward` of this block."""
        return block_forward(self, x, rotary, config, attend)


def rotary_table(config: Any, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, 1, L, head_dim) in float32 of ``position_ids`` (L,) or (B, L)."""
    dim = config.d_model // config.n_heads
    steps = torch.arange(0, dim, 2, device=position_ids.device, dtype=torch.float32) / dim
    frequencies = 1.0 / config.rope_theta**steps
    angles = torch.atleast_2d(position_ids)[:, None, :, None].float() * frequencies  # [B, 1, L, head_dim / 2]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotary_rows(rotary: tuple[Tensor, Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
    """The part of a rotary table (B or 1, 1, L, head_dim) for rows ``rows`` (B, R)."""
    cos, sin = (rows_of(table[:, 0].expand(len(rows), -1, -1), rows)[:, None] for table in rotary)
    return cos, sin


class Rows(NamedTuple):
    """The rows that leave the last block, which computes queries, output projection and MLP for no others.

    Attributes:
        leaving: (B, R) indices into the L rows.
        queries: (B, Q) indices of the rows that ask; attention knows real queries from shadow queries by their place.
        answers: (B, R) where among the queries each leaving row finds its answer; None: they are the queries.
    """

    leaving: Tensor
    queries: Tensor
    answers: Tensor | None


class Weights(NamedTuple):
    """What the fused operators take of a block: arguments of ``norm_qkv_rope`` and of ``out_norm_swiglu``."""

    before: tuple[Tensor, Tensor, Tensor, Tensor]
    before_options: dict[str, Any]
    after: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    after_options: dict[str, Any]


def block_forward(
    block: Any,
    x: Tensor,
    rotary: tuple[Tensor, Tensor],
    config: Any,
    attend: Attend,
    rows: Rows | None = None,
    store: Store | None = None,
    weights: Weights | None = None,
) -> Tensor:
    """One transformer block over hidden states ``x`` (B, L, d_model).

    ``block`` is any module with LLaDA's sub-module names. ``store`` sees the block's keys and values before they are
    attended to, and may return others. With ``rows`` only those leave: (B, R, d_model). ``weights``: of
    :func:`weights_of`; the fused operators take the place of the block's modules.
    """
    asking = None if rows is None else rows.queries
    if weights is None:
        query, key, value = _before_attention(block, x, rotary, config, asking)
    else:
        query, key, value = norm_qkv_rope(x, *weights.before, *rotary, query_rows=asking, **weights.before_options)
    if store is not None:
        key, value = store(key, value)
    attended = attend(query, key, value)
    if rows is not None:
        x = rows_of(x, rows.leaving)
        if rows.answers is not None:
            _, heads, _, head_dim = attended.shape
            attended = attended.gather(2, rows.answers[:, None, :, None].expand(-1, heads, -1, head_dim))
    if weights is None:
        return _after_attention(block, x, attended)
    return out_norm_swiglu(x, attended, *weights.after, **weights.after_options)


def _before_attention(
    block: Any, x: Tensor, rotary: tuple[Tensor, Tensor], config: Any, query_rows: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    def heads(projected: Tensor) -> Tensor:  # [B, L, H * head_dim] -> [B, H, L, head_dim]
        return projected.unflatten(2, (-1, config.d_model // config.n_heads)).transpose(1, 2)

    normed = block.attn_norm(x)
    key = rotate(heads(block.k_proj(normed)), *rotary, config.rope_full_precision)
    value = heads(block.v_proj(normed))
    if query_rows is not None:
        normed, rotary = rows_of(normed, query_rows), rotary_rows(rotary, query_rows)
    return rotate(heads(block.q_proj(normed)), *rotary, config.rope_full_precision), key, value


def _after_attention(block: Any, x: Tensor, attended: Tensor) -> Tensor:
    x = x + block.attn_out(attended.transpose(1, 2).flatten(2))
    normed = block.ff_norm(x)
    return x + block.ff_out(F.silu(block.ff_proj(normed)) * block.up_proj(normed))


def weights_of(block: Any, config: Any) -> Weights | None:
    """The block's weights for the fused operators; None where its modules have to be called.

    That is so where no kernel would be faster, where gradients are wanted, and where anything wraps or watches a part.
    """
    norm, inner_norm = block.attn_norm, block.ff_norm
    if not (_is_plain(norm, RMSNorm) and _is_plain(inner_norm, RMSNorm)):
        return None
    device = norm.weight.device.type
    if torch.is_grad_enabled():
        return None
    if torch.compiler.is_compiling():
        if device != "cpu":  # elsewhere the compiler itself fuses what lies between two products
            return None
    elif not has_kernel("norm_qkv_rope", device):
        return None
    if torch.is_autocast_enabled(device):
        return None
    linears = [getattr(block, name) for name in PROJECTIONS]
    query, key, value, out, gate, up, down = linears
    if not all(_is_plain(linear, nn.Linear) for linear in linears):
        return None
    weights = [norm.weight, inner_norm.weight, *(linear.weight for linear in linears)]
    if any(weight.stride(-1) != 1 or weight.device != norm.weight.device for weight in weights):
        return None
    if any(weight.dtype != norm.weight.dtype for weight in weights):
        return None
    return Weights(
        (norm.weight, query.weight, key.weight, value.weight),
        {
            "eps": norm.eps,
            "q_bias": query.bias,
            "k_bias": key.bias,
            "v_bias": value.bias,
            "full_precision": config.rope_full_precision,
        },
        (out.weight, inner_norm.weight, gate.weight, up.weight, down.weight),
        {
            "eps": inner_norm.eps,
            "out_bias": out.bias,
            "gate_bias": gate.bias,
            "up_bias": up.bias,
            "down_bias": down.bias,
        },
    )


class Trunk(NamedTuple):
    """What ``shadow_trunk`` takes of a model: its arguments of these names."""

    weights: list[Tensor]
    biases: list[Tensor | None]
    eps: float
    norm_weight: Tensor | None


def trunk_of(transformer: Any, blocks: Sequence[Weights | None]) -> Trunk | None:
    """The weights of :func:`weights_of`, all layers together; None where a layer has to go its own way.

    ``norm_weight`` is None where the final norm has to be called.
    """
    weights: list[Tensor] = []
    biases: list[Tensor | None] = []
    epsilons = set()
    for block in blocks:
        if block is None:
            return None
        before, after = dict(block.before_options), dict(block.after_options)
        epsilons |= {before.pop("eps"), after.pop("eps")}
        del before["full_precision"]
        weights += [*block.before, *block.after]
        biases += [*before.values(), *after.values()]
    shapes = [weight.shape for weight in weights]
    if len(epsilons) != 1 or shapes != shapes[: len(shapes) // len(blocks)] * len(blocks):
        return None
    (eps,), norm = epsilons, transformer.ln_f
    fits = _is_plain(norm, RMSNorm) and norm.eps == eps and norm.weight.dtype == weights[0].dtype
    return Trunk(
        weights, biases if any(bias is not None for bias in biases) else [], eps, norm.weight if fits else None
    )


def _is_plain(module: Any, kind: type[nn.Module]) -> bool:
    if type(module) is not kind or type(module.weight) is not nn.Parameter or _has_any_global_hook():
        return False
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def iter_blocks(transformer: Any) -> Iterator[Any]:
    """The transformer's blocks in order, whether or not the authors' code put them in groups."""
    if hasattr(transformer, "block_groups"):
        for group in transformer.block_groups:
            yield from group
    else:
        yield from transformer.blocks


def trunk_forward(
    transformer: Any,
    config: Any,
    x: Tensor,
    rotary: tuple[Tensor, Tensor],
    attend: Attend,
    rows: Rows | None = None,
    stores: Iterable[Store] | None = None,
    *,
    weights: Sequence[Weights | None],
) -> Tensor:
    """All blocks: embedded tokens ``x`` (B, L, d_model) -> hidden states (B, L, d_model) before the final norm.

    ``stores`` and ``weights``: one for each block, see :func:`block_forward`. With ``rows`` only those leave: (B, R,
    d_model).
    """
    blocks = list(iter_blocks(transformer))
    each: Iterable[Store | None] = stores or [None] * len(blocks)
    for block, store, own in zip(blocks, each, weights, strict=True):
        x = block_forward(block, x, rotary, config, attend, rows if block is blocks[-1] else None, store, own)
    return x


def masked_attention(attention_mask: Tensor | None) -> Attend:
    """Scaled dot-product attention under a boolean mask that broadcasts to (B, H, L, L); True = may be attended."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, enable_gqa=grouped)

    return attend


def _visibility(attention_mask: Tensor | None, attention_bias: Tensor | None, ids: Tensor) -> Tensor | None:
    """What both say is visible, as a boolean mask for attention over tokens ``ids`` (B, L).

    A row that sees nothing, of a padded token say, sees everything: what leaves it is nowhere used, but must be finite.
    """
    masks = [
        _as_visibility(name, mask, *ids.shape)
        for name, mask in (("attention_mask", attention_mask), ("attention_bias", attention_bias))
        if mask is not None
    ]
    if not masks:
        return None
    visible = masks[0] if len(masks) == 1 else masks[0] & masks[1]
    return visible | ~visible.any(-1, keepdim=True)


def _as_visibility(name: str, mask: Tensor, batch: int, length: int) -> Tensor:
    """(B, L) key padding or (B | 1, 1, L, L) visibility, boolean or integer 0/1."""
    shape = tuple(mask.shape)
    if shape not in {(batch, length), (batch, 1, length, length), (1, 1, length, length)}:
        expected = f"{(batch, length)} or {(batch, 1, length, length)}"
        raise ValueError(f"{name}: expected shape {expected}, got {shape}")
    if mask.is_floating_point():
        raise TypeError(f"{name}: expected booleans or integers 0 and 1, got {mask.dtype}")
    mask = mask.to(torch.bool)
    return mask[:, None, None, :] if mask.dim() == 2 else mask


def _positions(position_ids: Tensor | None, input_ids: Tensor) -> Tensor:
    batch, length = input_ids.shape
    if position_ids is None:
        return torch.arange(length, device=input_ids.device)
    shape = tuple(position_ids.shape)
    if shape not in {(length,), (1, length), (batch, length)}:
        raise ValueError(f"position_ids: expected shape {(length,)} or {(batch, length)}, got {shape}")
    return position_ids


def lm_head(model: Any) -> tuple[Tensor, Tensor | None]:
    """Weight (V, d_model) and bias of the LM head of ``model`` (ours or the authors'): ``ff_out``; ``wte`` if tied."""
    transformer = model.model.transformer
    if model.config.weight_tying:
        return transformer.wte.weight, None
    return transformer.ff_out.weight, transformer.ff_out.bias


def logit_scale(config: Any) -> float:
    """What the authors' ``scale_logits`` multiplies the logits by; 1.0 without it."""
    return 1.0 / math.sqrt(config.d_model) if config.scale_logits else 1.0


def hidden_forward(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    run: Callable[..., Tensor] = block_forward,
    attention_bias: Tensor | None = None,
) -> Tensor:
    """Hidden states (B, L, d_model) before the final norm; ``run`` computes a block from ``block_forward``'s first five
    arguments."""
    transformer, config = model.model.transformer, model.config
    attend = masked_attention(_visibility(attention_mask, attention_bias, input_ids))
    rotary = rotary_table(config, _positions(position_ids, input_ids))
    x = transformer.wte(input_ids)
    for block in iter_blocks(transformer):
        x = run(block, x, rotary, config, attend)
    return x


def logits_forward(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    attention_bias: Tensor | None = None,
) -> Tensor:
    """Logits (B, L, V) of every position; ``model`` is ours or a live model of the authors' code."""
    transformer, config = model.model.transformer, model.config
    hidden = hidden_forward(model, input_ids, attention_mask, position_ids, attention_bias=attention_bias)
    hidden = transformer.ln_f(hidden)
    logits = F.linear(hidden, transformer.wte.weight) if config.weight_tying else transformer.ff_out(hidden)
    return logits * logit_scale(config) if config.scale_logits else logits


def language_model_forward(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    return_dict: bool | None = None,
    attention_bias: Tensor | None = None,
    **unsupported: Any,
) -> CausalLMOutput | tuple[Tensor]:
    """The forward pass of :class:`LLaDAModelLM` for any ``model``, ours or a live model of the authors' code.

    ``attention_bias``: MMaDA's name for (B | 1, 1, L, L) visibility; with ``attention_mask`` both must allow a pair.
    """
    for name, value in unsupported.items():
        if value is not None and value is not False:
            raise ValueError(f"LLaDA forward: {name} is not supported, only input_ids, attention_mask, position_ids")
    if return_dict is None:
        return_dict = getattr(model.config, "return_dict", True)
    logits = logits_forward(model, input_ids, attention_mask, position_ids, attention_bias)
    return CausalLMOutput(logits=logits) if return_dict else (logits,)


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
        return language_model_forward(self, input_ids, attention_mask, position_ids, return_dict, **unsupported)
