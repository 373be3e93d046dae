"""wino_step_: scores and step in one call, against both as published.

pytest benchmarks/bench_wino_step.py
"""

from __future__ import annotations

import pytest
from conftest import Limits, Table
from gpu_cases import WinoStep
from operators import CPU, bench

from wino_kernels.resources import LLADA, MMADA, Model

ROUNDS = 9


@pytest.mark.parametrize("model", [LLADA, MMADA], ids=lambda model: model.name)
def test_wino_step(model: Model, table: Table, limits: Limits) -> None:
    bench(WinoStep(model, 1, 128, CPU), table, limits, rounds=ROUNDS)
