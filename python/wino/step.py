"""One step on the device, and the ways to run it: as it is, compiled, or replayed as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import wino_kernels

from .batch import Batch
from .config import GenerationConfig
from .decoders import Decoder

_WARM_UP = 2  # plain steps before a capture: kernels are compiled and workspaces made in them


def take_step(decoder: Decoder, batch: Batch, whole: bool, refreshed: Tensor | None = None) -> None:
    """One forward pass and one update of every sequence, in place; nothing is read from the device.

    ``whole`` and ``refreshed`` are those of :meth:`Batch.hidden_rows`.
    """
    state, config = batch.state, batch.config
    if batch.samples or config.remasking == "random":
        batch.draw_seeds()
    hidden = batch.hidden_rows(whole, refreshed)
    weight, bias = batch.backbone.head()
    temperature, seed = (batch.temperature, state.row_seeds) if batch.samples else (0.0, 0)
    token_ids, confidence = wino_kernels.linear_score_tokens(
        hidden, weight, decoder.candidate_ids(state), bias=bias, temperature=temperature, seed=seed
    )
    batch.confidence.copy_(confidence)
    masked_before = state.masked.clone()
    batch.report[:, 0] = decoder.update(state, token_ids, confidence)
    # A re-masked position is accepted again before its block ends, which overwrites its entry.
    accepted = masked_before > state.masked
    batch.block_accepted_at.copy_(torch.where(accepted, batch.steps[:, None], batch.block_accepted_at))
    batch.steps.add_(1)
    state.block_step.add_(1)
    if config.stop_at_eos:
        batch.report[:, 1] = state.tokens.eq(batch.end_token_id).all(1)


class Runner:
    """Takes the steps of one decode."""

    def __init__(self, decoder: Decoder, config: GenerationConfig) -> None:
        self._decoder = decoder
        self._take = take_step
        if config.compile_step:
            self._take = compiled(config.compile_step if isinstance(config.compile_step, dict) else {})
        self._captures = config.cuda_graph
        self.forget()

    def forget(self) -> None:
        """The batch's buffers are others than before."""
        self._replays: dict[bool, Callable[[], None]] = {}
        self._plain_steps = {True: 0, False: 0}

    def take(self, batch: Batch, whole: bool, refreshed: Tensor | None = None) -> None:
        """One step; as a graph where its shapes are those of steps before it."""
        if self._captures and refreshed is None:
            if whole in self._replays:
                self._replays[whole]()
                return
            self._plain_steps[whole] += 1
            if self._plain_steps[whole] > _WARM_UP:
                self._replays[whole] = capture(lambda: self._take(self._decoder, batch, whole))
                self._replays[whole]()
                return
        self._take(self._decoder, batch, whole, refreshed)


_compiled: list[tuple[dict[str, Any], Callable[..., None]]] = []


def compiled(options: dict[str, Any]) -> Callable[..., None]:
    """``take_step`` as one graph of torch.compile: a break is an error. Kept, so that decodes share it."""
    for known, step in _compiled:
        if known == options:
            return step
    _compiled.append((dict(options), torch.compile(take_step, fullgraph=True, **options)))
    return _compiled[-1][1]


def capture(call: Callable[[], None]) -> Callable[[], None]:
    """Record what ``call`` does on the GPU, without doing it; returns what does it again, on the same memory."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
