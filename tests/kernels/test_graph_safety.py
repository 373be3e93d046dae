"""CUDA-graph safety by construction: nothing but outputs allocated, no host read, addresses kept, one compilation.

A captured graph replays with the addresses and host values of its capture, so each of these would break it silently.
"""

from __future__ import annotations

import importlib
import weakref
from typing import Any

import pytest
import torch
from test_ops import B, K, operator_calls
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import wino_kernels
from wino_kernels import backends, ops, workspace

GPU_BACKENDS = [name for name in ("triton", "cuda") if backends.why_not(name) is None]
CASES = [
    (backend, call)
    for backend in GPU_BACKENDS
    for call in operator_calls()
    if call.partition(",")[0] in backends._load(backend).kernels
]
HOST_READS = {torch.ops.aten._local_scalar_dense, torch.ops.aten.is_nonzero, torch.ops.aten.nonzero}


def tensors(values: Any) -> list[Tensor]:
    return [value for value in torch.utils._pytree.tree_leaves(values) if isinstance(value, Tensor)]


class Watch(TorchDispatchMode):
    """Notes the storages that appear and the tensors whose values the host reads."""

    def __init__(self, given: list[Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in given}
        self.host_scalars = {t.untyped_storage().data_ptr() for t in given if t.dim() == 0}
        self.allocated: list[Tensor] = []
        self.host_reads: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket in HOST_READS and args[0].untyped_storage().data_ptr() not in self.host_scalars:
            self.host_reads.append(str(function))
        result = function(*args, **(kwargs or {}))
        for tensor in tensors(result):
            storage = tensor.untyped_storage()
            if storage.nbytes() and storage.data_ptr() not in self.known:
                self.known.add(storage.data_ptr())
                self.allocated.append(tensor)
        return result


def as_captured(name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call as a graph's owner makes it: small inputs dense, the temperature per row, so that nothing is spread."""
    _, args, kwargs = operator_calls()[name]
    args = tuple(value.detach() if isinstance(value, Tensor) else value for value in args)
    if name == "score_tokens, noise":
        args = (args[0], args[1].contiguous())
    if name == "wino_step_, noise":
        kwargs = {**kwargs, "temperature": kwargs["temperature"][:, None].expand(B, K).contiguous()}
    return args, kwargs


@pytest.mark.parametrize(("backend", "name"), CASES)
def test_allocates_its_outputs_only_and_reads_nothing_back(backend: str, name: str) -> None:
    operator = ops._OPERATORS[name.partition(",")[0]][0]
    args, kwargs = as_captured(name)
    given = tensors((args, kwargs))
    with wino_kernels.use_backend(backend):
        operator(*args, **kwargs)  # the workspace may grow once
        given += list(workspace._buffers.kept.values())
        addresses = [tensor.data_ptr() for tensor in given]
        with Watch(given) as watch:
            outputs = operator(*args, **kwargs)
    outputs = tensors(outputs)
    assert outputs
    allocated = {tensor.untyped_storage().data_ptr() for tensor in watch.allocated}
    assert allocated == {tensor.untyped_storage().data_ptr() for tensor in outputs if tensor.numel()}
    assert watch.host_reads == []
    assert addresses == [tensor.data_ptr() for tensor in given]


def test_the_watch_sees_an_allocation_and_a_host_read() -> None:
    given = torch.ones(3)
    with Watch([given]) as watch:
        bool((given * 2).sum() > 1)
    assert len(watch.allocated) >= 2 and watch.host_reads


@pytest.mark.parametrize("name", [name for backend, name in CASES if backend == "triton"])
def test_launches_need_no_value_from_the_device(name: str) -> None:
    """On tensors without data, every host read raises; and other data must not mean another compilation."""
    launch = importlib.import_module("wino_kernels.triton.launch")
    kernel = backends._load("triton").kernels[name.partition(",")[0]]
    recorded = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        args, kwargs = as_captured(name)
        on_device = lambda x: x.to("meta") if isinstance(x, Tensor) and x.dim() else x  # noqa: E731
        args = tuple(map(on_device, args))
        kwargs = {key: on_device(value) for key, value in kwargs.items()}
        with launch.recording("sm_90") as launches:
            kernel(*positional(name, args, kwargs))
        recorded.append(launches)
    assert recorded[0]
    for one, other in zip(*recorded, strict=True):
        assert (one.kernel, one.grid, one.constants, one.options) == (
            other.kernel,
            other.grid,
            other.constants,
            other.options,
        )
        assert [type(value) for value in one.arguments.values()] == [type(v) for v in other.arguments.values()]


def positional(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    schema = getattr(torch.ops.wino, name.partition(",")[0]).default._schema.arguments
    given = dict(zip((argument.name for argument in schema), args, strict=False)) | kwargs
    return [given.get(argument.name, argument.default_value) for argument in schema]


def test_the_workspace_is_kept_and_grows() -> None:
    like = torch.zeros(1)
    first = workspace.scratch(like, 10)
    assert workspace.scratch(like, first.numel()).data_ptr() == first.data_ptr()
    larger = workspace.scratch(like, first.numel() + 1)
    assert larger.numel() > first.numel() and larger.dtype == torch.float32
    counters = workspace.counters(like, 3)
    assert counters.dtype == torch.int32 and not counters.any() and counters.data_ptr() != larger.data_ptr()


def test_the_fused_head_never_holds_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, vocabulary = 64, 5000
    hidden, weight = torch.randn(rows, 16), torch.randn(vocabulary, 16)
    monkeypatch.setattr(workspace, "_GRANULE", 1)
    monkeypatch.setattr(workspace, "_buffers", workspace._Buffers())
    with Watch([hidden, weight]) as watch:
        kernel = backends._load("triton").kernels["linear_score_tokens"]
        kernel(hidden, weight, torch.full((rows,), -1), None, None, None, None)
    assert watch.allocated and sum(tensor.numel() for tensor in watch.allocated) < rows * vocabulary / 4


@pytest.mark.skipif("cuda" not in GPU_BACKENDS, reason="no emulated CUDA kernels")
@pytest.mark.parametrize("name", ["score_tokens", "wino_step_"])
def test_fresh_workspace_of_a_capture_lives_until_the_launch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under capture nobody keeps it: freed too early, the counters would lie in the scratch's memory."""
    alive_at_launch, made = [], []

    def fresh(like: Tensor, elements: int, dtype: torch.dtype) -> Tensor:
        buffer = torch.zeros(elements, dtype=dtype)
        made.append(weakref.ref(buffer))
        return buffer

    module = importlib.import_module(f"wino_kernels.cuda.{name.rstrip('_')}")
    launch = module.launch

    def watched(*arguments: Any) -> None:
        alive_at_launch.extend(reference() is not None for reference in made)
        launch(*arguments)

    monkeypatch.setattr(workspace, "_kept", fresh)
    monkeypatch.setattr(module, "launch", watched)
    args, kwargs = as_captured(name)
    with wino_kernels.use_backend("cuda"):
        ops._OPERATORS[name][0](*args, **kwargs)
    assert alive_at_launch == [True, True]


class OnGpu(Tensor):
    """A CPU tensor that says it is on a GPU."""

    is_cuda = True
    device = torch.device("cuda", 0)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("pool", [(0, 0), (0, 7), None])
@pytest.mark.parametrize("capturing", [False, True])
def test_memory_of_a_graph_is_not_kept(
    pool: tuple[int, int] | None, capturing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what is allocated under capture, nor in a private pool; None: an allocator that refuses to say."""
    made: list[Tensor] = []

    def empty(elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        made.append(torch.zeros(elements, dtype=dtype).as_subclass(OnGpu))
        return made[-1]

    def snapshot() -> list[dict[str, Any]]:
        if pool is None:
            raise RuntimeError("Calling snapshot with this backend is not meaningful.")
        beside = {"address": made[-1].data_ptr() + made[-1].nbytes, "total_size": 100, "segment_pool_id": (0, 9)}
        own = {"address": made[-1].data_ptr(), "total_size": made[-1].nbytes, "segment_pool_id": pool}
        return [beside, own]

    monkeypatch.setattr(workspace, "_buffers", workspace._Buffers())
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: type("Stream", (), {"cuda_stream": 3}))
    monkeypatch.setattr(torch.cuda, "memory_snapshot", snapshot)
    like = torch.zeros(1).as_subclass(OnGpu)
    first, second = workspace.scratch(like, 10), workspace.scratch(like, 10)
    keeps = not capturing and pool != (0, 7)
    assert (first is second) == keeps and len(made) == 2 - keeps
    assert (list(workspace._buffers.kept) == [(like.device, 3, torch.float32)]) == keeps


def test_large_scratch_goes_back_to_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "_MOST_KEPT", workspace._GRANULE)
    monkeypatch.setattr(workspace, "_buffers", workspace._Buffers())
    like = torch.zeros(1)
    assert workspace.scratch(like, workspace._GRANULE + 1).numel() > workspace._GRANULE
    assert not workspace._buffers.kept
    assert workspace.scratch(like, 3).numel() == workspace._GRANULE and len(workspace._buffers.kept) == 1


@pytest.mark.parametrize("vocabulary", [126464, 50257])
def test_one_row_is_compiled_as_many_are(vocabulary: int) -> None:
    """What Triton knows of a stride decides the width of the loads, and with it the order of summation."""
    launch = importlib.import_module("wino_kernels.triton.launch")
    kernel = backends._load("triton").kernels["score_tokens"]
    strides = []
    for shape in ((vocabulary,), (1, vocabulary), (2, vocabulary), (3, 5, vocabulary)):
        logits = torch.empty(shape, dtype=torch.bfloat16, device="meta")
        with launch.recording("sm_90") as launches:
            kernel(logits, torch.empty(shape[:-1], dtype=torch.int64, device="meta"), None, None)
        strides.append(launches[0].arguments["inner_stride"])
    assert strides == [vocabulary] * 4


def test_only_a_host_scalar_is_read() -> None:
    launch = importlib.import_module("wino_kernels.triton.launch")
    on_device = torch.empty((), device="meta")
    argument, stride = launch.scalar_or_rows(on_device)
    assert argument is on_device and stride == 1
    assert launch.scalar_or_rows(torch.tensor(0.5)) == (0.5, 0)
