"""shadow_attention against loops over single queries and keys in float64 (docs/spec.md sections 2 and 6)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernel_paths import over_paths
from torch import Tensor

import wino_kernels
from wino.benchmark import peak_extra
from wino_kernels import backends

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def brute_force(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_shadow: int,
    block_start: Tensor,
    key_padding_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    batch, heads, num_queries, width = query.shape
    num_keys, group = key.shape[2], heads // key.shape[1]
    output = torch.zeros(query.shape, dtype=torch.float64)
    factor = 1 / math.sqrt(width) if scale is None else scale
    for b in range(batch):
        for i in range(num_queries):
            j = i - (num_queries - num_shadow)  # number of the shadow query
            seen = []
            for k in range(num_keys):
                real = k < num_keys - num_shadow
                visible = real if j < 0 else not (real and k == int(block_start[b]) + j)
                if visible and (key_padding_mask is None or key_padding_mask[b, k]):
                    seen.append(k)
            if not seen:
                continue
            for h in range(heads):
                scores = key[b, h // group, seen].double() @ query[b, h, i].double() * factor
                weights = (scores - scores.max()).exp()
                output[b, h, i] = weights @ value[b, h // group, seen].double() / weights.sum()
    return output


def inputs(
    batch: int, heads: int, key_heads: int, queries: int, keys: int, width: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    query = torch.randn(batch, heads, queries, width)
    key, value = torch.randn(2, batch, key_heads, keys, width)
    return query.to(dtype), key.to(dtype), value.to(dtype)


def check(tensors: tuple[Tensor, Tensor, Tensor], **arguments: Any) -> Tensor:
    output = wino_kernels.shadow_attention(*tensors, **arguments)
    expected = brute_force(*tensors, **arguments)
    assert output.dtype == tensors[0].dtype and output.shape == tensors[0].shape
    tolerance = TOLERANCE[output.dtype]
    assert torch.allclose(output.double(), expected, rtol=tolerance, atol=tolerance)
    return output


@over_paths("shadow_attention")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", [1, 5, 32])
def test_against_loops(path: str, dtype: torch.dtype, width: int) -> None:
    for heads, key_heads in ((1, 1), (4, 2), (3, 1)):
        tensors = inputs(2, heads, key_heads, 13, 13, width, dtype)
        check(tensors, num_shadow=4, block_start=torch.tensor([0, 5]))


@over_paths("shadow_attention")
def test_fewer_queries_than_keys(path: str) -> None:
    """Cached keys and pruned rows: the shadow block stays last, real queries come first."""
    for queries in (3, 4, 7, 11):
        check(inputs(2, 4, 2, queries, 14, 8), num_shadow=3, block_start=torch.tensor([2, 8]))


@over_paths("shadow_attention")
def test_no_shadow_is_plain_attention(path: str) -> None:
    tensors = inputs(2, 4, 4, 9, 9, 16)
    output = check(tensors, num_shadow=0, block_start=torch.tensor([0, 3]))
    assert torch.allclose(output, F.scaled_dot_product_attention(*tensors), atol=2e-6)


@over_paths("shadow_attention")
def test_key_padding(path: str) -> None:
    """Left padding of different lengths; what padded keys and values hold does not matter."""
    tensors = inputs(3, 2, 1, 10, 10, 8)
    padding = torch.arange(10)[None, :] >= torch.tensor([0, 2, 3])[:, None]
    arguments = {"num_shadow": 3, "block_start": torch.tensor([1, 4, 4]), "key_padding_mask": padding}
    output = check(tensors, **arguments)
    for garbage in (math.nan, math.inf):
        for tensor in tensors[1:]:
            tensor.masked_fill_(~padding[:, None, :, None], garbage)
        assert torch.equal(wino_kernels.shadow_attention(*tensors, **arguments), output)


@over_paths("shadow_attention")
def test_a_query_that_sees_nothing_is_zero(path: str) -> None:
    tensors = inputs(2, 2, 2, 6, 6, 4)
    padding = torch.ones(2, 6, dtype=torch.bool)
    padding[1] = False
    output = check(tensors, num_shadow=2, block_start=torch.tensor([0, 1]), key_padding_mask=padding)
    assert (output[1] == 0).all() and (output[0] != 0).any()
    all_shadow = check(inputs(1, 1, 1, 3, 3, 4)[:3], num_shadow=3, block_start=torch.tensor([0]))
    assert (all_shadow != 0).all()
    alone = inputs(1, 1, 1, 2, 2, 4)
    only_own = torch.tensor([[True, False]])
    output = check(alone, num_shadow=1, block_start=torch.tensor([0]), key_padding_mask=only_own)
    assert (output[0, 0, 1] == 0).all()  # its one key is the token it verifies


@over_paths("shadow_attention")
@pytest.mark.parametrize(("dtype", "edge"), [(torch.float32, 32), (torch.bfloat16, 64)])
def test_tile_boundaries(path: str, dtype: torch.dtype, edge: int) -> None:
    """Lengths and hidden tokens on both sides of a multiple of a tile, and tokens that are not among the real keys."""
    for real, shadow in ((edge - 1, edge // 2), (edge + 1, edge // 2 - 1), (edge, edge)):
        inside = [0, edge // 2 - 1, edge // 2, real - shadow, real - 1]
        outside = [-1, real, 2**63 - 1, -(2**63)]
        starts = torch.tensor(inside + outside)
        tensors = inputs(len(starts), 1, 1, real + shadow, real + shadow, 8, dtype)
        check(tensors, num_shadow=shadow, block_start=starts)


@over_paths("shadow_attention")
@pytest.mark.parametrize(("queries", "shadow"), [(65, 0), (63, 63), (64, 64), (70, 69), (70, 3)])
def test_mostly_one_kind_of_query(path: str, queries: int, shadow: int) -> None:
    check(inputs(1, 2, 1, queries, 100, 4), num_shadow=shadow, block_start=torch.tensor([20]))


@over_paths("shadow_attention")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [64, 96, 128])
def test_widths_of_models(path: str, dtype: torch.dtype, width: int) -> None:
    check(inputs(1, 3, 1, 20, 41, width, dtype), num_shadow=9, block_start=torch.tensor([17]))


@over_paths("shadow_attention")
def test_ragged_batch(path: str) -> None:
    """Padding before, behind, between and everywhere, over several tiles; what stands there is never read."""
    keys, shadow = 75, 20
    padding = torch.ones(6, keys, dtype=torch.bool)
    padding[1, :37] = False
    padding[2, 40:55] = False  # the end of the real keys
    padding[3, 20:36] = padding[3, ::7] = False
    padding[4] = False
    padding[5, :55] = False  # every real key
    tensors = inputs(6, 2, 1, 60, keys, 8)
    for tensor in tensors[1:]:
        tensor.masked_fill_(~padding[:, None, :, None], math.nan)
    starts = torch.tensor([35, 36, 30, 16, 5, 35])
    output = check(tensors, num_shadow=shadow, block_start=starts, key_padding_mask=padding)
    assert (output[4] == 0).all() and (output[5, :, :40] == 0).all()


@over_paths("shadow_attention")
def test_scale(path: str) -> None:
    tensors = inputs(1, 2, 1, 7, 7, 4)
    for scale in (0.0, 1.0, 0.3):
        check(tensors, num_shadow=2, block_start=torch.tensor([3]), scale=scale)


@over_paths("shadow_attention")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_each_row_may_know(path: str, dtype: torch.dtype) -> None:
    """Real rows never notice the shadow block; shadow row j never notices token s + j, and notices every other."""
    real, shadow, start = 9, 4, 3
    query, key, value = inputs(1, 2, 2, real + shadow, real + shadow, 8, dtype)
    arguments = {"num_shadow": shadow, "block_start": torch.tensor([start])}
    output = wino_kernels.shadow_attention(query, key, value, **arguments)

    def changed_by(position: int) -> list[int]:
        other_key, other_value = key.clone(), value.clone()
        other_key[:, :, position] += 1.0
        other_value[:, :, position] = 3e38  # however small a weight, it would show
        other = wino_kernels.shadow_attention(query, other_key, other_value, **arguments)
        return [i for i in range(real + shadow) if not torch.equal(other[:, :, i], output[:, :, i])]

    every = list(range(real + shadow))
    for position in range(real):
        blind = real + position - start if start <= position < start + shadow else None
        assert changed_by(position) == [i for i in every if i != blind]
    for position in range(real, real + shadow):
        assert changed_by(position) == every[real:]


@over_paths("shadow_attention")
def test_strided_inputs(path: str) -> None:
    """(B, L, heads, d) projections seen as (B, heads, L, d), inside wider storage."""
    store = torch.full((2, 12, 3, 4, 10), math.nan)
    query, key, value = (store[:, :, part, :, 1:9].transpose(1, 2) for part in range(3))
    for tensor in (query, key, value):
        tensor.copy_(torch.randn(2, 4, 12, 8))
    check((query, key, value), num_shadow=3, block_start=torch.tensor([0, 6]))


@over_paths("shadow_attention")
def test_the_layout_its_fake_promises(path: str) -> None:
    """What torch.compile relies on: contiguous, whatever the strides of the query, few real queries or many."""
    for queries in (4, 8, 12):
        query, key, value = (x.transpose(1, 2) for x in inputs(2, 12, 12, 4, 4, 8))
        output = wino_kernels.shadow_attention(
            query[:, :, -queries:], key, value, num_shadow=4, block_start=torch.tensor([0, 6])
        )
        assert not query.is_contiguous() and output.is_contiguous()


@over_paths("shadow_attention")
def test_equal_blocks_and_equal_padding(path: str) -> None:
    """One block for all, padding that all share, and a padded key of the block itself: nothing special about them."""
    keys = torch.arange(21)
    for first, hole in (((3, 3), 21), ((4, 6), 21), ((2, 5), 9), ((17, 18), 21)):
        padding = (keys >= torch.tensor(first)[:, None]) & (keys != hole)
        for queries in (8, 19):
            tensors = inputs(2, 4, 2, queries, 21, 8)
            for tensor in tensors[1:]:
                tensor.masked_fill_(~padding[:, None, :, None], math.inf)
            check(tensors, num_shadow=4, block_start=torch.tensor([8, 8]), key_padding_mask=padding)


@over_paths("shadow_attention")
def test_long_padding(path: str) -> None:
    """Longer than a tile of any library: whole tiles of keys that a query does not see."""
    keys, shadow = 1300, 3
    padding = torch.arange(keys)[None, :] >= torch.tensor([0, 1290])[:, None]
    tensors = inputs(2, 1, 1, 5, keys, 4)
    for tensor in tensors[1:]:
        tensor.masked_fill_(~padding[:, None, :, None], math.nan)
    check(tensors, num_shadow=shadow, block_start=torch.tensor([700, 1292]), key_padding_mask=padding)
    check(
        (tensors[0][:, :, 2:], *tensors[1:]),
        num_shadow=shadow,
        block_start=torch.tensor([5, 5]),
        key_padding_mask=padding,
    )


@pytest.mark.parametrize("padded", [False, True])
def test_nothing_as_large_as_the_scores_on_the_cpu(padded: bool) -> None:
    keys = 6000
    query, key, value = inputs(1, 1, 1, keys, keys, 8)
    padding = torch.arange(keys)[None, :] >= 50 * padded
    start = torch.tensor([40])
    arguments = {"num_shadow": 20, "block_start": start, "key_padding_mask": padding}
    with backends.use_backend("cpu"):
        peak = peak_extra(lambda: wino_kernels.shadow_attention(query, key, value, **arguments))
    assert peak is None or peak < keys * keys * 4 / 10


@over_paths("shadow_attention")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_very_large_scores(path: str, dtype: torch.dtype) -> None:
    """One key far above the others takes everything, whatever a product of such numbers rounds to."""
    large = 196608.0
    query, key, value = torch.full((1, 1, 4, 64), large), torch.zeros(1, 1, 40, 64), torch.randn(1, 1, 40, 64)
    key[:, :, 7] = large
    tensors = (query.to(dtype), key.to(dtype), value.to(dtype))
    output = wino_kernels.shadow_attention(*tensors, num_shadow=0, block_start=torch.tensor([0]))
    assert torch.equal(output, tensors[2][:, :, 7:8].expand_as(output))


@over_paths("shadow_attention")
def test_empty(path: str) -> None:
    for batch, queries, keys in ((0, 3, 3), (2, 0, 4), (1, 2, 0)):
        output = wino_kernels.shadow_attention(
            *inputs(batch, 2, 2, queries, keys, 4), num_shadow=0, block_start=torch.zeros(batch, dtype=torch.int64)
        )
        assert output.shape == (batch, 2, queries, 4) and (output == 0).all()


@over_paths("shadow_attention")
def test_refuses_gradients(path: str) -> None:
    query, key, value = inputs(1, 1, 1, 4, 4, 4)
    arguments = {"num_shadow": 1, "block_start": torch.tensor([0])}
    value.requires_grad_()
    with pytest.raises(RuntimeError, match="not differentiable"):
        wino_kernels.shadow_attention(query, key, value, **arguments)
    with torch.no_grad():
        wino_kernels.shadow_attention(query, key, value, **arguments)
