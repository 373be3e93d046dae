"""The LM head as a decode meets it: hidden rows in, one token and confidence a row out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wino_kernels

from .forward import logit_scale, tied_head
from .outside import LINEAR, plain_weight

_TILE = 1 << 24  # logits alive at once: 32 MiB of bfloat16


@dataclass(frozen=True)
class Head:
    """The one way from hidden rows to tokens; :meth:`wino.models.Backbone.head` makes it, at the start of a decode.

    A plain head is multiplied by its weight inside the kernel that scores, and its logits never exist. A head that
    anything wraps, watches, quantises or replaces (an adapter, a hook, another module) is called as the model calls it,
    on a few rows at a time. Both may be asked for logits, in tiles (:meth:`each_tile`).

    Rows are hidden states after the final norm: (..., H), or with ``guidance`` (..., 2, H), each row as it is with the
    prompt and without. Logits are those of the model: with ``scale_logits``' factor, guided, of ``token_range``'s V
    tokens alone.

    Attributes:
        call: (1, n, H) -> (1, n, vocabulary), what the model does to its rows.
        vocab_size: the whole vocabulary, whatever ``token_range``.
        weight, bias: (V, H) and (V,) or None, of the dtype of the rows; no weight: the head has to be called.
        scale: of the logits; ``bias`` has it, ``weight`` does not.
        first, behind: the tokens that are scored, ``first <= token < behind``.
        barred: (n,) int64, scored tokens whose logits are -inf, counted from ``first``; None: none, or ``bias`` has
            them.
        guidance: classifier-free guidance, l' + (guidance + 1) (l - l') of logits l with the prompt and l' without;
            None: no guidance.
    """

    call: Callable[[Tensor], Any]
    vocab_size: int
    weight: Tensor | None
    bias: Tensor | None
    scale: float
    first: int = 0
    behind: int | None = None
    barred: Tensor | None = None
    guidance: float | None = None

    def within(self, token_range: tuple[int, int] | None) -> Head:
        """This head over the tokens ``first <= token < behind`` alone; None: over all."""
        if token_range is None:
            return self
        part = slice(*token_range)
        weight, bias = (None if tensor is None else tensor[part] for tensor in (self.weight, self.bias))
        return replace(self, weight=weight, bias=bias, first=token_range[0], behind=token_range[1])

    def without(self, tokens: Iterable[int], device: torch.device) -> Head:
        """This head with logits of -inf for ``tokens``, by their ids in the whole vocabulary; after :meth:`within`."""
        behind = self.vocab_size if self.behind is None else self.behind
        own = sorted({token - self.first for token in tokens if self.first <= token < behind})
        if not own:
            return self
        barred = torch.tensor(own, device=device)
        if self.weight is None:
            return replace(self, barred=barred if self.barred is None else torch.cat((self.barred, barred)))
        bias = self.weight.new_zeros(len(self.weight)) if self.bias is None else self.bias
        return replace(self, bias=bias.index_fill(0, barred, -torch.inf))

    def score(
        self,
        hidden: Tensor,
        candidate_ids: Tensor,
        noise: tuple[Tensor, Tensor] | None = None,
        choose: Callable[..., tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``wino_kernels.score_tokens`` of the rows' logits (docs/spec.md section 6).

        Args:
            hidden: the rows.
            candidate_ids: (...) int64, as there; tokens by their id in the whole vocabulary.
            noise: temperatures (...) float32 and seeds (...) int64 of the rows; None: temperature 0.
            choose: what is done to logits (n, V) with candidates, temperatures and seeds of n rows, in the place of
                ``wino_kernels.score_tokens``.

        Returns:
            ``token_ids`` (...) int64, ids in the whole vocabulary, and ``confidence`` (...) float32.

        Raises:
            TypeError, ValueError: what a head that is not plain gives is no logits of the vocabulary.
        """
        if self.first:
            candidate_ids = torch.where(candidate_ids >= 0, candidate_ids - self.first, candidate_ids)
        if self.weight is None or choose is not None:
            token_ids, confidence = self.each_tile(choose or _score, hidden, candidate_ids, *(noise or ()))
        else:
            temperature, seed = (0.0, 0) if noise is None else noise
            token_ids, confidence = wino_kernels.linear_score_tokens(
                self._ready(hidden),
                self.weight,
                candidate_ids,
                bias=self.bias,
                temperature=temperature,
                seed=seed,
            )
        if self.first:
            token_ids = torch.where(token_ids >= 0, token_ids + self.first, token_ids)
        return token_ids, confidence

    def each_tile(
        self, function: Callable[..., tuple[Tensor, ...]], hidden: Tensor, *per_row: Tensor
    ) -> tuple[Tensor, ...]:
        """``function(logits, *per_row)`` of every row, without the logits of all rows at once.

        Args:
            function: of logits (n, V) and of n entries of each ``per_row`` tensor; returns a tuple of tensors (n, ...).
            hidden: the rows.
            per_row: (...) what ``function`` is given of each row.

        Returns:
            The tuple, (..., ...) for all rows.
        """
        inner = 1 if self.guidance is None else 2
        shape = hidden.shape[:-inner]
        rows, others = hidden.flatten(0, -inner - 1), [tensor.expand(shape).flatten() for tensor in per_row]
        size = max(1, _TILE // (inner * self.vocab_size))
        parts = [
            function(self.logits(tile), *(tensor[start : start + size] for tensor in others))
            for start, tile in zip(range(0, max(1, len(rows)), size), rows.split(size), strict=True)
        ]
        whole = parts[0] if len(parts) == 1 else [torch.cat(each) for each in zip(*parts, strict=True)]
        return tuple(each.unflatten(0, shape) for each in whole)

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits (..., V) of all these rows at once, in their dtype."""
        if self.weight is not None:
            return F.linear(self._ready(hidden), self.weight, self.bias)
        logits = self.call(hidden.flatten(0, -2)[None])
        if not isinstance(logits, Tensor):
            raise TypeError(f"LM head: expected it to return a tensor, got {type(logits).__name__}")
        wanted = (1, hidden.shape[:-1].numel(), self.vocab_size)
        if logits.shape != wanted:
            raise ValueError(f"LM head: expected logits of shape {wanted}, got {tuple(logits.shape)}")
        logits = logits[..., self.first : self.behind].squeeze(0).unflatten(0, hidden.shape[:-1])
        logits = logits if self.scale == 1.0 else logits * self.scale
        logits = logits if self.guidance is None else self._guided(logits)
        return logits if self.barred is None else logits.index_fill(-1, self.barred, -torch.inf)

    def _ready(self, hidden: Tensor) -> Tensor:
        """Rows that a plain head's weight can be multiplied by."""
        # The head is linear, so guiding the hidden rows guides the logits.
        hidden = hidden if self.guidance is None else self._guided(hidden)
        return hidden if self.scale == 1.0 else hidden * self.scale

    def _guided(self, both: Tensor) -> Tensor:
        assert self.guidance is not None
        with_prompt, without = both.float().unbind(-2)
        return (without + (self.guidance + 1) * (with_prompt - without)).to(both.dtype)


def head_of(model: Any) -> Head:
    """The head of ``model`` (ours or the authors'): ``ff_out``; with ``weight_tying`` the weight of ``wte``.

    Raises:
        TypeError: a tied embedding that has no weight.
    """
    transformer, config = model.model.transformer, model.config
    scale = logit_scale(config)
    if config.weight_tying:
        weight = getattr(transformer.wte, "weight", None)
        if not isinstance(weight, Tensor):
            kind = type(transformer.wte).__qualname__
            raise TypeError(
                f"LM head: with weight_tying it is the weight of model.transformer.wte, and {kind} has none"
            )
        call, bias, size = partial(tied_head, transformer.wte), None, weight.shape[0]
        weight = weight if type(weight) in (nn.Parameter, Tensor) and weight.device.type != "meta" else None
    else:
        head = transformer.ff_out
        call, weight, bias = head, plain_weight(head, LINEAR), None
        size = getattr(head, "out_features", None) or getattr(config, "embedding_size", None) or config.vocab_size
        if weight is not None:
            bias, size = head.bias, weight.shape[0]
    if weight is not None and (weight.stride(-1) != 1 or torch.is_autocast_enabled(weight.device.type)):
        weight = None  # as the module, Torch multiplies what lies otherwise, and in the dtype that is in force
    if weight is None:
        bias = None
    elif bias is not None and scale != 1.0:
        bias = bias * scale
    return Head(call, size, weight, bias, scale)


def _score(logits: Tensor, candidate_ids: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor]:
    temperature, seed = noise or (0.0, 0)
    return wino_kernels.score_tokens(logits, candidate_ids, temperature=temperature, seed=seed)
