"""CUDA-graph safety by construction: nothing but outputs allocated, no host read, addresses kept, one compilation.

A captured graph replays with the addresses and host values of its capture, so each of these would break it silently.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
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
#: What lies between the library's products is allocated, by Torch.
LAYERS = ("norm_qkv_rope", "out_norm_swiglu", "shadow_trunk")
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


def _is_confidence(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32


def as_captured(name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call as a graph's owner makes it: small inputs dense, the temperature per row, so that nothing is spread;
    confidences in float64, as our own operators return them, so that nothing is converted."""
    _, args, kwargs = operator_calls()[name]
    args = tuple(value.detach() if isinstance(value, Tensor) else value for value in args)
    if name == "score_tokens, noise":
        args = (args[0], args[1].contiguous())
    if name.startswith("accept"):
        args = tuple(value.double() if _is_confidence(value) else value for value in args)
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
    given_back = {tensor.untyped_storage().data_ptr() for tensor in outputs if tensor.numel()}
    if name.partition(",")[0] in LAYERS:
        assert allocated >= given_back and len(watch.allocated) <= 50  # of two layers; twice that one by one
    else:
        assert allocated == given_back
    assert watch.host_reads == []
    assert addresses == [tensor.data_ptr() for tensor in given]


@pytest.mark.skipif("triton" not in GPU_BACKENDS, reason="needs Triton")
def test_many_rows_of_the_head_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("wino_kernels.triton.linear_score_tokens"), "MOST_FUSED", 0)
    test_allocates_its_outputs_only_and_reads_nothing_back("triton", "linear_score_tokens")
    test_launches_need_no_value_from_the_device("linear_score_tokens")


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
        args, kwargs = torch.utils._pytree.tree_map(on_device, (args, kwargs))
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


class Gpu:
    """What the workspace asks Torch for, of a GPU whose allocations come from ``pool``; None: nobody can say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pool: tuple[int, int] | None, capturing: bool = False) -> None:
        self.pool, self.made, self.snapshots = pool, [], 0
        monkeypatch.setattr(workspace, "_buffers", workspace._Buffers())
        monkeypatch.setattr(torch, "empty", self.empty)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: type("Stream", (), {"cuda_stream": 3}))
        monkeypatch.setattr(torch.cuda, "memory_snapshot", self.memory_snapshot)
        self.like = torch.zeros(1).as_subclass(OnGpu)

    def empty(self, elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        self.made.append(torch.zeros(elements, dtype=dtype).as_subclass(OnGpu))
        return self.made[-1]

    def memory_snapshot(self, include_traces: bool = True) -> list[dict[str, Any]]:
        assert not include_traces
        self.snapshots += 1
        if self.pool is None:
            raise RuntimeError("Calling snapshot with this backend is not meaningful.")
        made = self.made[-1]
        beside = {"address": made.data_ptr() + made.nbytes, "total_size": 100, "segment_pool_id": (0, 9)}
        return [beside, {"address": made.data_ptr(), "total_size": made.nbytes, "segment_pool_id": self.pool}]


@pytest.mark.parametrize("pool", [(0, 0), (0, 7), None])
@pytest.mark.parametrize("capturing", [False, True])
def test_memory_of_a_graph_is_not_kept(
    pool: tuple[int, int] | None, capturing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what is allocated under capture, nor in a private pool."""
    gpu = Gpu(monkeypatch, pool, capturing)
    first, second = workspace.scratch(gpu.like, 10), workspace.scratch(gpu.like, 10)
    keeps = not capturing and pool != (0, 7)
    assert (first is second) == keeps and len(gpu.made) == 2 - keeps
    assert (list(workspace._buffers.kept) == [(gpu.like.device, 3, torch.float32)]) == keeps


def test_in_a_private_pool_few_calls_look_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """And outside it again, one of the next does, and keeps what it has."""
    gpu = Gpu(monkeypatch, (0, 7))
    for _ in range(100):
        workspace.scratch(gpu.like, 10)
    assert len(gpu.made) == 100 and gpu.snapshots == 8 and not workspace._buffers.kept
    gpu.pool = (0, 0)
    for _ in range(100):
        workspace.scratch(gpu.like, 10)
    assert len(gpu.made) == 129 and gpu.snapshots == 9 and len(workspace._buffers.kept) == 1


