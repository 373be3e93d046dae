"""The forward pass of LLaDA as functions over a module tree with its parameter names (``wte``, ``blocks``, ``ln_f``,
``ff_out``), so that a model of the authors' own code and ours take the same path (see :mod:`wino.models.patching`).

Modules are called, so that what wraps or watches them (LoRA, hooks) counts; read are only those that nothing is put on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from wino_kernels import norm_qkv_rope, out_norm_swiglu
from wino_kernels.backends import has_kernel
from wino_kernels.eager.norm_qkv_rope import rms_norm, rotate, rows_of

from ..cache import Store
from .outside import LINEAR, Forwards, check_reached, in_place, is_watched, plain_weight

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps query (B, Hq, Lq, d), key and value (B, Hkv, Lk, d) to the attention output (B, Hq, Lq, d)."""

#: The linear layers of a block, by name.
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out")
BLOCK_PARTS = ("attn_norm", "ff_norm", *PROJECTIONS)


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 and cast back before the weight is applied, as LLaDA does."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Known(NamedTuple):
    """Classes of which it is known what they compute, so that a kernel may take their place.

    Attributes:
        norms: what :class:`RMSNorm` computes.
        blocks: what :func:`block_forward` computes.
        are_called: whether calling a block with that function's arguments is that function; it is not for the authors'.
    """

    norms: Forwards
    blocks: frozenset[type[nn.Module]]
    are_called: bool


