"""trajectory_loss and its gradient: against logits in memory, eager and compiled.

pytest benchmarks/bench_trajectory_loss.py
"""

from __future__ import annotations

import pytest
from conftest import Limits, Table
from gpu_cases import TrajectoryLoss, TrajectoryLossBackward
from operators import CPU, NARROW, bench

from wino_kernels.resources import Model

ROWS, ROUNDS = 32, 6


@pytest.mark.parametrize("model", NARROW, ids=lambda model: model.name)
@pytest.mark.parametrize("case", [TrajectoryLoss, TrajectoryLossBackward])
def test_trajectory_loss(case: type[TrajectoryLoss], model: Model, table: Table, limits: Limits) -> None:
    bench(case(model, ROWS, CPU), table, limits, rounds=ROUNDS)
