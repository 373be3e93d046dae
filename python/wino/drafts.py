"""From hidden rows to drafts and verifications: the head, and the settings that say which tokens may be drafted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import wino_kernels

from .config import GenerationConfig
from .models.backbone import Backbone
from .models.head import Head

_DRAFT, _SKIP = -1, -2

Noise = tuple[Tensor, Tensor]
"""Temperatures float32 and seeds int64, one of each a row."""


class _Way(NamedTuple):
    """How a row is scored.

    Attributes:
        head: of what may be drafted, and the mask token.
        maskless: without the mask token; None: ``head`` does not draft it either.
        undeferred: without the deferred tokens; None: there are none.
    """

    head: Head
    maskless: Head | None
    undeferred: Head | None


class Scorer:
    """Scores a decode's rows (docs/spec.md section 3b).

    Attributes:
        head: of the tokens and with the guidance that the settings ask for, without the suppressed tokens.
    """

    def __init__(self, backbone: Backbone, config: GenerationConfig, prompt_length: int) -> None:
        guidance = config.cfg_scale if config.cfg_scale > 0 else None
        whole = replace(backbone.head().within(config.token_range), guidance=guidance)
        self._prompt_length = prompt_length
        self._mask_id, self._deferred = backbone.mask_token_id, config.defer_tokens or ()
        self._usual = self._way(whole, config.suppressed, backbone.device)
        self._beginning: _Way | None = None
        if config.begin_suppress_tokens:
            banned = [*config.suppressed, *config.begin_suppress_tokens]
            self._beginning = self._way(whole, banned, backbone.device)
        self.head = self._usual.head
        # A drafted mask is rare: where looking makes nobody wait, a step without one costs nothing more.
        self._looks = backbone.device.type == "cpu" and not (config.compile_step or config.cuda_graph)
        self._choose: Callable[..., tuple[Tensor, Tensor]] | None = None
        if config.filters_draws:
            self._choose = partial(
                _draw, mask_id=self._mask_id - self.head.first, top_k=config.top_k, top_p=config.top_p
            )
        elif self.head.weight is None:  # a head that has to be called is called once
            self._choose = partial(_score, mask_id=self._mask_id - self.head.first, looks=self._looks)

    def _way(self, whole: Head, banned: Sequence[int], device: torch.device) -> _Way:
        head = whole.without(banned, device)
        maskless = whole.without([*banned, self._mask_id], device)
        is_drafted = maskless is not head and self._mask_id not in banned
        undeferred = whole.without([*banned, *self._deferred], device) if self._deferred else None
        return _Way(head, maskless if is_drafted else None, undeferred)

    def score(
        self, hidden: Tensor, candidates: Tensor, noise: Noise | None, block_start: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Token and confidence (B, K) of every row.

        Args:
            hidden: (B, K) rows as ``head`` takes them.
            candidates: (B, K) int64: -1 draft, >= 0 verify that token, -2 nothing.
            noise: (B, K) each; None: temperature 0.
            block_start: (B,) where the blocks begin.
        """
        if self._beginning is None:
            return self._scored(self._usual, hidden, candidates, noise)
        begins = (block_start == self._prompt_length)[:, None]
        own, first = candidates[:, :1], hidden[:, :1]
        others = torch.cat((torch.where(begins, _SKIP, own), candidates[:, 1:]), dim=1)
        usual = self._scored(self._usual, hidden, others, noise)
        first_noise = None if noise is None else (noise[0][:, :1], noise[1][:, :1])
        special = self._scored(self._beginning, first, torch.where(begins, own, _SKIP), first_noise)
        token_ids, confidence = (
            torch.cat((torch.where(begins, one, rest[:, :1]), rest[:, 1:]), dim=1)
            for one, rest in zip(special, usual, strict=True)
        )
        return token_ids, confidence

    def _scored(self, way: _Way, hidden: Tensor, candidates: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor]:
        token_ids, confidence = way.head.score(hidden, candidates, noise, self._choose)
        if self._choose is None and (maskless := way.maskless) is not None:
            scores = token_ids, confidence
            token_ids, confidence = _but_the_mask(
                scores, self._mask_id, self._looks, lambda drafts: maskless.score(hidden, drafts, noise)
            )
        if way.undeferred is not None:
            is_draft = candidates == _DRAFT
            _, others = way.undeferred.score(hidden, torch.where(is_draft, token_ids, _SKIP))
            confidence = torch.where(is_draft, others, confidence)
        return token_ids, confidence


def _but_the_mask(
    scores: tuple[Tensor, Tensor], mask_id: int, looks: bool, again: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """``scores`` with the next best token in the place of a drafted mask; ``again`` scores without the mask."""
    token_ids, confidence = scores
    is_mask = token_ids == mask_id
    if looks and not bool(is_mask.any()):
        return scores
    others, share = again(torch.where(is_mask, _DRAFT, _SKIP))
    # Of the whole distribution: a share of what the mask leaves.
    return torch.where(is_mask, others, token_ids), torch.where(is_mask, share * (1 - confidence), confidence)


def _score(logits: Tensor, candidates: Tensor, *noise: Tensor, mask_id: int, looks: bool) -> tuple[Tensor, Tensor]:
    """``score_tokens`` that never drafts the token at ``mask_id``."""
    temperature, seed = noise or (0.0, 0)
    scores = wino_kernels.score_tokens(logits, candidates, temperature=temperature, seed=seed)
    if not 0 <= mask_id < logits.shape[-1]:
        return scores

    def again(drafts: Tensor) -> tuple[Tensor, Tensor]:
        return wino_kernels.score_tokens(_barred(logits, mask_id), drafts, temperature=temperature, seed=seed)

    return _but_the_mask(scores, mask_id, looks, again)


def _barred(logits: Tensor, token: int) -> Tensor:
    barred = logits.clone()
    barred.select(-1, token).fill_(-torch.inf)  # an index tensor made on the host could not be captured in a graph
    return barred


def _draw(
    logits: Tensor,
    candidates: Tensor,
    temperature: Tensor,
    seed: Tensor,
    *,
    mask_id: int,
    top_k: int | None,
    top_p: float | None,
) -> tuple[Tensor, Tensor]:
    """``score_tokens`` whose drafts are drawn among the likeliest tokens, never the one at ``mask_id``."""
    allowed = _barred(logits, mask_id) if 0 <= mask_id < logits.shape[-1] else logits
    kept = likeliest(allowed.float() / torch.where(temperature > 0, temperature, 1.0)[:, None], top_k, top_p)
    drawn, _ = wino_kernels.score_tokens(
        torch.where(kept, allowed, -torch.inf),
        torch.where(candidates == _DRAFT, _DRAFT, _SKIP),
        temperature=temperature,
        seed=seed,
    )
    token_ids = torch.where(candidates == _DRAFT, drawn, candidates)
    return token_ids, wino_kernels.score_tokens(logits, token_ids)[1]


def likeliest(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Where ``logits`` (..., V) belong to the ``top_k`` largest, ties with the last included, and among these to the
    fewest largest whose probabilities add up to ``top_p``; bool. None, and 0 for ``top_k``: all of them."""
    kept = logits > -torch.inf
    if top_k:
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        kept = kept & (logits >= least)
    if top_p is not None and top_p < 1:
        ordered, where = torch.where(kept, logits, -torch.inf).softmax(-1).sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        kept = kept & torch.zeros_like(kept).scatter(-1, where, before < top_p)
    return kept
