"""A step as one graph: compiled without a break, captured and replayed on the same memory, smaller as rows finish."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_generation import BLOCK, EOS, LENGTH, MASK, PROMPT, config, fitting, peaked_model, prompts
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import wino
import wino.generation
import wino.step
from wino.models import Backbone, LLaDAModelLM

HOST_READS = {torch.ops.aten._local_scalar_dense, torch.ops.aten.is_nonzero, torch.ops.aten.nonzero}
COPIES_OF_THE_HOST = {torch.ops.aten.lift_fresh, torch.ops.aten.lift_fresh_copy}
DECODERS = ("wino", "low_confidence", "confidence_threshold", "prophet", "maskgit")


@pytest.fixture(scope="module")
def model() -> LLaDAModelLM:
    return peaked_model()


class Recording(TorchDispatchMode):
    """A CUDA graph's stand-in: calls are noted with their tensors, and done again on the memory of those tensors.

    A value that the host reads is frozen into a graph, and one that the host makes is copied, which waits: both are
    errors here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.made: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        assert function.overloadpacket not in HOST_READS | COPIES_OF_THE_HOST, f"{function} in a step"
        for tensor in self._tensors((args, kwargs)):
            address = tensor.untyped_storage().data_ptr()
            if address not in self.made and address not in self.before:
                whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
                self.before[address] = whole, whole.clone()
        result = function(*args, **kwargs)
        self.made |= {tensor.untyped_storage().data_ptr() for tensor in self._tensors(result)} - self.before.keys()
        self.calls.append((function, args, kwargs, result))
        return result

    @staticmethod
    def _tensors(values: Any) -> list[Tensor]:
        return [value for value in tree_leaves(values) if isinstance(value, Tensor)]

    def undo(self) -> None:
        for whole, before in self.before.values():
            whole.copy_(before)

    def replay(self) -> None:
        for function, args, kwargs, result in self.calls:
            again = function(*args, **kwargs)
            for old, new in zip(self._tensors(result), self._tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Graphs on the CPU; the list holds how often each was replayed."""
    replays: list[int] = []

    def capture(call: Callable[[], None]) -> Callable[[], None]:
        with Recording() as recording:
            call()
        recording.undo()
        number = len(replays)
        replays.append(0)

        def replay() -> None:
            replays[number] += 1
            recording.replay()

        return replay

    monkeypatch.setattr(wino.step, "capture", capture)
    monkeypatch.setattr(wino.generation, "_check_graph", lambda config, device: None)
    return replays


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "seed": 3}, {"cfg_scale": 1.0, "verify_last": True}])
def test_replayed_steps_are_plain_steps(
    model: LLaDAModelLM, graphs: list[int], decoder: str, settings: dict[str, Any]
) -> None:
    """One graph serves every step and block of a decode, with "wino" one with and one without the shadow block."""
    ids = prompts(1)
    plain = wino.generate(model, ids, generation_config=fitting(decoder, **settings))
    out = wino.generate(model, ids, generation_config=fitting(decoder, cuda_graph=True, **settings))
    assert torch.equal(out.sequences, plain.sequences) and torch.equal(out.accepted_at, plain.accepted_at)
    assert sum(graphs) == int(out.steps[0]) - 2 * len(graphs) > 0 and len(graphs) <= 1 + (decoder == "wino")


@pytest.mark.parametrize("called", [False, True])
def test_replayed_steps_with_settings_of_drafts(graphs: list[int], called: bool) -> None:
    """With a plain head and with one that has to be called."""
    model, ids = peaked_model(), prompts(2)
    if called:

        class Head(torch.nn.Linear):
            """As its own class a head of somebody else's."""

        head = model.model.transformer["ff_out"]
        head.__class__ = Head
    named = {"suppress_tokens": [4], "begin_suppress_tokens": [7], "defer_tokens": [9], "stop_at_eos": True}
    for drawn in ({}, {"temperature": 1.0, "top_k": 5, "top_p": 0.9}):
        plain = wino.generate(model, ids, None, config(**named, **drawn))
        out = wino.generate(model, ids, None, config(**named, **drawn, cuda_graph=True))
        assert torch.equal(out.sequences, plain.sequences) and torch.equal(out.accepted_at, plain.accepted_at)
    assert sum(graphs) > 0


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_replayed_steps_with_a_cache(model: LLaDAModelLM, graphs: list[int], cache: str) -> None:
    ids = prompts(4)
    plain = wino.generate(model, ids, generation_config=config(cache=cache))
    out = wino.generate(model, ids, generation_config=config(cache=cache, cuda_graph=True))
    assert torch.equal(out.sequences, plain.sequences) and torch.equal(out.accepted_at, plain.accepted_at)
    assert sum(graphs) > 0


def test_a_batch_with_graphs_shrinks_by_half(model: LLaDAModelLM, graphs: list[int]) -> None:
    """One graph of eight rows, one of the four that have more blocks to fill."""
    ids, given = prompts(8), torch.full((8, LENGTH), MASK)
    given[::2, BLOCK:] = 5
    rule = {"decoder": "low_confidence", "steps": LENGTH}
    plain = wino.generate(model, ids, None, config(**rule), generation_ids=given)
    out = wino.generate(model, ids, None, config(**rule, cuda_graph=True), generation_ids=given)
    assert torch.equal(out.sequences, plain.sequences) and torch.equal(out.steps, plain.steps)
    assert graphs == [BLOCK - 2, LENGTH - BLOCK - 2]


def test_graphs_need_a_gpu(model: LLaDAModelLM) -> None:
    with pytest.raises(ValueError, match="cuda_graph: expected a model on a CUDA device, it is on cpu"):
        wino.generate(model, prompts(1), generation_config=config(cuda_graph=True))


@pytest.mark.parametrize(("decoder", "cache"), [*((decoder, "none") for decoder in DECODERS), ("wino", "dual")])
def test_compiled_without_a_break_and_once(model: LLaDAModelLM, decoder: str, cache: str) -> None:
    """fullgraph: a break is an error. Thresholds, seeds, prompts and blocks are tensors: nothing is compiled anew."""
    compiled = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    options = {"compile_step": {"backend": backend}, "cache": cache, "temperature": 0.5}
    for seed in range(3):
        settings = {"threshold": 0.4 + 0.1 * seed, "threshold_back": 0.8 - 0.1 * seed, "seed": seed}
        ids = prompts(1, seed=seed)
        plain = wino.generate(model, ids, None, fitting(decoder, cache=cache, temperature=0.5, **settings))
        before = len(compiled)
        out = wino.generate(model, ids, None, fitting(decoder, **options, **settings))
        assert torch.equal(out.sequences, plain.sequences) and torch.equal(out.accepted_at, plain.accepted_at)
        assert seed == 0 or len(compiled) == before
    assert 1 <= len(compiled) <= 4  # all tokens or a part, with the shadow block or without


def test_compiled_batches_of_several_models() -> None:
    """More versions of the step than torch.compile gives a function by itself."""
    torch._dynamo.reset()
    for seed in range(2):
        model, ids = peaked_model(seed), prompts(5, seed=seed)
        plain = wino.generate(model, ids, generation_config=config(cache="dual"))
        settings = config(cache="dual", compile_step={"backend": "eager", "options": None})
        out = wino.generate(model, ids, generation_config=settings)
        assert torch.equal(out.sequences, plain.sequences) and torch.equal(out.steps, plain.steps)


def test_finished_sequences_leave_the_batch(model: LLaDAModelLM, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, trunk = [], Backbone.trunk

    def counted(self: Any, embedded: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows.append(len(embedded))
        return trunk(self, embedded, *args, **kwargs)

    monkeypatch.setattr(Backbone, "trunk", counted)
    out = wino.generate(model, prompts(6), generation_config=config())
    assert len(set(out.steps.tolist())) > 1
    assert rows == [int((out.steps > step).sum()) for step in range(int(out.steps.max()))]


def ending_model() -> LLaDAModelLM:
    """Predicts the end of the sequence everywhere."""
    model = peaked_model()
    with torch.no_grad():
        transformer = model.model.transformer
        transformer["ff_out"].weight.zero_()
        transformer["ln_f"].weight.fill_(1.0)
        bias = torch.zeros(transformer["ff_out"].weight.shape[0])
        bias[EOS] = 9.0
        transformer["ff_out"].bias = torch.nn.Parameter(bias)
    return model


@pytest.mark.parametrize("decoder", [name for name in DECODERS if name != "prophet"])
def test_stop_at_eos(decoder: str) -> None:
    model, ids = ending_model(), prompts(2)
    whole = wino.generate(model, ids, generation_config=config(decoder))
    out = wino.generate(model, ids, generation_config=config(decoder, stop_at_eos=True))
    assert torch.equal(out.sequences, whole.sequences)
    assert (whole.steps == 3 * out.steps).all()
    assert (out.accepted_at[:, :BLOCK] >= 0).all() and (out.accepted_at[:, BLOCK:] == -1).all()

    given = torch.full((2, LENGTH), MASK)
    given[1, -1] = 7  # what is given behind is part of the text
    out = wino.generate(model, ids, generation_config=config(decoder, stop_at_eos=True), generation_ids=given)
    assert out.sequences[1, -1] == 7 and out.steps[1] > out.steps[0]
    assert (out.sequences[:, PROMPT:-1] == EOS).all()


def test_stop_at_eos_changes_nothing_before_the_end(model: LLaDAModelLM) -> None:
    plain = wino.generate(model, prompts(4), generation_config=config())
    out = wino.generate(model, prompts(4), generation_config=config(stop_at_eos=True))
    assert torch.equal(out.sequences, plain.sequences)
