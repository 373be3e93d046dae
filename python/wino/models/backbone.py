"""What a decoder needs of a model: tokens in, hidden rows out, and the LM head beside it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from wino_kernels import pack_trunk, shadow_attention, shadow_trunk
from wino_kernels.eager.shadow_trunk import asking

from ..cache import KeyValueCache, Store
from .ends import end_token_ids
from .forward import (
    Rows,
    Trunk,
    Weights,
    check_modules,
    iter_blocks,
    rotary_table,
    trunk_forward,
    trunk_of,
    weights_of,
)
from .head import Head, head_of
from .llada import LLaDAModelLM
from .outside import EMBEDDING, check_devices, execution_device, is_offloaded, plain_weight, put_on
from .patching import is_patched, known_of, looks_like_llada, patched_forward, within


class _Held(NamedTuple):
    """What passes take of a model, looked up once; ``table``: the embedding's, None where its module must be called."""

    blocks: list[Weights | None]
    trunk: Trunk | None
    table: Tensor | None


class Backbone:
    """Decoder's view of a live LLaDA (ours, or the authors' after :func:`wino.patch`); holds the model, copies nothing.

    What is put on a part that decoding calls counts (adapters, hooks, other modules, quantised or offloaded weights).
    Parts see what a decode needs: the last block's queries and all behind it the rows that leave, not all tokens.

    Attributes:
        mask_token_id: id of ``[MASK]``.
        end_token_ids: what ends an answer, by the model alone (:func:`wino.models.end_token_ids`).
        max_length: number of positions, ``max_sequence_length``: the longest prompt and generation together.

    Raises:
        TypeError: blocks of a patched model were replaced.
        ValueError: something is put on a module that decoding does not call, or the weights are not on one device.
    """

    def __init__(self, model: Any) -> None:
        config: Any = model.config
        self._model: Any = model
        self._transformer: Any = model.model.transformer
        self._config = config
        self.mask_token_id: int = config.mask_token_id
        self.end_token_ids = end_token_ids(model)
        self.max_length: int = config.max_sequence_length
        self._full_precision: bool = config.rope_full_precision
        self._known = known_of(model)
        self._held: _Held | None = None
        check_modules(model, self._known, patched_forward)
        check_devices(model)

    def put_on(self) -> list[tuple[str, Any]]:
        """Hooks and forwards of their own on the modules, with the modules' names; where a graph is made of a pass.

        Raises:
            ValueError: they bring offloaded weights, which no graph can do.
        """
        if is_offloaded(self._model):
            raise ValueError(
                "compile_step and cuda_graph: accelerate offloads this model and brings its weights module by module, "
                "which no graph does; decode without them"
            )
        return put_on(self._model)

    def hold_weights(self, *, packed: bool) -> None:
        """Look up the weights once, not at every pass: nothing may wrap or change them from now on.

        ``packed``: hold them as :meth:`trunk` without ``stores`` multiplies them, too.
        """
        each, trunk = self._find_weights()
        if packed and trunk is not None:
            trunk = trunk._replace(packed=pack_trunk(trunk.weights))
        self._held = _Held(each, trunk, self._table())

    def _table(self) -> Tensor | None:
        wte = self._transformer.wte
        return plain_weight(wte, EMBEDDING) if getattr(wte, "max_norm", None) is None else None

    def _find_weights(self) -> tuple[list[Weights | None], Trunk | None]:
        each = [weights_of(block, self._config, self._known) for block in iter_blocks(self._transformer)]
        return each, trunk_of(self._transformer, each, self._known)

    @property
    def vocab_size(self) -> int:
        """Logits a row, V."""
        return self.head().vocab_size

    @property
    def device(self) -> torch.device:
        return execution_device(self._transformer.wte) or self._first_of_embedding().device

    @property
    def dtype(self) -> torch.dtype:
        return self._first_of_embedding().dtype

    def _first_of_embedding(self) -> Tensor:
        tensors = (t for part in (self._transformer.wte, self._model) for t in (*part.parameters(), *part.buffers()))
        return next(tensor for tensor in tensors if tensor.is_floating_point())

    @property
    def embeds_tokens_apart(self) -> bool:
        """Whether a token's embedding is known not to depend on the tokens beside it."""
        return self._table() is not None

    def head(self) -> Head:
        """The LM head as it is at this moment: what makes tokens of :meth:`hidden_rows`."""
        return head_of(self._model)

    def check_inputs(self, tokens: Tensor, position_ids: Tensor) -> None:
        """Raise ``ValueError`` for a token id without an embedding or a position beyond ``max_length``.

        Reads the device once.
        """
        wte, config = self._transformer.wte, self._config
        rows = getattr(wte, "num_embeddings", None) or getattr(config, "embedding_size", None) or config.vocab_size
        bounds = torch.stack((*tokens.aminmax(), *position_ids.aminmax())).tolist()
        ranges = (("token ids", *bounds[:2], rows), ("position ids", *bounds[2:], self.max_length))
        for name, low, high, limit in ranges:
            if low < 0 or high >= limit:
                raise ValueError(f"{name} must lie in [0, {limit}), got {low if low < 0 else high}")

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids (..., L) -> (..., L, H), what :meth:`trunk` takes."""
        if self._held is None or self._held.table is None:
            return self._transformer.wte(tokens.flatten(0, -2)).unflatten(0, tokens.shape[:-1])
        return F.embedding(tokens, self._held.table)

    def rotary(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B, 1, L, d) in float32 of positions (B, L) or (L,)."""
        return rotary_table(self._config, position_ids)

    def new_cache(self, rows: int, length: int, dtype: torch.dtype) -> KeyValueCache:
        """Room for the keys and values of ``rows`` sequences of ``length`` tokens."""
        config = self._config
        heads = config.n_heads if config.n_kv_heads is None else config.n_kv_heads
        shape = (rows, heads, length, config.d_model // config.n_heads)
        return KeyValueCache(len(list(iter_blocks(self._transformer))), shape, dtype, self.device)

    def trunk(
        self,
        embedded: Tensor,
        rotary: tuple[Tensor, Tensor],
        rows: Tensor,
        *,
        num_shadow: int = 0,
        block_start: Tensor,
        key_padding_mask: Tensor | None = None,
        stores: Iterable[Store] | None = None,
    ) -> Tensor:
        """One forward pass, real tokens followed by the shadow block (docs/spec.md section 2); only some rows leave.

        Nothing is checked and nothing is read from the device: the same shapes can be compiled and captured.

        Args:
            embedded: (B, L, H) tokens that run through the layers, the last ``num_shadow`` of them shadow tokens.
            rotary: tables of the L tokens, from :meth:`rotary`.
            rows: (B, R) int64 indices into L.
            block_start: (B,) int64 index among the keys of the one that shadow query 0 must not see.
            key_padding_mask: (B, Lk) bool, True = may be attended; None: all.
            stores: of a pass over a :class:`KeyValueCache`; None: the keys are those of the L tokens.

        Returns:
            (B, R, H) after the final norm, in the model's dtype: what the LM head takes.
        """
        weights, trunk = self._find_weights() if self._held is None else self._held[:2]
        about: dict[str, Any] = {
            "num_shadow": num_shadow,
            "block_start": block_start,
            "key_padding_mask": key_padding_mask,
        }
        if trunk is not None and stores is None:
            hidden = shadow_trunk(
                embedded,
                trunk.weights,
                trunk.biases,
                *rotary,
                rows,
                eps=trunk.eps,
                norm_weight=trunk.norm_weight,
                packed=trunk.packed,
                full_precision=self._full_precision,
                **about,
            )
        else:
            attend = partial(shadow_attention, **about)
            leaving = _asking(rows, embedded.shape[1], num_shadow)
            given = self._transformer, self._config, embedded, rotary, attend, leaving, stores
            hidden = trunk_forward(*given, weights=weights, known=self._known)
        if trunk is None or stores is not None or trunk.norm_weight is None:
            hidden = self._transformer.ln_f(hidden)
        return hidden

    def hidden_rows(
        self,
        tokens: Tensor,
        rows: Tensor,
        *,
        position_ids: Tensor,
        num_shadow: int = 0,
        block_start: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """:meth:`trunk` of plain token ids, checked: what a decoder outside this package calls.

        Args:
            tokens: (B, L) int64, the last ``num_shadow`` of them shadow tokens.
            rows: (B, R) int64 indices into L.
            position_ids: (B, L) or (L,) int64 rotary positions.
            num_shadow: number of shadow tokens; 0: plain attention.
            block_start: (B,) int64 index of the real token that shadow query 0 must not see; needed iff
                ``num_shadow`` > 0.
            key_padding_mask: (B, L) bool, True = may be attended; None: all.

        Raises:
            ValueError: a shape does not fit; or, on the CPU, what :meth:`check_inputs` finds (elsewhere that would
                wait for the device: call it once before the loop).
            RuntimeError: gradients are enabled (the shadow attention has none).
        """
        batch, length = tokens.shape
        if position_ids.shape not in {(batch, length), (length,)}:
            raise ValueError(f"position_ids: expected shape {(batch, length)}, got {tuple(position_ids.shape)}")
        if rows.dim() != 2 or rows.shape[0] != batch:
            raise ValueError(f"rows: expected shape ({batch}, R), got {tuple(rows.shape)}")
        if block_start is None:
            if num_shadow:
                raise ValueError("block_start is needed with num_shadow > 0")
            block_start = torch.zeros(batch, dtype=torch.int64, device=tokens.device)
        if tokens.device.type == "cpu" and not torch.compiler.is_compiling():
            self.check_inputs(tokens, position_ids)
        return self.trunk(
            self.embed(tokens),
            self.rotary(position_ids),
            rows,
            num_shadow=num_shadow,
            block_start=block_start,
            key_padding_mask=key_padding_mask,
        )


def _asking(rows: Tensor, length: int, num_shadow: int) -> Rows:
    """Leaving rows as queries: each of them as a real one, then the whole shadow block, as attention expects it."""
    if not num_shadow:
        return Rows(rows, rows, None)
    return Rows(rows, *asking(rows, length, num_shadow))


def backbone_of(model: PreTrainedModel | nn.Module) -> Backbone:
    """The decoder's view of ``model``.

    Raises:
        TypeError: ``model`` is neither a :class:`LLaDAModelLM`, with its forward, nor patched with :func:`wino.patch`.
    """
    if isinstance(model, LLaDAModelLM) and type(model).forward is not LLaDAModelLM.forward:
        raise TypeError(f"{type(model).__qualname__} has a forward of its own, which decoding would not call")
    if isinstance(model, LLaDAModelLM) or is_patched(model):
        return Backbone(model)
    hint = "; call wino.patch(model) first" if looks_like_llada(model) else within(model)
    raise TypeError(
        "expected a wino.models.LLaDAModelLM or a LLaDA of the authors' code patched with wino.patch, "
        f"got {type(model).__module__}.{type(model).__qualname__}{hint}"
    )