def rotary_table(config: Any, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, 1, L, head_dim) in float32 of ``position_ids`` (L,) or (B, L)."""
    dim = config.d_model // config.n_heads
    steps = torch.arange(0, dim, 2, device=position_ids.device, dtype=torch.float32) / dim
    frequencies = 1.0 / config.rope_theta**steps
    angles = torch.atleast_2d(position_ids)[:, None, :, None].float() * frequencies  # [B, 1, L, head_dim / 2]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)


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


def weights_of(block: Any, config: Any, known: Known) -> Weights | None:
    """The block's weights for the fused operators; None where its modules have to be called.

    That is so where no kernel would be faster, where gradients are wanted, and where anything wraps or watches a part.
    """
    if torch.is_grad_enabled() or type(block) not in known.blocks or is_watched(block):
        return None
    norm, inner_norm, linears = block.attn_norm, block.ff_norm, [getattr(block, name) for name in PROJECTIONS]
    # Looked up once: a module's parameters are slow to find.
    found = [plain_weight(module, known.norms) for module in (norm, inner_norm)]
    found += [plain_weight(module, LINEAR) for module in linears]
    first = found[0]
    if first is None:
        return None
    device = first.device.type
    if torch.compiler.is_compiling():
        if device != "cpu":  # elsewhere the compiler itself fuses what lies between two products
            return None
    elif not has_kernel("norm_qkv_rope", device):
        return None
    if torch.is_autocast_enabled(device):
        return None
    here, dtype = first.device, first.dtype
    weights = [w for w in found if w is not None and w.stride(-1) == 1 and w.device == here and w.dtype == dtype]
    if len(weights) < len(found):
        return None
    attn_norm, ff_norm, query, key, value, out, gate, up, down = weights
    q_bias, k_bias, v_bias, out_bias, gate_bias, up_bias, down_bias = (linear.bias for linear in linears)
    return Weights(
        (attn_norm, query, key, value),
        {
            "eps": norm.eps,
            "q_bias": q_bias,
            "k_bias": k_bias,
            "v_bias": v_bias,
            "full_precision": config.rope_full_precision,
        },
        (out, ff_norm, gate, up, down),
        {
            "eps": inner_norm.eps,
            "out_bias": out_bias,
            "gate_bias": gate_bias,
            "up_bias": up_bias,
            "down_bias": down_bias,
        },
    )


class Trunk(NamedTuple):
    """What ``shadow_trunk`` takes of a model: its arguments of these names."""

    weights: list[Tensor]
    biases: list[Tensor | None]
    eps: float
    norm_weight: Tensor | None
    packed: Tensor | None = None


def trunk_of(transformer: Any, blocks: Sequence[Weights | None], known: Known) -> Trunk | None:
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
    norm_weight = plain_weight(norm, known.norms)
    if norm_weight is not None and (norm.eps != eps or norm_weight.dtype != weights[0].dtype):
        norm_weight = None
    return Trunk(weights, biases if any(bias is not None for bias in biases) else [], eps, norm_weight)


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
    known: Known,
) -> Tensor:
    """All blocks: embedded tokens ``x`` (B, L, d_model) -> hidden states (B, L, d_model) before the final norm.

    ``stores`` and ``weights``: one for each block, see :func:`block_forward`. With ``rows`` only those leave: (B, R,
    d_model).
    """
    blocks = list(iter_blocks(transformer))
    each: Iterable[Store | None] = stores or [None] * len(blocks)
    run = call_block if known.are_called else block_in_place
    for block, store, own in zip(blocks, each, weights, strict=True):
        x = run(block, x, rotary, config, attend, rows if block is blocks[-1] else None, store, own)
    return x


def call_block(block: Any, *arguments: Any) -> Tensor:
    """A block whose forward is :func:`block_forward`, with what is put on it."""
    return block(*arguments)


def block_in_place(block: Any, *arguments: Any) -> Tensor:
    """:func:`block_forward` of a block whose own forward is another."""
    if not is_watched(block):
        return block_forward(block, *arguments)
    with in_place(block):
        return block_forward(block, *arguments)


def check_modules(model: Any, known: Known, own_forward: Callable[..., Any] | None, *, is_called: bool = False) -> None:
    """Raise where the forward pass would leave out what is put on a module of ``model``.

    Args:
        model: ours or a live model of the authors' code.
        known: its classes.
        own_forward: what ``model.forward`` may be a partial of.
        is_called: the model itself is being called, with what is put on it.

    Raises:
        TypeError: a block of another class than those known of the authors'.
        ValueError: a hook, or a forward of its own, on a module that is not called (named).
    """
    transformer, blocks = model.model.transformer, list(iter_blocks(model.model.transformer))
    called = [transformer.wte, transformer.ln_f, *(() if model.config.weight_tying else (transformer.ff_out,))]
    if known.are_called:
        check_reached(model, [*called, *blocks], (), own_forward, is_called=is_called)
        return
    if others := {type(block).__qualname__ for block in blocks if type(block) not in known.blocks}:
        raise TypeError(f"blocks of the model were replaced after wino.patch, by {', '.join(sorted(others))}")
    called += [getattr(block, name) for block in blocks for name in BLOCK_PARTS]
    check_reached(model, called, blocks, own_forward, is_called=is_called)


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


def logit_scale(config: Any) -> float:
    """What the authors' ``scale_logits`` multiplies the logits by; 1.0 without it."""
    return 1.0 / math.sqrt(config.d_model) if config.scale_logits else 1.0


def hidden_forward(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    attention_bias: Tensor | None = None,
    *,
    run: Callable[..., Tensor],
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
    *,
    run: Callable[..., Tensor],
) -> Tensor:
    """Logits (B, L, V) of every position; ``model`` is ours or a live model of the authors' code."""
    transformer, config = model.model.transformer, model.config
    hidden = hidden_forward(model, input_ids, attention_mask, position_ids, attention_bias, run=run)
    hidden = transformer.ln_f(hidden)
    logits = tied_head(transformer.wte, hidden) if config.weight_tying else transformer.ff_out(hidden)
    return logits * logit_scale(config) if config.scale_logits else logits


def tied_head(embedding: Any, hidden: Tensor) -> Tensor:
    """What a head is whose weight is the embedding's; the embedding itself is not called."""
    if not is_watched(embedding):
        return F.linear(hidden, embedding.weight)
    with in_place(embedding):
        return F.linear(hidden, embedding.weight)


def language_model_forward(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    return_dict: bool | None = None,
    attention_bias: Tensor | None = None,
    *,
    run: Callable[..., Tensor],
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
    logits = logits_forward(model, input_ids, attention_mask, position_ids, attention_bias, run=run)
    return CausalLMOutput(logits=logits) if return_dict else (logits,)
