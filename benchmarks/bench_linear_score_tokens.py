"""linear_score_tokens: against the matrix product followed by scores of its logits, and what it allocates.

pytest benchmarks/bench_linear_score_tokens.py
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import Limits, Table
from gpu_cases import LinearScoreTokens
from operators import CPU, NARROW, bench

from wino.benchmark import peak_extra
from wino_kernels.resources import Model

ROWS, ROUNDS = 64, 11
PEAK_BAR = 16 << 20


@pytest.mark.parametrize("model", NARROW, ids=lambda model: model.name)
def test_linear_score_tokens(model: Model, table: Table, limits: Limits) -> None:
    case = LinearScoreTokens(model, ROWS, CPU)

    def unfused() -> None:
        torch.ops.wino.score_tokens(F.linear(case.hidden, case.weight), case.ids)

    name = "matrix product, then our score_tokens"
    bench(case, table, limits, rounds=ROUNDS, more={name: unfused}, bars={name: 1})
    table.memory(f"linear_score_tokens {case.label}: memory beyond its inputs", peak_extra(case.call), PEAK_BAR)