def test_a_snapshot_of_an_older_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch, (0, 7))
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: gpu.memory_snapshot(include_traces=False))
    workspace.scratch(gpu.like, 10)
    assert gpu.snapshots == 1 and not workspace._buffers.kept


def test_large_scratch_goes_back_to_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "_MOST_KEPT", workspace._GRANULE)
    monkeypatch.setattr(workspace, "_buffers", workspace._Buffers())
    like = torch.zeros(1)
    assert workspace.scratch(like, workspace._GRANULE + 1).numel() > workspace._GRANULE
    assert not workspace._buffers.kept
    assert workspace.scratch(like, 3).numel() == workspace._GRANULE and len(workspace._buffers.kept) == 1


COMPILED = """
import torch
from wino_kernels.resources import _ids, _meta, _rule, specialised
from wino_kernels.triton import KERNELS
from wino_kernels.triton.launch import recording

for V in (1, 7, 50257, 50264, 126464):
    for dtype in (torch.float32, torch.bfloat16):
        numbers = "inner", "outer_stride", "inner_stride"
        many, found = _meta(3, 16, V + 1, dtype=dtype), {}
        dense, apart = _meta(2, 16, V, dtype=dtype), _meta(2, 2 * V, dtype=dtype)[:, :V]
        some = many[..., :V], many[..., 1:], many[0, 0, :V], many[0, 0, 1:], many[:, 0, :V], many[:1, 0, :V], apart
        for logits in (*some, dense, dense[:1], dense[1:], dense[:, :1], dense[1, 1], dense[:, 3], apart[:1]):
            with recording("sm_90") as launches:
                KERNELS["score_tokens"](logits, _ids(*logits.shape[:-1]), None, None)
                if logits.dim() == 3:
                    block = [_meta(*logits.shape[:-1], dtype=kind) for kind in (torch.int64, torch.bool, torch.bool)]
                    last = _meta(len(logits), dtype=torch.int32)
                    KERNELS["wino_step_"](logits, *block, last, None, None, *_rule())
            for launch in launches:
                if "logits" in launch.arguments:
                    source, options = specialised(launch, "sm_90")
                    kinds, unit, given = source.signature, launch.constants["UNIT"], launch.arguments["logits"]
                    at = {name: (number,) for number, name in enumerate(kinds)}
                    assert unit == (16 // dtype.itemsize if V * dtype.itemsize % 16 == 0 else 1)
                    starts = given.storage_offset(), *(launch.arguments[name] for name in numbers[1:])
                    assert not any(start % unit for start in starts)
                    # Whether the tensor itself is aligned says nothing about rows that begin anywhere.
                    assert at["logits"] in source.attrs or unit == 1
                    key = [(kinds[name], source.attrs.get(at[name])) for name in numbers]
                    key += [source.constants[at[name]] for name in ("V", "BLOCK", "UNIT", "NOISE", "PER_ROW")]
                    found.setdefault(source.name, set()).add(str((key, options)))
        assert {name: len(keys) for name, keys in found.items()} == {"score_chunks": 1, "score_positions": 1}, found
print("same")
"""


def test_a_row_is_compiled_alike_whatever_it_is_batched_with() -> None:
    """What Triton knows of where rows begin decides the width of the loads, and with it the order of summation."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    finished = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, env=environment)
    assert finished.stdout == "same\n", finished.stderr


@pytest.mark.skipif("triton" not in GPU_BACKENDS, reason="needs Triton")
@pytest.mark.parametrize("vocabulary", [16, 20])
def test_rows_that_begin_anywhere(vocabulary: int) -> None:
    """Where V asks for wide loads, those that do not begin at a multiple of 16 bytes are read from a copy."""
    wider = torch.randn(3, 4, vocabulary + 1, dtype=torch.bfloat16)
    with wino_kernels.use_backend("triton"):
        for logits in (wider[..., 1:], wider[..., :-1], wider[1, 1, 1:], wider[:1, :1, 1:]):
            expected = wino_kernels.draft_confidence(logits.clone())
            for one, other in zip(wino_kernels.draft_confidence(logits), expected, strict=True):
                assert torch.equal(one, other)


def test_only_a_host_scalar_is_read() -> None:
    launch = importlib.import_module("wino_kernels.triton.launch")
    on_device = torch.empty((), device="meta")
    argument, stride = launch.scalar_or_rows(on_device)
    assert argument is on_device and stride == 1
    assert launch.scalar_or_rows(torch.tensor(0.5)) == (0.5, 0)
