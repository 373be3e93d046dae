"""Threads of the native module: one OpenMP runtime, the same bits for every number of threads, forked children."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator

import layers
import pytest
import torch

import wino_kernels
from wino_kernels import backends

if backends.why_not("cpu") is not None:
    pytest.fail(f"the cpu backend is unavailable: {backends.why_not('cpu')}", pytrace=False)

from wino_kernels import _C, cpu

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(params=["openmp", "pool"])
def layer(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "pool":
        _C.use_openmp_of("/no/such/library.so")
    elif _C.threading_layer() != "openmp":
        pytest.skip(f"Torch's OpenMP runtime is not GNU compatible here: {cpu.OPENMP}")
    assert _C.threading_layer() == request.param
    before = torch.get_num_threads()
    yield request.param
    torch.set_num_threads(before)
    cpu._share_openmp_with_torch()


def score(logits: torch.Tensor, threads: int, temperature: float = 0.0) -> list[torch.Tensor]:
    torch.set_num_threads(threads)
    candidate_ids = torch.full((len(logits),), -1)
    return list(wino_kernels.score_tokens(logits, candidate_ids, temperature=temperature, seed=3))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_bits_do_not_depend_on_threads(layer: str, rows: int, temperature: float) -> None:
    logits = torch.randn(rows, 50_001) * 3
    expected = score(logits, 1, temperature)
    for threads in (2, 3, 8):
        for got, want in zip(score(logits, threads, temperature), expected, strict=True):
            assert torch.equal(got, want), threads


def layer_calls(batch: int, length: int) -> list[Callable[[], tuple[torch.Tensor, ...]]]:
    """A call of each operator of a transformer layer; 3 heads share one of keys, so heads are few and odd."""
    shape = (batch, length, 33, 3, 1, 22, 70)
    before, after = layers.before_attention(shape, torch.bfloat16), layers.after_attention(shape, torch.bfloat16)
    whole = layers.trunk(shape, torch.bfloat16, number=2, padded=True)
    query, key, value = wino_kernels.norm_qkv_rope(**before)
    attention = {"num_shadow": 6, "block_start": torch.full((batch,), 2)}
    return [
        lambda: wino_kernels.norm_qkv_rope(**before),
        lambda: (wino_kernels.shadow_attention(query, key, value, **attention),),
        lambda: (wino_kernels.out_norm_swiglu(**after),),
        lambda: (wino_kernels.shadow_trunk(**whole),),
    ]


@pytest.mark.parametrize("isa", [isa for isa in backends.CPU_ISAS if backends.why_not_cpu_isa(isa) is None])
@pytest.mark.parametrize(("batch", "length"), [(1, 10), (1, 300), (3, 90)])
def test_bits_of_a_layer_do_not_depend_on_threads(layer: str, isa: str, batch: int, length: int) -> None:
    with backends.use_cpu_isa(isa):
        for call in layer_calls(batch, length):
            torch.set_num_threads(1)
            expected = call()
            for threads in (2, 3, 8):
                torch.set_num_threads(threads)
                for got, want in zip(call(), expected, strict=True):
                    assert torch.equal(got, want), threads


def test_layers_on_several_python_threads(layer: str) -> None:
    torch.set_num_threads(2)
    calls = [call for length in (20, 150) for call in layer_calls(2, length)]
    expected = [call() for call in calls]
    with concurrent.futures.ThreadPoolExecutor(4) as executor:
        for _ in range(5):
            for got, want in zip(executor.map(lambda call: call(), calls), expected, strict=True):
                assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))


def test_callers_on_several_python_threads(layer: str) -> None:
    torch.set_num_threads(2)
    batches = [torch.randn(8, 40_000) for _ in range(6)]
    expected = [wino_kernels.draft_confidence(batch) for batch in batches]
    with concurrent.futures.ThreadPoolExecutor(4) as executor:
        for _ in range(5):
            for got, want in zip(executor.map(wino_kernels.draft_confidence, batches), expected, strict=True):
                assert torch.equal(got[0], want[0])
                assert torch.equal(got[1], want[1])


@LINUX
def test_uses_the_threads_that_torch_already_has() -> None:
    if _C.threading_layer() != "openmp":
        pytest.skip("no OpenMP runtime to share")
    torch.set_num_threads(3)
    torch.randn(2_000_000).exp()
    before = len(os.listdir("/proc/self/task"))
    score(torch.randn(40, 50_001), 3)
    assert len(os.listdir("/proc/self/task")) == before


@LINUX
def test_links_to_no_openmp_runtime_and_not_to_torch() -> None:
    with open(_C.__file__, "rb") as file:
        image = file.read()
    for name in (b"libgomp", b"libomp", b"libiomp", b"libtorch", b"libc10"):
        assert name not in image, name


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_of_a_process_that_ran_in_parallel(layer: str) -> None:
    logits = torch.randn(40, 50_001)
    expected = score(logits, 2)[1]
    trunk = layer_calls(2, 90)[-1]
    (through_layers,) = trunk()
    child = os.fork()
    if child == 0:  # no pytest in here: the exit status is the verdict
        status = 1
        try:
            candidate_ids = torch.full((40,), -1)
            same = torch.equal(wino_kernels.score_tokens(logits, candidate_ids)[1], expected)
            status = 0 if same and torch.equal(trunk()[0], through_layers) else 2
        finally:
            os._exit(status)
    deadline = time.monotonic() + 60
    while (finished := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    if finished[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(finished[1]) == 0


@LINUX
def test_small_work_stays_on_the_calling_thread() -> None:
    code_threads = len(os.listdir("/proc/self/task"))
    _C.use_openmp_of("/no/such/library.so")
    try:
        torch.set_num_threads(64)
        wino_kernels.draft_confidence(torch.randn(4, 4096))
        assert len(os.listdir("/proc/self/task")) <= code_threads
    finally:
        torch.set_num_threads(2)
        cpu._share_openmp_with_torch()
