"""Intervals and tests for figures measured item by item."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

_Z95 = NormalDist().inv_cdf(0.975)


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion."""
    rate, z2 = successes / n, _Z95**2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_difference(ours: Sequence[bool], theirs: Sequence[bool]) -> tuple[float, float, float]:
    """Mean of ours - theirs over the same items, and its 95 % interval.

    The interval is Bonett and Price's (2012): Wald's after one more discordant pair either way, so that it keeps a
    width when the two agree on every item.
    """
    pairs = list(zip(ours, theirs, strict=True))
    n, wins, losses = len(pairs), sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    won, lost = (wins + 1) / (n + 2), (losses + 1) / (n + 2)
    half = _Z95 * math.sqrt((won + lost - (won - lost) ** 2) / (n + 2))
    return (wins - losses) / n, max(-1.0, won - lost - half), min(1.0, won - lost + half)


def mcnemar(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """Two-sided p-value of the exact McNemar test: are the two right equally often on the same items?

    Needs scipy (``pip install 'wino-kernels[eval]'``).
    """
    from scipy.stats import binomtest

    pairs = list(zip(ours, theirs, strict=True))
    wins, losses = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def bootstrap_interval(values: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of ``values``; (mean, mean) where all are equal.

    Needs scipy (``pip install 'wino-kernels[eval]'``).
    """
    import numpy as np
    from scipy.stats import bootstrap

    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise ValueError("values: expected at least one, got none")
    if (array == array[0]).all():
        return float(array[0]), float(array[0])
    found = bootstrap(
        (array,),
        np.mean,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
        batch=max(1, 2_000_000 // len(array)),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def accuracy_interval(correct: Sequence[bool]) -> tuple[float, float]:
    """95 % bootstrap interval of an accuracy; Wilson's where all answers agree and a bootstrap would have no width."""
    right = sum(correct)
    return wilson_interval(right, len(correct)) if right in (0, len(correct)) else bootstrap_interval(correct)
