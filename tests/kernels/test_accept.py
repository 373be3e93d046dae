"""accept_ against the plain-list oracle of docs/spec.md section 4."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_paths import on_path, over_paths, paths, share
from torch import Tensor

import wino_kernels

MASK, NAN = 999, math.nan


def check(masked: Tensor, confidence: Tensor, threshold: object = None, count: object = None) -> Tensor:
    """Runs operator and oracle and compares; returns the statuses."""
    rows, width = masked.shape
    ids = torch.randint(0, 900, (rows, width))
    tokens = torch.where(masked, MASK, 7)
    state = tokens.clone(), masked.clone()
    accepted, status = wino_kernels.accept_(*state, ids, confidence, threshold=threshold, count=count)
    for row in range(rows):
        of_row = [v[row].item() if isinstance(v, Tensor) and v.dim() else v for v in (threshold, count)]
        of_row = [v.item() if isinstance(v, Tensor) else v for v in of_row]
        row_tokens, row_masked = tokens[row].tolist(), {int(i) for i in masked[row].nonzero()}
        expected = oracle.accept(row_tokens, row_masked, ids[row].tolist(), confidence[row].tolist(), *of_row)
        assert (accepted[row].item(), status[row].item()) == expected
        assert state[0][row].tolist() == row_tokens
        assert {int(i) for i in state[1][row].nonzero()} == row_masked
    assert accepted.dtype == status.dtype == torch.int32 and accepted.shape == status.shape == (rows,)
    return status


@over_paths("accept_")
@pytest.mark.parametrize("width", [1, 2, 31, 64, 128, 200])
def test_random_blocks(path: str, width: int) -> None:
    rows = 24 if share(path) == 1 else 3
    for ties in (1 << 20, 8):
        masked = torch.rand(rows, width) < torch.rand(rows, 1)
        confidence = (torch.rand(rows, width) * ties).round() / ties
        confidence[::5, width // 2] = NAN
        for threshold in (0.0, 0.5, 0.99, 1.0, torch.tensor(0.5), torch.rand(rows)):
            check(masked, confidence, threshold=threshold)
        counts = torch.randint(-1, width + 2, (rows,))
        for count in (0, 1, width // 2, width, width + 9, 10**12, torch.tensor(2), counts, counts.int()):
            check(masked, confidence, count=count)


@over_paths("accept_")
def test_what_float32_takes_for_equal_is_ranked(path: str) -> None:
    """Float64 confidences that differ by less than a float32 does; thresholds do not part them."""
    rows, width = (24, 64) if share(path) == 1 else (2, 24)
    for center in (1.0, 0.75, 1e-30):
        below = torch.rand(rows, width, dtype=torch.float64) * 10.0 ** -torch.randint(8, 17, (rows, width)).double()
        confidence = center - below * center
        masked = torch.rand(rows, width) < 0.7
        assert (confidence.float() == center).all()
        for count in (1, 5, width // 2):
            check(masked, confidence, count=count)
        reached = torch.tensor(center)
        for threshold in (reached, reached.nextafter(torch.tensor(9.0))):
            check(masked, confidence, threshold=threshold)


@over_paths("accept_")
@pytest.mark.parametrize("edge", [0.0, 1e-45, 0.5, 0.7, 1.0, -0.3, math.inf, -math.inf])
def test_confidences_are_compared_as_float32(path: str, edge: float) -> None:
    t = torch.tensor(edge, dtype=torch.float32)
    sides = [t.nextafter(torch.tensor(direction)).double() for direction in (-math.inf, math.inf)]
    halves = [(t.double() + side) / 2 for side in sides if side.isfinite() and t.isfinite()]
    beside = [half.nextafter(torch.tensor(d).double()) for half in halves for d in (-math.inf, math.inf)]
    values = torch.stack([t.double(), *sides, *halves, *beside])
    for confidence in (values, values.flip(0)):
        check(torch.ones(1, len(values), dtype=torch.bool), confidence[None], threshold=t)


@over_paths("accept_")
@pytest.mark.parametrize("width", [3, 100, 1000, 1024])
def test_lengths_of_blocks(path: str, width: int) -> None:
    masked, confidence = torch.rand(3, width) < 0.7, torch.rand(3, width)
    confidence[1] = 0.5
    check(masked, confidence, threshold=0.9)
    check(masked, confidence, count=width // 3)
    check(masked, confidence, count=torch.tensor([0, width // 2, width]))


@over_paths("accept_")
def test_statuses(path: str) -> None:
    masked = torch.tensor([[True, True], [True, False], [False, False], [True, False], [False, True]])
    confidence = torch.tensor([[0.9, 0.1], [0.1, NAN], [NAN, NAN], [NAN, 0.9], [0.0, 0.0]])
    assert check(masked, confidence, threshold=0.5).tolist() == [0, 1, 1, 2, 1]
    assert check(masked, confidence, count=0).tolist() == [0, 0, 1, 2, 0]


@over_paths("accept_")
def test_at_least_the_threshold(path: str) -> None:
    for value in (0.1, 0.6, 0.7):
        at = torch.tensor(value)
        confidence = torch.stack([torch.nextafter(at, torch.tensor(0.0)), at, torch.nextafter(at, torch.tensor(1.0))])
        masked = torch.ones(1, 3, dtype=torch.bool)
        tokens = torch.full((1, 3), MASK)
        wino_kernels.accept_(tokens, masked, torch.zeros_like(tokens), confidence[None], threshold=value)
        assert masked.tolist() == [[True, False, False]]


@over_paths("accept_")
def test_nan_thresholds(path: str) -> None:
    """No confidence reaches NaN, whichever its sign: the largest one is accepted."""
    masked, confidence = torch.rand(8, 20) < 0.5, torch.rand(8, 20)
    for threshold in (torch.tensor(NAN), torch.tensor(-NAN), torch.tensor([NAN, -NAN, 0.5, 0.9]).repeat(2)):
        check(masked, confidence, threshold=threshold)


@over_paths("accept_")
def test_strided_state(path: str) -> None:
    rows, width = 5, 33
    wide_tokens = torch.full((rows + 2, width + 10), -77)
    wide_masked = torch.ones(rows + 2, width + 10, dtype=torch.bool)
    tokens, masked = wide_tokens[1:-1, 4 : 4 + width], wide_masked[1:-1, 4 : 4 + width]
    tokens.copy_(torch.randint(0, 900, (rows, width)))
    masked.copy_(torch.rand(rows, width) < 0.5)
    dense = tokens.clone(), masked.clone()
    ids, confidence = torch.randint(0, 900, (width, rows)).T, torch.rand(width, rows).T
    views = wino_kernels.accept_(tokens, masked, ids, confidence, threshold=0.4)
    copies = wino_kernels.accept_(*dense, ids, confidence, threshold=0.4)
    assert all(torch.equal(a, b) for a, b in zip(views, copies, strict=True))
    assert torch.equal(tokens, dense[0]) and torch.equal(masked, dense[1])
    window = torch.zeros_like(wide_masked)
    window[1:-1, 4 : 4 + width] = True
    assert (wide_tokens[~window] == -77).all() and wide_masked[~window].all()


@over_paths("accept_")
def test_empty_batches_and_blocks(path: str) -> None:
    for rows, width in ((0, 4), (3, 0)):
        masked = torch.ones(rows, width, dtype=torch.bool)
        assert check(masked, torch.zeros(rows, width), threshold=0.5).tolist() == [1] * rows
        assert check(masked, torch.zeros(rows, width), count=3).tolist() == [1] * rows


@pytest.mark.parametrize("path", paths("accept_"))
@settings(max_examples=150)
@given(data=st.data())
def test_any_block(path: str, data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 12))
    row = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.5, 0.75, 1.0, NAN]), min_size=width, max_size=width)
    confidence = torch.tensor(data.draw(st.lists(row, min_size=1, max_size=3)))
    masked = torch.tensor([[data.draw(st.booleans()) for _ in range(width)] for _ in confidence])
    if data.draw(st.booleans()):
        confidence = confidence.nan_to_num(0.5)
    with on_path(path):
        if data.draw(st.booleans()):
            check(masked, confidence, threshold=data.draw(st.sampled_from([0.0, 0.3, 0.5, 0.75, 1.0])))
        else:
            check(masked, confidence, count=data.draw(st.integers(0, width + 1)))
