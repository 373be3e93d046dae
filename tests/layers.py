"""Inputs of the operators of a transformer layer, and how near to float64 their results must be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

EPS = 1e-5
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

#: (B, L, D, heads, key heads, d, M): even and odd sizes, heads narrower and wider than a panel of any instruction set,
#: more rows than a task takes.
SHAPES = (
    (1, 1, 8, 1, 1, 8, 8),
    (2, 5, 33, 3, 1, 22, 37),
    (3, 77, 64, 4, 2, 16, 100),
    (1, 40, 128, 1, 1, 128, 64),
    (2, 150, 48, 2, 1, 64, 130),
)

Inputs = dict[str, Any]


def by_library(path: str, dtype: torch.dtype) -> float:
    """How far two calls may be apart where a path's products are Torch's own: their sums hang on rows and strides."""
    if path not in ("eager", "triton"):
        return 0.0
    return 1e-4 if dtype == torch.float32 else 0.1


def random_weight(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(rows, columns) * columns**-0.5).to(dtype)


def before_attention(shape: Sequence[int], dtype: torch.dtype, biases: bool = False, tables: int = 1) -> Inputs:
    """Arguments of norm_qkv_rope."""
    batch, length, width, heads, key_heads, head_dim, _ = shape
    angles = torch.rand(tables, 1, length, head_dim) * 2 * math.pi
    rows = {"q": heads * head_dim, "k": key_heads * head_dim, "v": key_heads * head_dim}
    inputs: Inputs = {
        "x": torch.randn(batch, length, width).to(dtype),
        "norm_weight": (1 + 0.1 * torch.randn(width)).to(dtype),
        **{f"{name}_weight": random_weight(n, width, dtype) for name, n in rows.items()},
        "cos": angles.cos(),
        "sin": angles.sin(),
        "eps": EPS,
    }
    if biases:
        inputs |= {f"{name}_bias": torch.randn(n).to(dtype) for name, n in rows.items()}
    return inputs


def after_attention(shape: Sequence[int], dtype: torch.dtype, biases: bool = False) -> Inputs:
    """Arguments of out_norm_swiglu."""
    batch, length, width, heads, _, head_dim, inner = shape
    sizes = {"out": (width, heads * head_dim), "gate": (inner, width), "up": (inner, width), "down": (width, inner)}
    inputs: Inputs = {
        "x": torch.randn(batch, length, width).to(dtype),
        "attended": torch.randn(batch, heads, length, head_dim).to(dtype),
        "norm_weight": (1 + 0.1 * torch.randn(width)).to(dtype),
        **{f"{name}_weight": random_weight(*size, dtype) for name, size in sizes.items()},
        "eps": EPS,
    }
    if biases:
        inputs |= {f"{name}_bias": torch.randn(size[0]).to(dtype) for name, size in sizes.items()}
    return inputs


def trunk(
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    number: int = 3,
    *,
    biases: bool = False,
    padded: bool = False,
    shadow: int = 6,
) -> Inputs:
    """Arguments of shadow_trunk."""
    batch, length, width, heads, key_heads, head_dim, inner = shape
    queries, keys = heads * head_dim, key_heads * head_dim
    sizes = [(queries, width), (keys, width), (keys, width), (width, queries), (inner, width), (inner, width)]
    sizes.append((width, inner))
    weights: list[Tensor] = []
    for _ in range(number):
        norms = [(1 + 0.1 * torch.randn(width)).to(dtype) for _ in range(2)]
        linears = [random_weight(*size, dtype) for size in sizes]
        weights += [norms[0], *linears[:4], norms[1], *linears[4:]]
    given = before_attention(shape, dtype, tables=batch)
    padding = torch.arange(length) >= torch.arange(batch)[:, None] * 2
    return {
        "x": given["x"],
        "weights": weights,
        "biases": [torch.randn(size[0]).to(dtype) if biases else None for _ in range(number) for size in sizes],
        "cos": given["cos"],
        "sin": given["sin"],
        "rows": torch.randint(0, length, (batch, 7)),
        "num_shadow": shadow,
        "block_start": torch.randint(0, length - shadow, (batch,)),
        "eps": EPS,
        "key_padding_mask": padding if padded else None,
        "norm_weight": torch.randn(width).to(dtype),
    }


def widened(inputs: Inputs) -> Inputs:
    """The same numbers in float64; rotary tables stay float32, as the operator wants them."""
    return {
        name: value.double() if isinstance(value, Tensor) and name not in ("cos", "sin", "query_rows") else value
        for name, value in inputs.items()
    }


def in_wider_memory(inputs: Inputs, *names: str) -> Inputs:
    """Rows one number further apart than they are long, beginning at an odd number; NaN between them."""
    changed = dict(inputs)
    for name in names:
        tensor = inputs[name]
        store = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] + 3), math.nan)
        changed[name] = store[..., 1:-2].copy_(tensor)
    return changed


def check(operator: Callable[..., Any], eager: Callable[..., Any], inputs: Inputs) -> tuple[Tensor, ...]:
    """Each result is about as near to float64 as separate operations in its dtype, and nearly always equal to theirs.

    ``eager``: the definition, from which the operator differs only in the order of sums. Where such a sum lies between
    two numbers of a 16-bit dtype the two may round apart, and what follows from it a little further.
    """
    found, plain, exact = (
        _as_tuple(f(**i)) for f, i in ((operator, inputs), (eager, inputs), (eager, widened(inputs)))
    )
    for ours, theirs, truth in zip(found, plain, exact, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        error, allowed = (ours.double() - truth).abs(), (theirs.double() - truth).abs()
        if ours.dtype in (torch.float32, torch.float64):
            assert error.max() <= max(4 * allowed.max(), 1e-5 if ours.dtype == torch.float32 else 1e-12)
            continue
        assert error.square().mean().sqrt() <= 1.05 * allowed.square().mean().sqrt() + 1e-4
        assert error.max() <= 1.5 * allowed.max() + 0.01
        assert ours.numel() < 1000 or (ours == theirs).double().mean() > 0.9
    return found


def _as_tuple(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)
