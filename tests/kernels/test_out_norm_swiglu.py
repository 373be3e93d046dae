"""out_norm_swiglu against its definition in float64, and against the same operations one by one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from kernel_paths import over_paths
from layers import DTYPES, SHAPES, after_attention, by_library, check, in_wider_memory
from torch import Tensor

import wino_kernels
from wino_kernels.cpu import linear


def eager(**inputs: Any) -> Tensor:
    with wino_kernels.use_backend("eager"):
        return wino_kernels.out_norm_swiglu(**inputs)


@over_paths("out_norm_swiglu")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_float64(path: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    for biases in (False, True):
        check(wino_kernels.out_norm_swiglu, eager, after_attention(shape, dtype, biases))


@over_paths("out_norm_swiglu")
def test_its_parts(path: str) -> None:
    """What the residuals, the norm and the gated MLP are, written out for single rows."""
    inputs = after_attention((2, 3, 8, 2, 1, 4, 6), torch.float64)
    result = wino_kernels.out_norm_swiglu(**inputs)
    for b in range(2):
        for row in range(3):
            attended = torch.cat([inputs["attended"][b, head, row] for head in range(2)])
            y = inputs["x"][b, row] + inputs["out_weight"] @ attended
            normed = inputs["norm_weight"] * y / (y.square().mean() + inputs["eps"]).sqrt()
            gate = inputs["gate_weight"] @ normed
            inner = gate / (1 + (-gate).exp()) * (inputs["up_weight"] @ normed)
            assert torch.allclose(result[b, row], y + inputs["down_weight"] @ inner)


@over_paths("out_norm_swiglu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides(path: str, dtype: torch.dtype) -> None:
    inputs = after_attention((2, 9, 24, 2, 1, 12, 20), dtype, biases=True)
    names = ("x", "attended", "out_weight", "gate_weight", "up_weight", "down_weight")
    expected = wino_kernels.out_norm_swiglu(**inputs)
    moved = inputs | {
        "attended": inputs["attended"].transpose(1, 2).contiguous().transpose(1, 2),
        "x": inputs["x"].transpose(0, 1).contiguous().transpose(0, 1),
    }
    near = {"rtol": 0, "atol": by_library(path, dtype)}  # the library's sums hang on the strides
    for changed in (in_wider_memory(inputs, *names), moved):
        found = wino_kernels.out_norm_swiglu(**changed)
        torch.testing.assert_close(found, expected, **near)
        assert found.is_contiguous()


@over_paths("out_norm_swiglu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_gates(path: str, dtype: torch.dtype) -> None:
    """silu far from zero: 0 on the left, the identity on the right; infinities and NaN as in the definition."""
    inputs = after_attention((1, 1, 2, 1, 1, 2, 9), dtype)
    inputs["x"], inputs["out_weight"] = torch.ones(1, 1, 2).to(dtype), torch.zeros(2, 2).to(dtype)
    gates = [0.0, -1e-20, -20.0, -87.0, -1e4, 50.0, 1e4, 1e30, -1e30]
    inputs["gate_weight"] = torch.tensor([[gate, 0.0] for gate in gates]).to(dtype)
    inputs["up_weight"] = torch.tensor([[1.0, 0.0]] * 9).to(dtype)
    for kept in range(9):  # one inner number at a time
        inputs["down_weight"] = torch.zeros(2, 9).to(dtype)
        inputs["down_weight"][0, kept] = 1.0
        result, expected = wino_kernels.out_norm_swiglu(**inputs), eager(**inputs)
        assert torch.allclose(result, expected, rtol=2.0**-7 if dtype == torch.bfloat16 else 1e-5), gates[kept]
    inputs["gate_weight"][0, 0] = math.nan
    inputs["down_weight"][0, 0] = 1.0
    result = wino_kernels.out_norm_swiglu(**inputs)
    assert result[0, 0, 0].isnan() and not result[0, 0, 1].isinf()


@over_paths("out_norm_swiglu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_others(path: str, dtype: torch.dtype) -> None:
    """Bit by bit the same alone and among others, and whatever those are."""
    tolerance = {"rtol": 0, "atol": by_library(path, dtype)}  # the library's sums hang on the number of rows
    inputs = after_attention((2, 100, 40, 2, 2, 20, 50), dtype)
    inputs["x"][0, 50], inputs["attended"][1, :, 3] = math.nan, math.inf
    together = wino_kernels.out_norm_swiglu(**inputs)
    for b, row in ((0, 0), (0, 49), (1, 99), (0, 50), (1, 3)):
        alone = inputs | {name: inputs[name][b : b + 1, ..., row : row + 1, :] for name in ("x", "attended")}
        found = wino_kernels.out_norm_swiglu(**alone)[0, 0]
        torch.testing.assert_close(found, together[b, row], equal_nan=True, **tolerance)
        assert found.isfinite().all() == ((b, row) not in ((0, 50), (1, 3)))


def test_large_weights_take_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = after_attention((1, 9, 24, 2, 1, 12, 20), torch.float32)
    expected = eager(**inputs)
    monkeypatch.setattr(linear, "MOST_WEIGHT_BYTES", 100)
    assert torch.equal(wino_kernels.out_norm_swiglu(**inputs), expected)


@over_paths("out_norm_swiglu")
def test_nothing_to_do(path: str) -> None:
    for batch, length in ((0, 3), (2, 0)):
        result = wino_kernels.out_norm_swiglu(**after_attention((batch, length, 8, 2, 1, 4, 6), torch.float32))
        assert result.shape == (batch, length, 8)


@over_paths("out_norm_swiglu")
def test_refuses_gradients(path: str) -> None:
    inputs = after_attention((1, 3, 8, 1, 1, 8, 4), torch.float32)
    inputs["x"].requires_grad_()
    with pytest.raises(RuntimeError, match="not differentiable"):
        wino_kernels.out_norm_swiglu(**inputs)
    with torch.no_grad():
        wino_kernels.out_norm_swiglu(**inputs)
