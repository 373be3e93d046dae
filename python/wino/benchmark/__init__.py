"""Measure decodes: the published loop beside ours, in interleaved rounds, with phases, memory and random models.

``published`` is the baseline, ``models`` makes what is decoded, ``measure`` decodes it, ``timing`` and ``memory`` are
its clock and its scale. ``wino bench`` and ``benchmarks/`` are made of these.
"""

from __future__ import annotations

from .measure import PUBLISHED, Comparison, Figures, Measured, Workload, calls, compare, measure
from .memory import peak_extra
from .models import Calibrated, Trunk, peaked_model, random_model, random_prompts
from .timing import PHASES, Clock, Ratio, interleaved, ratio

__all__ = [
    "PHASES",
    "PUBLISHED",
    "Calibrated",
    "Clock",
    "Comparison",
    "Figures",
    "Measured",
    "Ratio",
    "Trunk",
    "Workload",
    "calls",
    "compare",
    "interleaved",
    "measure",
    "peak_extra",
    "peaked_model",
    "random_model",
    "random_prompts",
    "ratio",
]
