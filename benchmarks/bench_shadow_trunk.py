"""shadow_trunk and a layer's two other operators: against the same operations of the library, plain and compiled.

pytest benchmarks/bench_shadow_trunk.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from conftest import Limits, Table
from gpu_cases import Case, Contender, generator
from operators import CPU, bench
from published import masked_trunk
from roofline import Work, visible_pairs
from torch import Tensor

import wino_kernels
from wino_kernels import eager

ROUNDS = 12
EPS = 1e-5
BF16 = 2


class Shape(NamedTuple):
    """Of a trunk and what runs through it: L rows, the last of them the shadow block; the block before it leaves."""

    name: str
    layers: int
    width: int
    heads: int
    inner: int
    batch: int
    length: int
    shadow: int

    @property
    def linear(self) -> int:
        """Weights of a layer."""
        return 4 * self.width**2 + 3 * self.width * self.inner

    @property
    def before(self) -> int:
        return 3 * self.width**2


SHAPES = (
    Shape("wino-tiny", 6, 192, 6, 512, 1, 105, 44),
    Shape("wino-tiny", 6, 192, 6, 512, 16, 105, 44),
    Shape("4 x 256", 4, 256, 4, 1024, 1, 292, 64),
    Shape("12 x 512", 12, 512, 8, 2048, 1, 1184, 32),
)


class Layers(Case):
    """Inputs of a trunk, some of which a layer's operators take."""

    def __init__(self, shape: Shape, work: Work) -> None:
        self.shape = shape
        batch, length, width = shape.batch, shape.length, shape.width
        self.x = torch.empty(batch, length, width, dtype=torch.bfloat16)
        head_dim = width // shape.heads
        self.attended = torch.empty(batch, shape.heads, length, head_dim, dtype=torch.bfloat16)
        angles = torch.rand(1, 1, length, head_dim, generator=generator(CPU, 0)) * 6
        self.tables = angles.cos(), angles.sin()
        square, wide, tall = (width, width), (shape.inner, width), (width, shape.inner)
        sizes = (width,), square, square, square, square, (width,), wide, wide, tall
        self.weights = [torch.empty(size, dtype=torch.bfloat16) for _ in range(shape.layers) for size in sizes]
        self.rows = torch.arange(length - 2 * shape.shadow, length - shape.shadow).expand(batch, -1)
        self.start = torch.full((batch,), length - 2 * shape.shadow)
        super().__init__(f"{shape.name} B={batch} L={length} K={shape.shadow} bfloat16", work)

    def vary(self, seed: int) -> None:
        source = generator(CPU, seed)
        for tensor in (self.x, self.attended):
            tensor.normal_(generator=source)
        for weight in self.weights:
            weight.normal_(0, weight.shape[-1] ** -0.5, generator=source) if weight.dim() == 2 else weight.fill_(1)

    def run(self, operators: Any, wide: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Any:
        """This case's operator of ``operators``, on inputs that ``wide`` was applied to."""
        raise NotImplementedError

    def library(self) -> Any:
        """The same by operations of the library."""
        return self.run(eager)

    def call(self) -> tuple[Tensor, ...]:
        return _as_tuple(self.run(torch.ops.wino))

    def error(self, results: tuple[Tensor, ...]) -> str:
        """As near to float32's results as the library is in bfloat16."""
        exact, plain = _as_tuple(self.run(eager, Tensor.float)), _as_tuple(self.library())
        for ours, theirs, truth in zip(results, plain, exact, strict=True):
            error, allowed = (float((found.float() - truth).square().mean().sqrt()) for found in (ours, theirs))
            if not error <= 1.1 * allowed:
                return f"off by {error:.3g}, the library by {allowed:.3g}"
        return ""

    def contenders(self) -> dict[str, Contender]:
        return {"library": Contender(self.library), "torch.compile": Contender(self.library, compiled=True)}


def _as_tuple(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


class Before(Layers):
    operator = "norm_qkv_rope"

    def run(self, operators: Any, wide: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Any:
        return operators.norm_qkv_rope(*map(wide, (self.x, *self.weights[:4])), *self.tables, eps=EPS)


class After(Layers):
    operator = "out_norm_swiglu"

    def run(self, operators: Any, wide: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Any:
        return operators.out_norm_swiglu(*map(wide, (self.x, self.attended, *self.weights[4:9])), eps=EPS)


class Trunk(Layers):
    operator = "shadow_trunk"

    def run(self, operators: Any, wide: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Any:
        given = wide(self.x), [*map(wide, self.weights)], [], *self.tables, self.rows
        return operators.shadow_trunk(*given, num_shadow=self.shape.shadow, block_start=self.start, eps=EPS)

    def library(self) -> Any:
        """The last layer pruned as ours is, attention under a dense mask."""
        length, shadow = self.shape.length, self.shape.shadow
        trunk = masked_trunk(length, shadow, self.start)
        return trunk(self.x, self.weights, [], *self.tables, self.rows, shadow, self.start, EPS)


class PackedTrunk(Trunk):
    """As a decode calls it, whose steps share their weights."""

    def __init__(self, shape: Shape, work: Work) -> None:
        super().__init__(shape, work)
        self.label += ", packed once"

    def vary(self, seed: int) -> None:
        super().vary(seed)
        self.packed = wino_kernels.pack_trunk(self.weights)

    def call(self) -> tuple[Tensor, ...]:
        given = self.x, self.weights, [], *self.tables, self.rows
        about = {"num_shadow": self.shape.shadow, "block_start": self.start, "eps": EPS}
        return (torch.ops.wino.shadow_trunk(*given, **about, packed=self.packed),)

    def contenders(self) -> dict[str, Contender]:
        return {"packed in the call": Contender(super().call)}


def work_of(shape: Shape, kind: type[Layers]) -> Work:
    """Weights and rows read once, what leaves written once; the last layer's rows that do not leave do no work."""
    rows, side = shape.batch * shape.length, BF16 * shape.batch * shape.length * shape.width
    after = shape.linear - shape.before
    if kind is Before:
        return Work(read=BF16 * shape.before + side, written=3 * side, matrix=2 * rows * shape.before)
    if kind is After:
        return Work(read=BF16 * after + 2 * side, written=side, matrix=2 * rows * after)
    leaving, pairs = shape.batch * shape.shadow, visible_pairs(shape.length, shape.length, shape.shadow)
    whole = shape.layers * (2 * rows * shape.linear + 4 * shape.width * shape.batch * pairs)
    spared = 2 * (rows - leaving) * (after + shape.width**2)
    written = BF16 * leaving * shape.width
    return Work(read=BF16 * shape.layers * shape.linear + side, written=written, matrix=whole - spared)


@pytest.mark.parametrize("kind", [Before, After, Trunk])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.name} B={shape.batch}")
def test_layers(shape: Shape, kind: type[Layers], table: Table, limits: Limits) -> None:
    rounds = ROUNDS if shape.width < 512 else ROUNDS // 2
    bench(kind(shape, work_of(shape, kind)), table, limits, rounds=rounds, bars={"library": 1.0})


@pytest.mark.parametrize("shape", SHAPES[:3], ids=lambda shape: f"{shape.name} B={shape.batch}")
def test_packed_once(shape: Shape, table: Table, limits: Limits) -> None:
    bench(PackedTrunk(shape, work_of(shape, Trunk)), table, limits, rounds=ROUNDS, bars={"packed in the call": 1.0})
