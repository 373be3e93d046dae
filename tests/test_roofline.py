"""Bytes and operations in the roofline are those of the operators' tensors; eager's traffic is that of its kernels."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from wino_kernels.eager.shadow_attention import visibility

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import roofline  # noqa: E402
import tables  # noqa: E402

ops = torch.ops.wino
RULE = {"mask_id": 0, "threshold": torch.tensor(0.6), "threshold_back": torch.tensor(0.9)}


def nbytes(*tensors: Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def assert_moves(work: roofline.Work, read: Iterable[Tensor], written: Iterable[Tensor]) -> None:
    assert (work.read, work.written) == (nbytes(*read), nbytes(*written))


def block_state(batch: int, block: int) -> tuple[Tensor, ...]:
    """tokens, masked, revocable, last_accepted."""
    masked = torch.rand(batch, block) < 0.5
    return torch.randint(9, (batch, block)), masked, ~masked, torch.full((batch,), 5, dtype=torch.int32)


def draft(batch: int, block: int) -> tuple[Tensor, Tensor]:
    return torch.randint(9, (batch, block)), torch.rand(batch, block, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_score_tokens(dtype: torch.dtype) -> None:
    logits, ids = torch.randn(6, 50).to(dtype), torch.full((6,), -1)
    work = roofline.score_tokens(6, 50, dtype.itemsize)
    assert_moves(work, (logits, ids), ops.score_tokens(logits, ids))
    assert work.exponentials == logits.numel()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_linear_score_tokens(dtype: torch.dtype) -> None:
    hidden, weight, ids = torch.randn(6, 8).to(dtype), torch.randn(50, 8).to(dtype), torch.full((6,), -1)
    work = roofline.linear_score_tokens(6, 8, 50, dtype.itemsize)
    assert_moves(work, (hidden, weight, ids), ops.linear_score_tokens(hidden, weight, ids))
    assert work.matrix == flops(lambda: F.linear(hidden, weight))


def flops(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def test_accept_remask() -> None:
    tokens, masked, revocable, last = state = block_state(3, 16)
    token_ids, confidence = draft(3, 16)
    results = ops.accept_remask_(tokens, masked, revocable, token_ids, confidence, last, **RULE)
    assert_moves(roofline.accept_remask_(3, 16), (*state, token_ids, confidence), (*state, *results))


def test_accept() -> None:
    tokens, masked, _, _ = block_state(3, 16)
    token_ids, confidence = draft(3, 16)
    results = ops.accept_(tokens, masked, token_ids, confidence, threshold=torch.tensor(0.5))
    assert_moves(roofline.accept_(3, 16), (tokens, masked, token_ids, confidence), (tokens, masked, *results))


def test_wino_step() -> None:
    """The logits and the state alone: nothing between scoring and the rule is counted."""
    state, logits = block_state(3, 16), torch.randn(3, 16, 40).bfloat16()
    results = ops.wino_step_(logits, *state, **RULE)
    assert_moves(roofline.wino_step_(3, 16, 40), (logits, *state), (*state, *results))


@pytest.mark.parametrize(("queries", "keys", "shadow"), [(12, 12, 4), (12, 12, 0), (5, 11, 3)])
def test_shadow_attention(queries: int, keys: int, shadow: int) -> None:
    query = torch.randn(2, 3, queries, 8).bfloat16()
    key, value = torch.randn(2, 2, 3, keys, 8).bfloat16()
    start = torch.full((2,), 1)
    output = ops.shadow_attention(query, key, value, num_shadow=shadow, block_start=start)
    work = roofline.shadow_attention(2, 3, queries, keys, shadow, 8)
    assert_moves(work, (query, key, value, start), (output,))
    pairs = 3 * int(visibility(queries, keys, shadow, start).sum())
    assert work.exponentials == pairs and work.matrix == 4 * 8 * pairs


def loss_inputs() -> tuple[Tensor, ...]:
    hidden, weight = torch.randn(6, 8).bfloat16(), torch.randn(50, 8).bfloat16()
    target = torch.arange(6) % 2 == 0
    return hidden, weight, torch.randint(50, (6,)), target, ~target, torch.tensor(0.6), torch.tensor(0.9)


def test_trajectory_loss() -> None:
    inputs = loss_inputs()
    work = roofline.trajectory_loss(6, 8, 50)
    assert_moves(work, inputs[:5], ops.trajectory_loss(*inputs))
    assert work.matrix == flops(lambda: F.linear(*inputs[:2]))


@pytest.mark.parametrize("weight_gradient", [False, True])
def test_trajectory_loss_backward(weight_gradient: bool) -> None:
    inputs, sums = loss_inputs(), torch.ones(3)
    work = roofline.trajectory_loss_backward(6, 8, 50, weight_gradient=weight_gradient)
    given = sums, *inputs[:3], ops.trajectory_loss(*inputs)[2]
    gradients = ops.trajectory_loss_backward(*given, weight_gradient)
    assert_moves(work, given, gradients)
    eager = flops(lambda: roofline.eager_loss_backward(*given, True))
    assert work.matrix == (eager if weight_gradient else eager * 2 // 3)


def test_roofline_is_the_slowest_resource() -> None:
    chip = roofline.Chip("chip", bandwidth=100.0, matrix=1000.0, vector=64.0, lanes=16)
    assert chip.exponentials == 32.0
    assert roofline.Work(read=150, written=50).roofline(chip) == (2.0, "memory")
    assert roofline.Work(100, 0, matrix=5000, vector=64).roofline(chip) == (5.0, "tensor cores")
    assert roofline.Work(100, 0, vector=640).roofline(chip) == (10.0, "float32")
    assert roofline.Work(100, 0, vector=64, exponentials=64).roofline(chip) == (2.0, "exponentials")


def test_eager_traffic_is_counted_kernel_by_kernel() -> None:
    logits = torch.randn(4, 100).bfloat16()  # a short row: its softmax reads it once
    rows, elements = 4, 400
    counted = roofline.traffic(lambda: roofline.published(logits))
    # argmax, conversion, softmax, gather of one element a row
    assert counted.kernels == 4 and counted.host_reads == 0
    assert counted.read == elements * (2 + 2 + 8) + rows * (8 + 8)
    assert counted.written == rows * 8 + elements * (8 + 8) + rows * 8

    long_rows = torch.empty(4, 1 << 16, device="meta")
    counted = roofline.traffic(lambda: F.softmax(long_rows, -1))
    assert counted.read == 3 * long_rows.nbytes and counted.written == long_rows.nbytes


def test_eager_traffic_counts_waiting_for_the_device() -> None:
    values, mask = torch.arange(4.0), torch.tensor([True, False, True, False])

    def waits() -> None:
        values[mask] = values[mask]
        values[mask] = 0.0  # fills in place: nobody needs to know how many there are
        int(values.sum())

    assert roofline.traffic(waits).host_reads == 3


def test_views_and_expanded_tensors_cost_what_is_behind_them() -> None:
    row = torch.empty(1, 1000)
    counted = roofline.traffic(lambda: row.expand(50, 1000).view(50, 10, 100))
    assert counted == (0, 0, 0, 0)
    assert roofline.traffic(lambda: row.expand(50, 1000) + 1).read == row.nbytes


def test_tables_have_every_operator_and_chip() -> None:
    found = roofline.rows()
    assert {row.operator for row in found} >= {name.rstrip("\n") for name in _operators()}
    text, eager = roofline.work_table(found), roofline.eager_table(found)
    for chip in roofline.CHIPS:
        assert chip.name in text
    for name in _operators():
        assert f"`{name}`" in text and f"`{name}`" in eager
    for row in found:
        assert row.work.moved > 0 and all(counted.moved > row.work.moved for counted in row.instead.values()), row


def _operators() -> list[str]:
    from wino_kernels import env_report

    return [*(set(env_report.OPERATORS) - {"shadow_trunk"}), "trajectory_loss_backward"]


def test_document_holds_the_computed_tables() -> None:
    """docs/kernels.md shows what `python benchmarks/roofline.py --write` writes."""
    document = written = roofline.DOCUMENT.read_text(encoding="utf-8")
    for name, text in roofline.sections_of(roofline.rows()).items():
        assert f"<!-- {name}: begin -->" in document
        written = tables.replace(written, name, text)
    assert written == document


def test_head_in_two_writes_and_reads_every_logit() -> None:
    rows, hidden, vocabulary = 128, 4096, 126464
    parts = roofline.head(rows, hidden, vocabulary), roofline.score_tokens(rows, vocabulary)
    fused = roofline.linear_score_tokens(rows, hidden, vocabulary)
    assert sum(part.moved for part in parts) - fused.moved == 2 * rows * vocabulary * 2
    assert parts[0].matrix == fused.matrix


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (32_400_000, "32.4 MB"), (1.04e9, "1.04 GB")]
)
def test_size(number: float, text: str) -> None:
    assert roofline.size(number) == text
