"""shadow_trunk against its definition in float64, and against its three operators called one by one."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from kernel_paths import ON_THE_CPU, interpreted, over_compiled_paths, over_paths
from layers import EPS, by_library, trunk
from torch import Tensor

import wino_kernels
from wino_kernels import _C, backends
from wino_kernels.cpu import linear
from wino_kernels.eager.shadow_trunk import asking

native = importlib.import_module("wino_kernels.cpu.shadow_trunk")  # the package has the function under that name
needs_exchange = pytest.mark.skipif(not native.HAS_EXCHANGE, reason="this torch publishes no exchange API")
OF_EACH_SEQUENCE = ("x", "cos", "sin", "rows", "block_start", "key_padding_mask")
#: (B, L, D, heads, key heads, d, M)
SHAPES = ((2, 19, 24, 3, 1, 8, 20), (3, 90, 64, 2, 2, 32, 100), (1, 40, 33, 1, 1, 22, 37))


def widened(inputs: dict[str, Any]) -> dict[str, Any]:
    def wide(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    changed = {name: [*map(wide, value)] if isinstance(value, list) else wide(value) for name, value in inputs.items()}
    return changed | {"cos": inputs["cos"], "sin": inputs["sin"]}


def eager(inputs: dict[str, Any]) -> Tensor:
    with wino_kernels.use_backend("eager"):
        return wino_kernels.shadow_trunk(**inputs)


@over_paths("shadow_trunk")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_float64(path: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    every = ({}, {"biases": True, "padded": True}, {"shadow": 0}, {"number": 1})
    if interpreted(path):  # a layer of twenty rows takes seconds
        shape, every = (*shape[:1], 19, *shape[2:]), ({"number": 2, "biases": True, "padded": True},)
    # GPU attention rounds its weights before it multiplies them with the values, as all kernels of its kind do.
    more, draws = (2.0 if path == "triton" else 1.3), (1 if interpreted(path) else 8)
    for options in every:
        squares = torch.zeros(2, dtype=torch.float64)  # of several draws: by chance one of a few rows is far off
        for _ in range(draws):
            inputs = trunk(shape, dtype, **options)
            exact = eager(widened(inputs))
            found, plain = wino_kernels.shadow_trunk(**inputs), eager(inputs)
            assert found.dtype == dtype and found.shape == exact.shape and found.is_contiguous()
            squares += torch.stack([(result.double() - exact).square().mean() for result in (found, plain)])
        error, allowed = (squares / draws).sqrt()
        assert error <= (more * allowed + 1e-3 if dtype in (torch.bfloat16, torch.float16) else 1e-4)


@over_paths("shadow_trunk")
def test_is_its_operators_one_by_one(path: str) -> None:
    inputs = trunk(SHAPES[0], number=2, biases=True, padded=True)
    x, rows, shadow, weights, biases = (inputs[name] for name in ("x", "rows", "num_shadow", "weights", "biases"))
    queries, answers = asking(rows, x.shape[1], shadow)
    for layer, asked in ((0, None), (1, queries)):
        norm, q, k, v, out, inner_norm, gate, up, down = weights[9 * layer : 9 * layer + 9]
        own = biases[7 * layer : 7 * layer + 7]
        names = ("q_bias", "k_bias", "v_bias")
        query, key, value = wino_kernels.norm_qkv_rope(
            *(x, norm, q, k, v, inputs["cos"], inputs["sin"]),
            eps=EPS,
            query_rows=asked,
            **dict(zip(names, own[:3], strict=True)),
        )
        attended = wino_kernels.shadow_attention(
            *(query, key, value),
            num_shadow=shadow,
            block_start=inputs["block_start"],
            key_padding_mask=inputs["key_padding_mask"],
        )
        if asked is not None:
            x = x.gather(1, rows[:, :, None].expand(-1, -1, x.shape[2]))
            attended = attended.gather(2, answers[:, None, :, None].expand(-1, 3, -1, 8))
        names = ("out_bias", "gate_bias", "up_bias", "down_bias")
        x = wino_kernels.out_norm_swiglu(
            *(x, attended, out, inner_norm, gate, up, down), eps=EPS, **dict(zip(names, own[3:], strict=True))
        )
    torch.testing.assert_close(wino_kernels.shadow_trunk(**inputs | {"norm_weight": None}), x, rtol=1e-5, atol=1e-5)


@over_paths("shadow_trunk")
def test_rows_leave_in_their_order(path: str) -> None:
    """Real and shadow rows mixed, some twice, more than there are, none."""
    inputs = trunk(SHAPES[0])
    every = wino_kernels.shadow_trunk(**inputs | {"rows": torch.arange(19).expand(2, -1)})
    for rows in (
        torch.tensor([[18, 0, 13, 12, 0], [3, 17, 2, 1, 18]]),
        torch.randint(0, 19, (2, 50)),
        torch.zeros(2, 0),
    ):
        found = wino_kernels.shadow_trunk(**inputs | {"rows": rows.long().T.contiguous().T})
        expected = every.gather(1, rows.long()[:, :, None].expand(-1, -1, 24))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@over_compiled_paths("shadow_trunk")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_rows(path: str, dtype: torch.dtype) -> None:
    """Few tokens many times over, as masks are, in runs and scattered, across the bounds of tasks and sequences; rows
    that only begin alike: what each row alone would be."""
    inputs = trunk((2, 200, 24, 3, 1, 8, 20), dtype, shadow=60)
    inputs["x"][:, 20:120] = inputs["x"][0, 20]
    inputs["x"][:, 140:] = inputs["x"][0, 20]
    inputs["x"][1, :5] = inputs["x"][0, -1]
    inputs["x"][:, 0:20:3], inputs["x"][:, 1:20:3] = inputs["x"][0, -1], inputs["x"][0, 2]
    inputs["x"][:, 121:140:2, :8] = inputs["x"][0, 20, :8]
    found, exact = wino_kernels.shadow_trunk(**inputs), eager(widened(inputs))
    assert (found.double() - exact).abs().max() < (0.2 if dtype == torch.bfloat16 else 1e-4)


@over_paths("shadow_trunk")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides(path: str, dtype: torch.dtype) -> None:
    """Part of a longer layout, as a step without its shadow block is; tables of one sequence for all."""
    inputs = trunk((2, 30, 24, 3, 1, 8, 20), dtype, shadow=0)
    for name, dim in (("x", 1), ("cos", 2), ("sin", 2)):
        longer = torch.full_like(inputs[name], math.nan)
        inputs[name] = torch.cat((inputs[name], longer), dim).narrow(dim, 0, 30)
    inputs["cos"], inputs["sin"] = inputs["cos"][:1], inputs["sin"][:1]
    found = wino_kernels.shadow_trunk(**inputs)
    dense = {name: inputs[name].contiguous() for name in ("x", "cos", "sin")}
    tolerance = {"rtol": 0, "atol": by_library(path, dtype)}  # the library's sums hang on the strides
    torch.testing.assert_close(found, wino_kernels.shadow_trunk(**inputs | dense), **tolerance)


@over_compiled_paths("shadow_trunk")
def test_a_sequence_does_not_depend_on_the_others(path: str) -> None:
    tolerance = {"rtol": 0, "atol": by_library(path, torch.bfloat16)}  # the library's sums hang on the number of rows
    inputs = trunk(SHAPES[1], torch.bfloat16, padded=True)
    together = wino_kernels.shadow_trunk(**inputs)
    for b in range(3):
        alone = inputs | {name: inputs[name][b : b + 1] for name in OF_EACH_SEQUENCE}
        torch.testing.assert_close(wino_kernels.shadow_trunk(**alone)[0], together[b], **tolerance)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("batch", [2, 5, 13])
def test_groups_of_sequences_and_threads_change_nothing(batch: int, threads: int) -> None:
    """Sequences go through the layers in groups, each as soon as it may: more threads than cores, unequal groups."""
    inputs = trunk((batch, *SHAPES[0][1:]), number=4, padded=True)
    torch.set_num_threads(1)
    expected = [
        wino_kernels.shadow_trunk(**inputs | {name: inputs[name][b : b + 1] for name in OF_EACH_SEQUENCE})
        for b in range(batch)
    ]
    torch.set_num_threads(threads)
    for _ in range(20):
        assert torch.equal(wino_kernels.shadow_trunk(**inputs), torch.cat(expected))


def test_large_weights_go_through_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = trunk(SHAPES[0], biases=True, padded=True)
    expected = wino_kernels.shadow_trunk(**inputs)
    monkeypatch.setattr(linear, "MOST_WEIGHT_BYTES", 100)
    monkeypatch.delattr(_C, "shadow_trunk")
    assert wino_kernels.pack_trunk(inputs["weights"]) is None
    torch.testing.assert_close(wino_kernels.shadow_trunk(**inputs), expected, rtol=1e-4, atol=1e-4)


@needs_exchange
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_who_looks_at_the_tensors_changes_nothing(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({}, {"biases": True, "padded": True}, {"shadow": 0}):
        inputs = trunk(SHAPES[0], dtype, **options)
        inputs["x"] = torch.cat((inputs["x"], inputs["x"]), 1).narrow(1, 2, 19)
        inputs["cos"], inputs["sin"] = inputs["cos"][:1], inputs["sin"][:1]
        found = native.shadow_trunk_ordinary(**inputs)
        with monkeypatch.context() as patch:
            patch.setattr(native, "HAS_EXCHANGE", False)
            assert native.shadow_trunk_ordinary(**inputs) is None
            assert torch.equal(wino_kernels.shadow_trunk(**inputs), found)


@needs_exchange
def test_what_is_unusual_is_left_to_the_operator() -> None:
    inputs = trunk(SHAPES[0], torch.bfloat16, biases=True, padded=True)
    out = native.shadow_trunk_ordinary(**inputs)
    assert out is not None
    for name in ("rows", "key_padding_mask", "block_start"):
        strided = {name: inputs[name].repeat_interleave(2, 0)[::2]}
        assert torch.equal(native.shadow_trunk_ordinary(**inputs | strided), out)
    turned = {"x": inputs["x"].mT.contiguous().mT}
    assert native.shadow_trunk_ordinary(**inputs | turned) is None
    with pytest.raises(ValueError, match="x must have unit stride"):
        wino_kernels.shadow_trunk(**inputs | turned)
    assert native.shadow_trunk_ordinary(**trunk(SHAPES[0], torch.float16)) is None


@needs_exchange
@pytest.mark.parametrize("isa", [isa for isa in backends.CPU_ISAS if backends.why_not_cpu_isa(isa) is None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_change_nothing(dtype: torch.dtype, isa: str) -> None:
    for shape in SHAPES:
        inputs = trunk(shape, dtype, number=4, biases=True, padded=True)
        with backends.use_cpu_isa(isa):
            packed = wino_kernels.pack_trunk(inputs["weights"])
            assert packed is not None
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                assert torch.equal(
                    wino_kernels.shadow_trunk(**inputs, packed=packed), wino_kernels.shadow_trunk(**inputs)
                )


@needs_exchange
def test_packed_weights_are_what_is_multiplied() -> None:
    inputs = trunk(SHAPES[0])
    packed = wino_kernels.pack_trunk(inputs["weights"])
    assert packed is not None
    expected = wino_kernels.shadow_trunk(**inputs)
    inputs["weights"][1].zero_()  # in its place, which nobody notices
    assert torch.equal(wino_kernels.shadow_trunk(**inputs, packed=packed), expected)
    assert not torch.equal(wino_kernels.shadow_trunk(**inputs), expected)


@needs_exchange
def test_weights_packed_of_others_are_not_used() -> None:
    inputs = trunk((2, 19, 64, 2, 2, 32, 96))  # widths that are whole panels everywhere
    weights = inputs["weights"]
    others = [*weights[:4], torch.randn_like(weights[4]), *weights[5:]]
    own, shorter = wino_kernels.pack_trunk(weights), wino_kernels.pack_trunk(weights[:9])
    assert own is not None and shorter is not None
    expected = wino_kernels.shadow_trunk(**inputs)
    wrong = [wino_kernels.pack_trunk(others), shorter, own[:-1], own[:10], torch.zeros_like(own), own[:0]]
    for isa in backends.CPU_ISAS:
        if backends.why_not_cpu_isa(isa) is None and isa != _C.isa():
            with backends.use_cpu_isa(isa):
                wrong.append(wino_kernels.pack_trunk(weights))
    for packed in wrong:
        assert packed is not None and torch.equal(wino_kernels.shadow_trunk(**inputs, packed=packed), expected)
    assert any(packed.shape == own.shape and packed is not wrong[0] for packed in wrong[6:])


def test_where_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = trunk(SHAPES[0])
    assert wino_kernels.pack_trunk(trunk(SHAPES[0], torch.float16)["weights"]) is None
    with monkeypatch.context() as patch:
        patch.setattr(native, "MOST_PACKED_BYTES", 100)
        assert wino_kernels.pack_trunk(inputs["weights"]) is None
    with wino_kernels.use_backend("eager"):
        assert wino_kernels.pack_trunk(inputs["weights"]) is None
        some = torch.zeros(5, dtype=torch.uint8)
        assert torch.equal(wino_kernels.shadow_trunk(**inputs, packed=some), wino_kernels.shadow_trunk(**inputs))
    for weights, error, message in (
        ([], ValueError, "weights must be nine for each layer, got 0"),
        (inputs["weights"][:8], ValueError, "weights must be nine for each layer, got 8"),
        ([inputs["x"], 1.0], TypeError, r"weights\[1\] must be a torch.Tensor, got float"),
    ):
        with pytest.raises(error, match=f"pack_trunk: {message}"):
            wino_kernels.pack_trunk(weights)


@needs_exchange
def test_packs_on_the_cpu_whatever_the_default_device() -> None:
    inputs = trunk(SHAPES[0])
    with torch.device("meta"):
        packed = wino_kernels.pack_trunk(inputs["weights"])
    assert packed is not None and packed.is_cpu
    assert torch.equal(wino_kernels.shadow_trunk(**inputs, packed=packed), wino_kernels.shadow_trunk(**inputs))


def test_queries_of_both_kinds_in_every_part() -> None:
    """One head on several threads: its leaving rows, real and shadow ones, are shared out among them."""
    torch.set_num_threads(4)
    inputs = trunk((1, 300, 24, 3, 1, 8, 20), shadow=100)
    every = wino_kernels.shadow_trunk(**inputs | {"rows": torch.arange(300)[None]})
    for fewest, most in ((0, 300), (190, 300), (0, 210), (200, 300), (0, 200)):
        rows = torch.randint(fewest, most, (1, 250))
        found = wino_kernels.shadow_trunk(**inputs | {"rows": rows})
        torch.testing.assert_close(found, every[:, rows[0]], rtol=1e-5, atol=1e-5)


@over_paths("shadow_trunk")
def test_nothing_to_do(path: str) -> None:
    inputs = trunk(SHAPES[0])
    none = {name: inputs[name][:0] for name in ("x", "cos", "sin", "rows", "block_start")}
    assert wino_kernels.shadow_trunk(**inputs | none).shape == (0, 7, 24)


@ON_THE_CPU
@over_paths("shadow_trunk")
@pytest.mark.parametrize("row", [-1, 19])
def test_refuses_a_row_that_is_not_there(path: str, row: int) -> None:
    inputs = trunk(SHAPES[0])
    inputs["rows"][1, 2] = row
    error, told = (RuntimeError, "index") if path == "triton" else (ValueError, "rows must be in")
    with pytest.raises(error, match=told):
        wino_kernels.shadow_trunk(**inputs)


@pytest.mark.parametrize("has_exchange", [True, False])
def test_names_a_row_that_is_not_there(has_exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "HAS_EXCHANGE", native.HAS_EXCHANGE and has_exchange)
    inputs = trunk(SHAPES[0])
    inputs["rows"][1, 2] = 19
    with pytest.raises(ValueError, match=r"shadow_trunk: rows must be in \[0, 19\), got 19"):
        wino_kernels.shadow_trunk(**inputs)


@over_paths("shadow_trunk")
def test_refuses_gradients(path: str) -> None:
    inputs = trunk(SHAPES[0])
    for tensor in (inputs["weights"][4], inputs["norm_weight"]):
        tensor.requires_grad_()
        with pytest.raises(RuntimeError, match="not differentiable"):
            wino_kernels.shadow_trunk(**inputs)
        with torch.no_grad():
            wino_kernels.shadow_trunk(**inputs)
        tensor.requires_grad_(False)
