"""accept_: against its definition in tensor operations, eager and compiled.

pytest benchmarks/bench_accept.py
"""

from __future__ import annotations

import pytest
from conftest import Limits, Table
from gpu_cases import Accept
from operators import CPU, bench

ROUNDS = 101


@pytest.mark.parametrize("batch", [1, 64])
def test_accept(batch: int, table: Table, limits: Limits) -> None:
    bench(Accept(batch, 128, CPU), table, limits, rounds=ROUNDS)
