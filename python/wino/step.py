"""One step on the device, and the ways to run it: as it is, compiled, or replayed as a CUDA graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple
from weakref import ReferenceType, ref

import torch

from .batch import Batch, Passes
from .config import GenerationConfig
from .decoders import Decoder

PutOn = list[tuple[str, Any]]

_VERSIONS = 256  # of the compiled step; torch.compile's own limit is an error where a graph may not break
_WARM_UP = 2  # plain steps before a capture: kernels are compiled and workspaces made in them


def take_step(decoder: Decoder, batch: Batch, passes: Passes) -> None:
    """One forward pass and one update of every sequence, in place; nothing is read from a device that is no CPU."""
    state, config = batch.state, batch.config
    if batch.samples or config.remasking == "random" or config.choice_temperature > 0:
        batch.draw_seeds()
    hidden = batch.hidden_rows(passes)
    candidates = decoder.candidate_ids(state)
    if not passes.verify:
        candidates = torch.where(state.masked, candidates, -2)
    noise = (batch.temperature, state.row_seeds) if batch.samples else None
    token_ids, confidence = batch.scorer.score(hidden, candidates, noise, batch.block_start)
    batch.confidence.copy_(confidence)
    decoder.observe(state, batch.scorer.head, hidden)
    # Of the last step that finds a position masked: when the block ends, of the one that accepted its token.
    torch.where(state.masked, batch.steps[:, None], batch.block_accepted_at, out=batch.block_accepted_at)
    status = decoder.update(state, token_ids, confidence)
    batch.steps.add_(1)
    state.block_step.add_(1)
    if config.stop_at_eos:
        batch.ended.copy_((state.tokens[..., None] == batch.end_token_ids).any(-1).all(1))
    torch.stack((status, state.last_accepted, batch.ended), out=batch.report)


class Runner:
    """Takes the steps of one decode; ``put_on``: :meth:`wino.models.Backbone.put_on` of its model."""

    def __init__(self, decoder: Decoder, config: GenerationConfig, put_on: PutOn) -> None:
        self._decoder = decoder
        self._take = take_step
        if config.compile_step:
            self._take = compiled(config.compile_step if isinstance(config.compile_step, dict) else {}, put_on)
        self._captures = config.cuda_graph
        self.forget()

    def forget(self) -> None:
        """The batch's buffers are others than before."""
        self._replays: dict[Passes, Callable[[], None]] = {}
        self._plain_steps: Counter[Passes] = Counter()

    def take(self, batch: Batch, passes: Passes) -> None:
        """One step; as a graph where its shapes are those of steps before it."""
        if not self._captures or passes.refreshed is not None:
            self._take(self._decoder, batch, passes)
        elif passes in self._replays:
            self._replays[passes]()
        elif self._plain_steps[passes] < _WARM_UP:
            self._plain_steps[passes] += 1
            self._take(self._decoder, batch, passes)
        else:
            self._replays[passes] = capture(lambda: self._take(self._decoder, batch, passes))
            self._replays[passes]()


class _Compiled(NamedTuple):
    options: dict[str, Any]
    put_on: list[tuple[str, ReferenceType[Any]]]
    step: Callable[..., None]

    def is_for(self, options: dict[str, Any], put_on: PutOn) -> bool:
        same = [(name, found()) for name, found in self.put_on]
        return self.options == options and len(same) == len(put_on) and all(map(_is_same, same, put_on))


def _is_same(one: tuple[str, Any], other: tuple[str, Any]) -> bool:
    return one[0] == other[0] and one[1] is other[1]


_compiled: list[_Compiled] = []


def compiled(options: dict[str, Any], put_on: PutOn) -> Callable[..., None]:
    """``take_step`` as one graph of torch.compile: a break is an error. Kept, so that decodes share it.

    Torch's guards look at modules and weights, not at hooks: what is put on the model gets a graph of its own.
    """
    for known in _compiled:
        if known.is_for(options, put_on):
            return known.step
    code = take_step.__code__.replace()  # graphs are kept by code object
    step = torch.compile(FunctionType(code, take_step.__globals__), fullgraph=True, **options)
    # Each model, decoder and kind of pass is a version of its own, more than a function usually gets.
    patient = torch._dynamo.config.patch(recompile_limit=_VERSIONS)(step)

    def named(*arguments: Any) -> None:
        try:
            patient(*arguments)
        except torch._dynamo.exc.Unsupported as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"compile_step: torch.compile cannot trace this model ({reason}); leave it out") from error

    _compiled.append(_Compiled(dict(options), [(name, ref(found)) for name, found in put_on], named))
    return named


def capture(call: Callable[[], None]) -> Callable[[], None]:
    """Record what ``call`` does on the GPU, without doing it; returns what does it again, on the same memory."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
