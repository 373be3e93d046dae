"""norm_qkv_rope against its definition in float64, and against the same operations one by one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from kernel_paths import ON_THE_CPU, over_paths
from layers import DTYPES, SHAPES, before_attention, by_library, check, in_wider_memory
from torch import Tensor

import wino_kernels
from wino_kernels.cpu import linear
from wino_kernels.eager.norm_qkv_rope import rms_norm
from wino_kernels.eager.norm_qkv_rope import rotate as rotated


def eager(**inputs: Any) -> tuple[Tensor, ...]:
    with wino_kernels.use_backend("eager"):
        return wino_kernels.norm_qkv_rope(**inputs)


@over_paths("norm_qkv_rope")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_float64(path: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    for biases in (False, True):
        check(wino_kernels.norm_qkv_rope, eager, before_attention(shape, dtype, biases, tables=shape[0]))


@over_paths("norm_qkv_rope")
def test_its_parts(path: str) -> None:
    """What the projections, norm and rotation are, written out for single rows and heads."""
    inputs = before_attention((1, 6, 16, 2, 1, 4, 0), torch.float64)
    query, key, value = wino_kernels.norm_qkv_rope(**inputs)
    for row in range(6):
        x = inputs["x"][0, row]
        normed = inputs["norm_weight"] * x / (x.square().mean() + inputs["eps"]).sqrt()
        assert torch.allclose(value[0, 0, row], inputs["v_weight"] @ normed)
        cos, sin = inputs["cos"][0, 0, row].double(), inputs["sin"][0, 0, row].double()
        for head, projected in ((query[0, 0], inputs["q_weight"][:4]), (query[0, 1], inputs["q_weight"][4:])):
            a, b, c, d = projected @ normed
            turned = torch.stack((-c, -d, a, b))
            assert torch.allclose(head[row], (projected @ normed) * cos + turned * sin)
        assert key.shape == (1, 1, 6, 4)


@over_paths("norm_qkv_rope")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 9, 64, 2, 2, 32, 0), (2, 9, 20, 3, 1, 10, 0)])
def test_rotation_in_the_dtype_of_x(path: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    inputs = before_attention(shape, dtype) | {"full_precision": False}
    (query, *_), (expected, *_) = wino_kernels.norm_qkv_rope(**inputs), eager(**inputs)
    same = (query == expected).double().mean()
    assert same > 0.9 if dtype == torch.bfloat16 else torch.allclose(query, expected, atol=1e-5)
    if dtype == torch.bfloat16:
        assert not torch.equal(expected, eager(**inputs | {"full_precision": True})[0])


@over_paths("norm_qkv_rope")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_some_rows_ask(path: str, dtype: torch.dtype) -> None:
    """Their queries are those of a call in which all ask; keys and values stay those of all."""
    inputs = before_attention((3, 80, 32, 2, 1, 16, 0), dtype, tables=3)
    every = wino_kernels.norm_qkv_rope(**inputs)
    near = {"rtol": 0, "atol": by_library(path, dtype)}  # the library's sums hang on the number of rows
    for number in (0, 1, 100):
        rows = torch.randint(0, 80, (3, number))
        query, key, value = wino_kernels.norm_qkv_rope(**inputs, query_rows=rows.T.contiguous().T)
        expected = every[0].gather(2, rows[:, None, :, None].expand(-1, 2, -1, 16))
        for one, other in zip((query, key, value), (expected, *every[1:]), strict=True):
            torch.testing.assert_close(one, other, **near)


@ON_THE_CPU
@over_paths("norm_qkv_rope")
@pytest.mark.parametrize("row", [-1, 5])
def test_refuses_a_row_that_is_not_there(path: str, row: int) -> None:
    inputs = before_attention((1, 5, 8, 1, 1, 8, 0), torch.float32)
    # Triton's tensors are a GPU's, where reading the rows would wait: there Torch's own check speaks.
    error, told = (RuntimeError, "index") if path == "triton" else (ValueError, rf"query_rows .* \[0, 5\), got {row}")
    with pytest.raises(error, match=told):
        wino_kernels.norm_qkv_rope(**inputs, query_rows=torch.tensor([[0, row]]))


@over_paths("norm_qkv_rope")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides(path: str, dtype: torch.dtype) -> None:
    inputs = before_attention((2, 9, 24, 2, 1, 12, 0), dtype, biases=True, tables=2)
    names = ("x", "q_weight", "k_weight", "v_weight", "cos", "sin")
    expected = wino_kernels.norm_qkv_rope(**inputs)
    moved = inputs | {"x": inputs["x"].transpose(0, 1).contiguous().transpose(0, 1)}
    near = {"rtol": 0, "atol": by_library(path, dtype)}  # the library's sums hang on the strides
    for changed in (in_wider_memory(inputs, *names), moved):
        for one, other in zip(wino_kernels.norm_qkv_rope(**changed), expected, strict=True):
            torch.testing.assert_close(one, other, **near)


@over_paths("norm_qkv_rope")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_others(path: str, dtype: torch.dtype) -> None:
    """Bit by bit the same alone and among others, and whatever those are."""
    inputs = before_attention((2, 100, 40, 2, 2, 20, 0), dtype, tables=2)
    tolerance = {"rtol": 0, "atol": by_library(path, dtype)}  # the library's sums hang on the number of rows
    inputs["x"][0, 50], inputs["x"][1, 3] = math.nan, math.inf
    together = wino_kernels.norm_qkv_rope(**inputs)
    for b, row in ((0, 0), (0, 49), (1, 99), (0, 50), (1, 3)):
        alone = dict(inputs)
        for name in ("x", "cos", "sin"):
            alone[name] = inputs[name][b : b + 1, ..., row : row + 1, :]
        for one, other in zip(wino_kernels.norm_qkv_rope(**alone), together, strict=True):
            torch.testing.assert_close(one[0, :, 0], other[b, :, row], equal_nan=True, **tolerance)
            assert one.isnan().all() == ((b, row) in ((0, 50), (1, 3)))


@over_paths("norm_qkv_rope")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neighbours_that_are_nearly_equal(path: str, dtype: torch.dtype) -> None:
    """Equal rows in a run may share their products; rows that differ in one number, wherever it stands, may not."""
    inputs = before_attention((1, 41, 40, 2, 2, 20, 0), dtype)
    inputs["x"][0, 1:] = inputs["x"][0, 0]
    for row in range(40):
        inputs["x"][0, row + 1, row] += 4.0
    tolerance = {"rtol": 0, "atol": by_library(path, dtype)}  # the library's sums hang on the number of rows
    together = wino_kernels.norm_qkv_rope(**inputs)
    for row in range(41):
        alone = inputs | {name: inputs[name][:, ..., row : row + 1, :] for name in ("x", "cos", "sin")}
        for one, other in zip(wino_kernels.norm_qkv_rope(**alone), together, strict=True):
            torch.testing.assert_close(one[0, :, 0], other[0, :, row], **tolerance)


def test_large_weights_take_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = before_attention((1, 9, 24, 2, 1, 12, 0), torch.float32)
    expected = eager(**inputs)
    monkeypatch.setattr(linear, "MOST_WEIGHT_BYTES", 100)
    for one, other in zip(wino_kernels.norm_qkv_rope(**inputs), expected, strict=True):
        assert torch.equal(one, other)


@over_paths("norm_qkv_rope")
def test_nothing_to_do(path: str) -> None:
    for batch, length in ((0, 3), (2, 0)):
        query, key, value = wino_kernels.norm_qkv_rope(
            **before_attention((batch, length, 8, 2, 1, 4, 0), torch.float32)
        )
        assert query.shape == (batch, 2, length, 4) and key.shape == value.shape == (batch, 1, length, 4)


@over_paths("norm_qkv_rope")
def test_refuses_gradients(path: str) -> None:
    inputs = before_attention((1, 3, 8, 1, 1, 8, 0), torch.float32)
    inputs["q_bias"] = torch.zeros(8)
    for name in ("k_weight", "q_bias"):
        inputs[name].requires_grad_()
        with pytest.raises(RuntimeError, match="not differentiable"):
            wino_kernels.norm_qkv_rope(**inputs)
        with torch.no_grad():
            wino_kernels.norm_qkv_rope(**inputs)
        inputs[name].requires_grad_(False)


def test_the_definition_is_lladas() -> None:
    """Norm and rotation of a bfloat16 row keep LLaDA's roundings: float32 inside, bfloat16 before the weight."""
    x, weight = torch.randn(5, 64).bfloat16(), torch.randn(64).bfloat16()
    wide = x.float()
    normed = (wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt()).bfloat16()
    assert (rms_norm(x, weight, 1e-5) == normed * weight).double().mean() > 0.98
    head, angle = torch.randn(1, 1, 1, 8).bfloat16(), torch.rand(1, 1, 1, 8)
    turned = torch.cat((-head[..., 4:], head[..., :4]), -1).float()
    expected = (head.float() * angle.cos() + turned * angle.sin()).bfloat16()
    assert torch.equal(rotated(head, angle.cos(), angle.sin(), True), expected)
