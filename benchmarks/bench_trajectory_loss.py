"""trajectory_loss and its gradient: against logits in memory, eager and compiled, and against the published loss.

pytest benchmarks/bench_trajectory_loss.py
"""

from __future__ import annotations

import math

import pytest
import torch
from conftest import Limits, Table
from gpu_cases import TrajectoryLoss, TrajectoryLossBackward
from operators import CPU, NARROW, OURS, bench
from published import LossBatch, make_loss_batch, published_loss

import wino_kernels
from wino.benchmark import interleaved, peak_extra
from wino_kernels.resources import Model

ROWS, ROUNDS = 32, 6
TIME_BAR, MEMORY_BAR = 4.0, 10.0


@pytest.mark.parametrize("model", NARROW, ids=lambda model: model.name)
@pytest.mark.parametrize("case", [TrajectoryLoss, TrajectoryLossBackward])
def test_trajectory_loss(case: type[TrajectoryLoss], model: Model, table: Table, limits: Limits) -> None:
    bench(case(model, ROWS, CPU), table, limits, rounds=ROUNDS)


def fused_loss(batch: LossBatch) -> torch.Tensor:
    rows = batch.labels, batch.target, batch.candidate
    return wino_kernels.trajectory_loss(batch.hidden, batch.weight, *rows, threshold=0.6, threshold_back=0.9).loss


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def test_against_the_published_loss(dtype: torch.dtype, table: Table, threads: int) -> None:
    """Head and loss of one sample, forward and backward to the hidden states, under a frozen head as in LoRA."""
    batch = make_loss_batch(NARROW[0].vocabulary, NARROW[0].hidden, dtype)
    losses = {OURS: fused_loss, "published": published_loss}

    def step(name: str) -> None:
        batch.hidden.grad = None
        losses[name](batch).backward()

    gradients = {}
    for name in losses:
        step(name)
        assert batch.hidden.grad is not None
        gradients[name] = batch.hidden.grad.float()
    off = (gradients[OURS] - gradients["published"]).norm() / gradients["published"].norm()
    assert off <= (2e-2 if dtype == torch.bfloat16 else 1e-4), float(off)
    ours, theirs = (float(loss(batch).detach()) for loss in losses.values())
    assert math.isclose(ours, theirs, rel_tol=1e-2 if dtype == torch.bfloat16 else 1e-4)

    label = f"head and loss, forward and backward, {NARROW[0].name}, L=448, {str(dtype).removeprefix('torch.')}"
    rounds = table.rounds(ROUNDS)
    seconds = interleaved({name: lambda name=name: step(name) for name in losses}, rounds, lambda _: None)
    table.ratio(f"{label}: published / {OURS}", seconds["published"], seconds[OURS], TIME_BAR)
    peaks: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(rounds):
        for name in losses:
            peak = peak_extra(lambda name=name: step(name))
            if peak is not None:
                peaks[name].append(max(peak, 1))
    if peaks[OURS]:
        what = f"{label}: peak memory, published / {OURS}"
        # Memory that the process still held is not seen: what a call needs is the largest of its peaks.
        needed = [max(peaks[OURS])] * len(peaks[OURS])
        table.ratio(what, peaks["published"], needed, MEMORY_BAR, note="bytes")
