"""The limit on how many tokens a step accepts, as every backend takes it."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache


@lru_cache(maxsize=64)
def exact_fraction(value: float) -> tuple[int, int]:
    """Numerator and denominator of the decimal that ``value`` was written as: 0.7 is 7/10, not the float next to it."""
    fraction = Fraction(repr(float(value))).limit_denominator(10**6)
    return fraction.numerator, fraction.denominator
