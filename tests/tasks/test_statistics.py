"""Intervals and paired tests: published examples, hand-computed tables, coverage."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wino.tasks.statistics import (
    accuracy_interval,
    bootstrap_interval,
    mcnemar,
    paired_difference,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (29, 29, 0.8830, 1.0)],
)
def test_wilson_interval_of_published_examples(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe (1998), table I, method 3."""
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(n=st.integers(1, 3000), share=st.floats(0, 1))
def test_wilson_interval_holds_the_rate_and_is_symmetric(n: int, share: float) -> None:
    successes = round(n * share)
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= successes / n + 1e-12 and successes / n - 1e-12 <= high <= 1
    assert wilson_interval(n - successes, n) == pytest.approx((1 - high, 1 - low))


def test_paired_difference_of_a_hand_computed_table() -> None:
    """100 pairs, 7 won and 2 lost: adjusted shares 8/102 and 3/102."""
    ours = [True] * 7 + [False] * 2 + [True] * 60 + [False] * 31
    theirs = [False] * 7 + [True] * 2 + [True] * 60 + [False] * 31
    mean, low, high = paired_difference(ours, theirs)
    half = 1.959964 * math.sqrt((11 / 102 - (5 / 102) ** 2) / 102)
    assert mean == pytest.approx(0.05)
    assert (low, high) == pytest.approx((5 / 102 - half, 5 / 102 + half), abs=1e-6)
    assert paired_difference(theirs, ours)[1:] == pytest.approx((-high, -low))


def test_paired_difference_keeps_a_width_without_any_disagreement() -> None:
    mean, low, high = paired_difference([True] * 50, [True] * 50)
    assert mean == 0 and low < -0.01 and high > 0.01
    with pytest.raises(ValueError):
        paired_difference([True], [True, False])


@pytest.mark.parametrize(
    ("wins", "losses", "expected"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 2**5), (6, 1, 2 * (1 + 7) / 2**7), (3, 3, 1.0)],
)
def test_mcnemar_is_a_sign_test_of_the_discordant_pairs(wins: int, losses: int, expected: float) -> None:
    ours = [True] * wins + [False] * losses + [True] * 40 + [False] * 10
    theirs = [False] * wins + [True] * losses + [True] * 40 + [False] * 10
    assert mcnemar(ours, theirs) == pytest.approx(expected)
    assert mcnemar(theirs, ours) == pytest.approx(expected)
    with pytest.raises(ValueError):
        mcnemar([True], [])


def test_bootstrap_interval_is_near_the_normal_one_and_repeatable() -> None:
    rng = random.Random(0)
    values = [rng.gauss(5, 2) for _ in range(1000)]
    mean = sum(values) / 1000
    half = 1.96 * math.sqrt(sum((v - mean) ** 2 for v in values) / 1000) / math.sqrt(1000)
    low, high = bootstrap_interval(values)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.02)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(values, seed=1) != (low, high)


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = random.Random(1)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval([rng.random() < 0.7 for _ in range(150)], resamples=500)
        covered += low <= 0.7 <= high
    assert 178 <= covered <= 199


def test_degenerate_samples() -> None:
    assert bootstrap_interval([3, 3, 3]) == (3.0, 3.0)
    with pytest.raises(ValueError, match="values: expected at least one"):
        bootstrap_interval([])
    assert accuracy_interval([True] * 50) == wilson_interval(50, 50)
    assert accuracy_interval([False] * 50) == wilson_interval(0, 50)
    low, high = accuracy_interval([True] * 40 + [False] * 10)
    assert 0.65 < low < 0.75 and 0.85 < high < 0.95
