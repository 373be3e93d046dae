"""score_tokens at LLaDA's vocabulary: against the published formulation, torch.compile, and the machine's limits.

pytest benchmarks/bench_score_tokens.py
"""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from conftest import Limits, Table
from gpu_cases import ScoreTokens
from operators import CPU, bench
from published import COMPILED, published
from torch import Tensor

import wino_kernels
from wino.benchmark import interleaved
from wino_kernels import _C
from wino_kernels.resources import LLADA, MMADA, Model

ROWS, VOCABULARY = 320, 126464
ROUNDS = 15


def _logits(dtype: torch.dtype) -> Tensor:
    return (torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)


def _assert_exact(logits: Tensor, candidate_ids: Tensor) -> None:
    token_ids, confidence = torch.ops.wino.score_tokens(logits, candidate_ids)
    expected_ids, expected = published(logits)
    assert torch.equal(token_ids, expected_ids)
    assert ((confidence.double() - expected).abs() <= 2e-6 * expected + 1e-12).all()


@pytest.mark.parametrize(("dtype", "bar"), [(torch.bfloat16, 40), (torch.float32, 28)], ids=["bfloat16", "float32"])
def test_score_tokens(dtype: torch.dtype, bar: float, table: Table, threads: int) -> None:
    logits = _logits(dtype)
    candidate_ids = torch.full((ROWS,), -1)
    _assert_exact(logits, candidate_ids)
    size = logits.numel() * logits.itemsize
    compiled: dict[str, Any] = {f.__name__: torch.compile(f, fullgraph=True, dynamic=False) for f in COMPILED}

    seconds = interleaved(
        {
            "published": lambda: published(logits),
            **{name: lambda f=f: f(logits) for name, f in compiled.items()},
            "ours": lambda: torch.ops.wino.score_tokens(logits, candidate_ids),
            "read": lambda: _C.read_once(logits.data_ptr(), size // 4, threads),
            "exponentials": lambda: _C.exponentials(logits.numel(), threads),
        },
        table.rounds(ROUNDS),
    )

    label = f"score_tokens {ROWS} x {VOCABULARY} {str(dtype)[6:]}"
    table.time(f"{label}: ours", seconds["ours"], size)
    table.time(f"{label}: reading the bytes once", seconds["read"], size)
    table.time(f"{label}: the exponentials alone", seconds["exponentials"])
    table.time(f"{label}: published, eager", seconds["published"], size)
    for name in compiled:
        table.time(f"{label}: torch.compile {name}", seconds[name], size)
    table.ratio(f"{label}: published / ours", seconds["published"], seconds["ours"], bar)
    best = min(compiled, key=lambda name: statistics.median(seconds[name]))
    table.ratio(f"{label}: best torch.compile / ours", seconds[best], seconds["ours"], 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def test_other_ways(dtype: torch.dtype, table: Table, threads: int) -> None:
    """Verification, sampling, few rows: times beside the draft of the same shape."""
    logits = _logits(dtype)
    draft = torch.full((ROWS,), -1)
    given = torch.arange(ROWS)
    size = logits.numel() * logits.itemsize
    seconds = interleaved(
        {
            "draft": lambda: wino_kernels.score_tokens(logits, draft),
            "verify": lambda: wino_kernels.score_tokens(logits, given),
            "draft, temperature 0.2": lambda: wino_kernels.score_tokens(logits, draft, temperature=0.2, seed=1),
            "draft, temperature 1": lambda: wino_kernels.score_tokens(logits, draft, temperature=1.0, seed=1),
        },
        table.rounds(ROUNDS),
    )
    for name, times in seconds.items():
        table.time(f"score_tokens {ROWS} x {VOCABULARY} {str(dtype)[6:]}: {name}", times, size)
    one = interleaved({"one row": lambda: wino_kernels.score_tokens(logits[:1], draft[:1])}, table.rounds(20 * ROUNDS))
    table.time(f"score_tokens 1 x {VOCABULARY} {str(dtype)[6:]}: draft", one["one row"], size // ROWS)


@pytest.mark.parametrize("model", [LLADA, MMADA], ids=lambda model: model.name)
def test_models(model: Model, table: Table, limits: Limits) -> None:
    """A block of one sequence, half of it drafted and half verified."""
    bench(ScoreTokens(model, 1, 128, torch.bfloat16, CPU), table, limits, rounds=9)
