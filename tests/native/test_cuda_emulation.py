"""The CUDA kernels' device code, run on the CPU by tests/cuda_shim: schedules, missing barriers, worst-case rounding.

What the kernels compute is tested with every other backend in tests/kernels (path "cuda").
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import cuda_emulation
import pytest
import torch
from torch import Tensor

import wino_kernels
from wino_kernels import backends, workspace

cuda_emulation.install()

pytestmark = pytest.mark.xdist_group("cuda emulation")

CHUNK = 8192  # csrc/cuda/row.h
TWO_CHUNKS = CHUNK + 77
MASK = 99_999
SITE = re.compile(r"\b(__syncthreads(?:_or|_count|_and)?|__syncwarp|__threadfence)\(")


def sites() -> list[tuple[str, str]]:
    """(call, "file:line") of everything in csrc/cuda that orders threads."""
    found = []
    for path in sorted((cuda_emulation.ROOT / "csrc" / "cuda").iterdir()):
        for number, line in enumerate(path.read_text().splitlines(), 1) if path.suffix in (".cu", ".h") else ():
            found += [(match[1], f"{path.name}:{number}") for match in SITE.finditer(line.partition("//")[0])]
    return found


@pytest.fixture(autouse=True)
def _on_cuda() -> Iterator[None]:
    assert backends.why_not("cuda") is None
    with wino_kernels.use_backend("cuda"):
        yield


@pytest.fixture(scope="module")
def checking() -> Any:
    return cuda_emulation.load(races=True)


@pytest.fixture
def checker(checking: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[cuda_emulation.Shim]:
    """The kernels run with every access to memory checked for races."""
    for stem in ("score_tokens", "accept_remask", "accept", "wino_step"):
        monkeypatch.setattr(importlib.import_module(f"wino_kernels.cuda.{stem}"), "_C_cuda", checking)
    shim = cuda_emulation.Shim(checking)
    shim.races()
    yield shim
    shim.drop("")
    _forget_workspace()


def _forget_workspace() -> None:
    """A launch that failed leaves counters behind."""
    workspace._buffers.kept.clear()


def block(width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, masked, revocable of one sequence: two thirds masked, the others revocable, a few fixed."""
    kind = torch.arange(width) % 6
    masked, revocable = kind < 4, kind == 4
    return torch.where(masked, MASK, torch.arange(width))[None], masked[None], revocable[None]


def score_greedy() -> list[Tensor]:
    return list(wino_kernels.draft_confidence(torch.randn(2, TWO_CHUNKS) * 3))


def score_with_noise() -> list[Tensor]:
    return list(wino_kernels.draft_confidence(torch.randn(2, TWO_CHUNKS), temperature=1.0, seed=3))


def step() -> list[Tensor]:
    width = 6
    state = [*block(width), torch.tensor([4], dtype=torch.int32)]
    logits = torch.randn(1, width, TWO_CHUNKS) * 3
    rule = {"mask_id": MASK, "threshold": 0.0, "threshold_back": 0.9}
    return [*state, *wino_kernels.wino_step_(logits, *state, **rule)]


def accept_remask(width: int = 300) -> list[Tensor]:
    """More positions than a block has threads; both selections are cut short."""
    state = [*block(width), torch.tensor([4], dtype=torch.int32)]
    ids, confidence = torch.arange(width)[None], torch.rand(1, width)
    rule = {"mask_id": MASK, "threshold": 0.1, "threshold_back": 0.9}
    return [*state, *wino_kernels.accept_remask_(*state[:3], ids, confidence, state[3], **rule)]


def accept_remask_narrow() -> list[Tensor]:
    return accept_remask(40)


def accept(width: int = 300) -> list[Tensor]:
    tokens, masked, _ = block(width)
    ids, confidence = torch.arange(width)[None], torch.rand(1, width)
    return [tokens, masked, *wino_kernels.accept_(tokens, masked, ids, confidence, count=7)]


SCENARIOS: list[Callable[[], list[Tensor]]] = [
    score_greedy,
    score_with_noise,
    step,
    accept_remask,
    accept_remask_narrow,
    accept,
]


def results(scenario: Callable[[], list[Tensor]]) -> list[Tensor]:
    torch.manual_seed(0)
    return scenario()


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_nothing_races(checker: cuda_emulation.Shim, scenario: Callable[[], list[Tensor]]) -> None:
    for seed in range(2):
        checker.seed(seed)
        results(scenario)
        assert not checker.races()


