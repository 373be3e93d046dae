"""accept_remask_ through torch.ops, against the same step in tensor operations as the published loop writes them.

pytest benchmarks/bench_accept_remask.py
"""

from __future__ import annotations

import pytest
import torch
from conftest import Limits, Table
from gpu_cases import AcceptRemask
from operators import CPU, bench
from published import BLOCK, MASK_ID, THRESHOLD, THRESHOLD_BACK, Published, make_step

from wino.benchmark import interleaved

ROUNDS = 101


@pytest.mark.parametrize(("batch", "bar"), [(1, 8), (64, 200)])
def test_accept_remask(batch: int, bar: float, table: Table, threads: int) -> None:
    step = make_step(batch)
    threshold, threshold_back = torch.tensor(THRESHOLD), torch.tensor(THRESHOLD_BACK)
    tokens, masked, revocable, last = state = [tensor.clone() for tensor in step[:4]]
    sequences: list[Published] = []

    def restore(name: str) -> None:
        """The state from before the step, where a decoder keeps it: in the same buffers."""
        if name == "ours":
            for tensor, initial in zip(state, step[:4], strict=True):
                tensor.copy_(initial)
        else:
            sequences[:] = [Published(step, row) for row in range(batch)]

    def ours() -> None:
        torch.ops.wino.accept_remask_(
            tokens,
            masked,
            revocable,
            step.token_ids,
            step.confidence,
            last,
            mask_id=MASK_ID,
            threshold=threshold,
            threshold_back=threshold_back,
        )

    def published() -> None:
        for sequence in sequences:
            sequence.step()

    restore("published")
    published()
    ours()
    for row, sequence in enumerate(sequences):
        assert torch.equal(tokens[row], sequence.tokens[0, sequence.block])
        assert torch.equal(masked[row], sequence.masked[0, sequence.block])
        assert torch.equal(revocable[row], sequence.filled[0, sequence.shadow])
        assert last[row] == sequence.last

    seconds = interleaved({"published": published, "ours": ours}, table.rounds(ROUNDS), restore)
    table.time(f"accept_remask_ B={batch} K={BLOCK}: ours", seconds["ours"])
    table.time(f"accept_remask_ B={batch} K={BLOCK}: published", seconds["published"])
    table.ratio(f"accept_remask_ B={batch} K={BLOCK}: published / ours", seconds["published"], seconds["ours"], bar)


@pytest.mark.parametrize("batch", [1, 64])
def test_other_ways(batch: int, table: Table, limits: Limits) -> None:
    """Beside its definition in tensor operations over the whole batch, eager and compiled; thresholds differ by row."""
    bench(AcceptRemask(batch, BLOCK, CPU), table, limits, rounds=31)
