"""shadow_attention: against a dense mask as published, and against attention of the same length without any mask.

pytest benchmarks/bench_shadow_attention.py
"""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from conftest import Limits, Table
from gpu_cases import ShadowAttention
from operators import CPU, bench

from wino_kernels.resources import LLADA

ROUNDS = 6
# LLaDA-8B and MMaDA-8B: 32 heads of 128. Prompt and generation, and the block whose shadow stands behind them.
SHAPES = [(384, 128), (1152, 32)]


@pytest.mark.parametrize(("outside", "block"), SHAPES)
def test_shadow_attention(outside: int, block: int, table: Table, limits: Limits) -> None:
    case = ShadowAttention(LLADA._replace(name="LLaDA-8B, MMaDA-8B"), 1, block, outside, CPU)
    name = "attention without a mask"
    plain = {name: lambda: F.scaled_dot_product_attention(*case.qkv)}
    bench(case, table, limits, rounds=ROUNDS, more=plain, bars={name: 0.8})