@pytest.mark.parametrize(("call", "site"), sites())
def test_a_missing_barrier_is_found(checker: cuda_emulation.Shim, call: str, site: str) -> None:
    """Each barrier, fence and vote in the kernels is left out once, and the checker must say so.

    A vote (`__syncthreads_or`) also carries a value; without it the threads may go different ways, which the shim
    refuses, or the result is another.
    """
    checker.seed(0)
    checker.drop(site)
    noticed = []
    for scenario in SCENARIOS:
        try:
            got = results(scenario)
        except RuntimeError as error:
            assert "cudaErrorLaunchFailure" in str(error)
            noticed.append("refused")
        else:
            checker.drop("")
            races = checker.races()
            if call == "__syncthreads_or" and not equal(got, results(scenario)):
                noticed.append("another result")
            checker.drop(site)
            noticed += races
        _forget_workspace()
    assert noticed, f"{call} at {site} is redundant, or no scenario needs it"
    if call != "__syncthreads_or":
        assert any("are not ordered" in line for line in noticed), noticed


def test_every_kind_of_call_is_covered() -> None:
    assert {call for call, _ in sites()} == {"__syncthreads", "__syncthreads_or", "__syncwarp", "__threadfence"}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_results_do_not_depend_on_the_schedule(scenario: Callable[[], list[Tensor]]) -> None:
    """Blocks and threads in any order, and whatever shared memory holds at the start."""
    shim = cuda_emulation.Shim(importlib.import_module("wino_kernels.cuda.native")._C_cuda)
    shim.seed(0)
    expected = results(scenario)
    for seed in range(1, 12):
        shim.seed(seed)
        assert equal(results(scenario), expected), seed


def test_counters_are_zero_again() -> None:
    step(), score_greedy()
    counters = [buffer for (_, _, dtype), buffer in workspace._buffers.kept.items() if dtype == torch.int32]
    assert counters and not any(buffer.any() for buffer in counters)


V = 126464
ROWS = {
    **{
        f"one high, all others {d} below": torch.zeros(V).index_fill(0, torch.tensor([77]), d)
        for d in (5.3, 9.9, 10.0, 11.05, 12.3, 15.9)
    },
    "flat": torch.full((V,), -3.7),
    "steep ramp": torch.linspace(-200, 30, V),
    "far from zero": torch.linspace(-3, 3, V).sin() * 4 + 1000,
    "one chunk far above": torch.cat([torch.full((CHUNK,), 9.0), torch.linspace(-1, 1, V - CHUNK)]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ROWS)
def test_confidence_where_float32_sums_go_wrong(dtype: torch.dtype, kind: str) -> None:
    """The shim's exponential is off by the most that the PTX manual allows, everywhere to the same side."""
    logits = ROWS[kind].to(dtype)[None]
    candidates = torch.tensor([0, 5, V // 2, V - 1])
    token_ids, confidence = wino_kernels.draft_confidence(logits)
    given = wino_kernels.verify_confidence(logits.expand(4, V), candidates)
    assert token_ids[0] == logits[0].float().argmax()
    exact = logits.double().softmax(-1)[0][torch.cat([token_ids, candidates])]
    error = (torch.cat([confidence, given]).double() - exact).abs()
    assert (error <= 2e-6 * exact + 1e-12).all(), (error / exact).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("vocabulary", [131, CHUNK, 2 * CHUNK + 1])
def test_bits_do_not_depend_on_the_address(dtype: torch.dtype, vocabulary: int) -> None:
    row = (torch.randn(vocabulary) * 3).to(dtype)
    expected = wino_kernels.draft_confidence(row)
    for offset in range(1, 16 // row.element_size()):
        store = torch.full((vocabulary + 16,), torch.nan, dtype=dtype)
        view = store[offset : offset + vocabulary].copy_(row)
        token, confidence = wino_kernels.draft_confidence(view)
        assert token == expected[0] and torch.equal(confidence, expected[1]), offset


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0, 8.0, 1e30])
def test_estimates_leave_every_draw_as_it_is(dtype: torch.dtype, temperature: float) -> None:
    """Over several chunks: the estimates only sort out what cannot win, so draws are those of the definition."""
    logits = (torch.randn(12, 2 * CHUNK + 500) * 4).to(dtype)
    logits[::3] = logits[::3].round()
    tokens, _ = wino_kernels.draft_confidence(logits, temperature=temperature, seed=5)
    with wino_kernels.use_backend("eager"):
        expected, _ = wino_kernels.draft_confidence(logits, temperature=temperature, seed=5)
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize("positions", [[0], [CHUNK - 1, CHUNK], [CHUNK, 2 * CHUNK], [CHUNK + 5, CHUNK + 4, 3 * CHUNK]])
def test_ties_across_chunks(positions: list[int]) -> None:
    logits = torch.randn(1, 3 * CHUNK + 1).clamp(max=2)
    logits[0, positions] = 5.0
    assert wino_kernels.draft_confidence(logits)[0].item() == min(positions)


@pytest.mark.parametrize("width", [255, 256, 257, 1024, 1500])
def test_blocks_wider_than_a_block_of_threads(width: int) -> None:
    for scenario in (accept_remask, accept):
        got = results(lambda: scenario(width))  # noqa: B023
        with wino_kernels.use_backend("eager"):
            assert equal(got, results(lambda: scenario(width)))  # noqa: B023
