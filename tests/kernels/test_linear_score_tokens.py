"""linear_score_tokens against float64 and against the unfused head (docs/spec.md section 6)."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernel_paths import over_paths, paths, share
from sureness import adversarial, assert_sure_enough, peaked
from torch import Tensor

import wino_kernels
from wino.benchmark import peak_extra

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# rows, H, V
SHAPES = [(1, 1, 1), (3, 31, 127), (5, 64, 1000), (7, 123, 123), (33, 48, 2049), (2, 40, 9001), (3, 1301, 70)]


def head(rows: int, width: int, vocabulary: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    hidden = torch.randn(rows, width).to(dtype)
    weight = (torch.randn(vocabulary, width) * 3 / width**0.5).to(dtype)
    return hidden, weight, torch.randn(vocabulary).to(dtype)


def exact_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(hidden.double(), weight.double(), None if bias is None else bias.double())


def probability(logits: Tensor, ids: Tensor) -> Tensor:
    return torch.softmax(logits.double(), -1).gather(-1, ids[..., None])[..., 0]


@over_paths("linear_score_tokens")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_given_tokens_no_worse_than_an_unfused_head(path: str, dtype: torch.dtype, with_bias: bool) -> None:
    for shape in SHAPES:
        hidden, weight, bias = head(*shape, dtype)
        if not with_bias:
            bias = None
        ids = torch.randint(0, shape[2], (shape[0],))
        returned, confidence = wino_kernels.linear_score_tokens(hidden, weight, ids, bias=bias)
        exact = probability(exact_logits(hidden, weight, bias), ids)
        unfused = probability(F.linear(hidden, weight, bias), ids)
        assert torch.equal(returned, ids)
        assert (confidence - exact).abs().max() <= (unfused - exact).abs().max() + 2e-6


@over_paths("linear_score_tokens")
@pytest.mark.parametrize("dtype", DTYPES)
def test_drafts(path: str, dtype: torch.dtype) -> None:
    """The drafted token is the unfused head's unless two of its logits are within the product's rounding."""
    for shape in SHAPES:
        hidden, weight, bias = head(*shape, dtype)
        ids, confidence = wino_kernels.linear_score_tokens(hidden, weight, torch.full(shape[:1], -1), bias=bias)
        logits = F.linear(hidden, weight, bias)
        rounding = torch.finfo(dtype).eps * logits.abs().amax(-1).double()
        drafted = logits.gather(-1, ids[:, None])[:, 0]
        assert (drafted.double() >= logits.amax(-1).double() - 2 * rounding).all()
        exact = probability(exact_logits(hidden, weight, bias), ids)
        assert (confidence - exact).abs().max() <= (probability(logits, ids) - exact).abs().max() + 2e-6


@over_paths("linear_score_tokens")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [1, 31, 300, 9001])
def test_near_one_against_float64(path: str, dtype: torch.dtype, vocabulary: int) -> None:
    """Hidden rows that pick a column of the weight, so that logits are exact: what is missing to 1 keeps its digits."""
    logits = peaked(20 if share(path) == 1 else 4, vocabulary, dtype)
    logits = logits.clamp(min=-1e4)  # 0 times -inf is NaN
    if vocabulary > 8:
        logits = torch.cat([logits, adversarial(vocabulary, dtype).clamp(-1e4, 1e4)])
    hidden, weight = torch.eye(len(logits), dtype=dtype), logits.T.contiguous()
    ids = torch.full((len(logits),), -1)
    tokens, confidence = wino_kernels.linear_score_tokens(hidden, weight, ids)
    assert torch.equal(tokens, logits.float().argmax(-1))
    assert_sure_enough(confidence, logits, tokens)
    given_ids = torch.where(torch.arange(len(logits)) % 3 > 0, tokens, torch.randint(0, vocabulary, (len(logits),)))
    assert_sure_enough(wino_kernels.linear_score_tokens(hidden, weight, given_ids)[1], logits, given_ids)
    drawn, confidence = wino_kernels.linear_score_tokens(hidden, weight, ids, temperature=0.5, seed=3)
    assert_sure_enough(confidence, logits, drawn)


@pytest.mark.parametrize("path", ["triton"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_the_library(path: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does with many rows, a chunk of the vocabulary at a time: all that holds for tiles in registers."""
    monkeypatch.setattr(importlib.import_module("wino_kernels.triton.linear_score_tokens"), "MOST_FUSED", 0)
    monkeypatch.setattr(importlib.import_module("wino_kernels.triton.score_tokens"), "_SLICE_BYTES", 1)
    monkeypatch.setattr(importlib.import_module("wino_kernels.triton.linear_score_tokens"), "score_tile", None)
    test_drafts(path, dtype)
    test_near_one_against_float64(path, dtype, 300)
    for with_bias in (False, True):
        test_given_tokens_no_worse_than_an_unfused_head(path, dtype, with_bias)
    test_strided_inputs(path, dtype)
    test_bad_rows(path)
    test_banned_tokens_through_the_bias(path)
    test_leading_dimensions(path)
    test_skipped_rows_change_nothing(path)


@pytest.mark.parametrize("path", ["triton"], indirect=True)
@pytest.mark.parametrize(("chunks", "block_of_rows"), [(1, 4), (2, 7), (3, 7)])
def test_slices_of_the_librarys_product(
    path: str, chunks: int, block_of_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some or all chunks of V at a time, blocks of rows: the tokens and confidences of all logits at once."""
    scoring = importlib.import_module("wino_kernels.triton.score_tokens")
    monkeypatch.setattr(importlib.import_module("wino_kernels.triton.linear_score_tokens"), "MOST_FUSED", 0)
    width = scoring._chunks(8969, torch.empty(0))[1]
    assert 2 * width < 8969 < 3 * width
    monkeypatch.setattr(scoring, "_SLICE_BYTES", chunks * block_of_rows * width * 4)
    hidden, weight = torch.randint(-3, 4, (7, 9)).float(), torch.randint(-2, 3, (8969, 9)).float()  # exact logits
    ids = torch.tensor([-1, 8968, -2, -1, 4096, 3, -1])
    noise = {"temperature": torch.rand(7), "seed": torch.arange(7)}
    for given in ({}, noise):
        found = wino_kernels.linear_score_tokens(hidden, weight, ids, **given)
        expected = wino_kernels.score_tokens(F.linear(hidden, weight), ids, **given)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@over_paths("linear_score_tokens")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_not_rounded_is_better(path: str, dtype: torch.dtype) -> None:
    rows, vocabulary = (64, 700) if share(path) == 1 else (16, 200)
    hidden, weight, _ = head(rows, 96, vocabulary, dtype)
    ids = torch.randint(0, vocabulary, (rows,))
    exact = probability(exact_logits(hidden, weight), ids)

    def error(round_to: str | torch.dtype) -> float:
        return float((wino_kernels.linear_score_tokens(hidden, weight, ids, round_to=round_to)[1] - exact).abs().max())

    assert error(torch.float32) <= 2e-6
    assert error("input") > 10 * error(torch.float32)
    assert error(dtype) == error("input")


@over_paths("linear_score_tokens")
def test_rounded_to_another_dtype(path: str) -> None:
    """float32 head, logits rounded to bfloat16: the scores of the rounded logits (small integers: exact products)."""
    hidden = torch.randint(-8, 9, (6, 20)).float()
    weight = torch.randint(-8, 9, (150, 20)).float() / 64
    ids = torch.tensor([-1, 0, 149, -1, -2, 77])
    rounded = F.linear(hidden, weight).bfloat16()
    assert not torch.equal(rounded.float(), F.linear(hidden, weight))
    fused = wino_kernels.linear_score_tokens(hidden, weight, ids, round_to=torch.bfloat16)
    unfused = wino_kernels.score_tokens(rounded, ids)
    assert torch.equal(fused[0], unfused[0])
    assert (fused[1] - unfused[1]).abs().max() <= 2e-6


@over_paths("linear_score_tokens")
@pytest.mark.parametrize("dtype", DTYPES)
def test_is_score_tokens_of_exact_logits(path: str, dtype: torch.dtype) -> None:
    """Products that no rounding touches: tokens, ties, draws, skipped and impossible candidates as in score_tokens."""
    for vocabulary in (1, 37, 300, 5000 if share(path) == 1 else 1200):
        hidden = torch.randint(-3, 4, (2, 9, 16)).to(dtype)
        weight = torch.randint(-2, 3, (vocabulary, 16)).to(dtype)
        bias = torch.randint(-2, 3, (vocabulary,)).to(dtype)
        ids = torch.randint(-2, vocabulary + 1, (2, 9))
        ids[0, :3] = -1
        for noise in ({}, {"temperature": 1.5, "seed": 4}):
            fused = wino_kernels.linear_score_tokens(hidden, weight, ids, bias=bias, **noise)
            unfused = wino_kernels.score_tokens(F.linear(hidden, weight, bias), ids, **noise)
            assert torch.equal(fused[0], unfused[0])
            assert torch.allclose(fused[1], unfused[1], rtol=4e-6, atol=1e-12, equal_nan=True)


@over_paths("linear_score_tokens")
def test_bad_rows(path: str) -> None:
    hidden, weight, _ = head(5, 8, 300, torch.float32)
    hidden[1, 3] = math.nan
    hidden[2] = math.inf
    hidden[4] = math.nan
    ids, confidence = wino_kernels.linear_score_tokens(hidden, weight, torch.tensor([-1, -1, 7, 9, -2]))
    assert confidence.isnan().tolist() == [False, True, True, False, False]
    assert ids[1:].tolist() == [0, 7, 9, -2] and confidence[4] == 0.0
    weight[299] = math.nan
    _, confidence = wino_kernels.linear_score_tokens(hidden, weight, torch.tensor([-1, -1, 7, 9, -2]))
    assert confidence.isnan().tolist() == [True, True, True, True, False]


@over_paths("linear_score_tokens")
def test_banned_tokens_through_the_bias(path: str) -> None:
    hidden, weight, bias = head(6, 8, 700, torch.float32)
    bias[:] = -math.inf
    bias[[5, 650]] = 0.0
    tokens, confidence = wino_kernels.linear_score_tokens(hidden, weight, torch.full((6,), -1), bias=bias)
    logits = exact_logits(hidden, weight[[5, 650]])
    assert tokens.tolist() == [(5, 650)[int(i)] for i in logits.argmax(-1)]
    assert (confidence - torch.softmax(logits, -1).amax(-1)).abs().max() <= 2e-6
    bias[:] = -math.inf
    tokens, confidence = wino_kernels.linear_score_tokens(hidden, weight, torch.full((6,), -1), bias=bias)
    assert confidence.isnan().all() and (tokens == 0).all()


@over_paths("linear_score_tokens")
@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_inputs(path: str, dtype: torch.dtype) -> None:
    """Rows of odd and even lengths apart, from odd and even columns on; whatever lies around them is not read."""
    for width in (24, 70):
        hidden = torch.randint(-4, 5, (3, 4, width)).to(dtype)
        weight, bias = torch.randint(-4, 5, (100, width)).to(dtype) / 8, torch.randint(-2, 3, (100,)).to(dtype)
        ids = torch.randint(-1, 100, (3, 4))
        dense = wino_kernels.linear_score_tokens(hidden, weight, ids, bias=bias)
        for more, first in ((5, 2), (5, 1), (6, 1), (6, 2)):
            wide_hidden = torch.full((3, 7, width + more), math.nan, dtype=dtype)
            wide_weight = torch.full((102, width + more), math.nan, dtype=dtype)
            hidden_view = wide_hidden[:, 2:6, 3 : 3 + width].copy_(hidden)
            weight_view = wide_weight[1:101, first : first + width].copy_(weight)
            views = wino_kernels.linear_score_tokens(hidden_view, weight_view, ids, bias=bias)
            assert torch.equal(views[0], dense[0]) and (views[1] - dense[1]).abs().max() <= 4e-6


@over_paths("linear_score_tokens")
def test_long_sums_are_as_good_as_a_library(path: str) -> None:
    """4096 products in float32: in one chain of additions the error would be several times as large."""
    hidden, weight = torch.randn(32, 4096), torch.randn(300, 4096) * 10 / 64
    exact = exact_logits(hidden, weight)
    ids = exact.argmax(-1)
    _, confidence = wino_kernels.linear_score_tokens(hidden, weight, ids)
    off, unfused = (
        (p - probability(exact, ids)).abs().max() for p in (confidence, probability(F.linear(hidden, weight), ids))
    )
    assert off <= unfused + 2e-6


@over_paths("linear_score_tokens")
def test_leading_dimensions(path: str) -> None:
    weight = torch.randn(50, 6)
    for leading in ((), (0,), (2, 0), (4,), (2, 3, 2)):
        hidden = torch.randn(*leading, 6)
        tokens, confidence = wino_kernels.linear_score_tokens(hidden, weight, torch.full(leading, -1))
        assert tokens.shape == confidence.shape == leading
        assert torch.equal(tokens, exact_logits(hidden, weight).argmax(-1))


@over_paths("linear_score_tokens")
def test_ambient_autocast_changes_nothing(path: str) -> None:
    hidden, weight, _ = head(4, 64, 300, torch.float32)
    ids = torch.arange(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = wino_kernels.linear_score_tokens(hidden, weight, ids)
    assert torch.equal(inside[1], wino_kernels.linear_score_tokens(hidden, weight, ids)[1])


@over_paths("linear_score_tokens")
@pytest.mark.parametrize("rows", [1, 17, 33, 65, 130])
def test_ties_and_candidates_at_tile_boundaries(path: str, rows: int) -> None:
    """Equal logits on both sides of a kernel's boundary, given tokens beside it, any number of rows."""
    edges = torch.tensor([299, 256, 255, 128, 127, 64, 63])
    columns = torch.arange(rows) % len(edges)
    hidden = F.one_hot(
        columns, len(edges)
    ).bfloat16()  # row r reads column r % 7, whose largest are edges[: column + 1]
    weight = torch.full((300, len(edges)), -1.0).bfloat16()
    for column in range(len(edges)):
        weight[edges[: column + 1], column] = 3.0
    logits = F.linear(hidden, weight)
    drafts, confidence = wino_kernels.linear_score_tokens(hidden, weight, torch.full((rows,), -1))
    assert torch.equal(drafts, edges[columns])
    assert (confidence - probability(logits, drafts)).abs().max() <= 2e-6
    given = edges.flip(0)[columns]
    returned, confidence = wino_kernels.linear_score_tokens(hidden, weight, given)
    assert torch.equal(returned, given)
    assert (confidence - probability(logits, given)).abs().max() <= 2e-6


@over_paths("linear_score_tokens")
def test_many_rows(path: str) -> None:
    """More rows than a tile holds, not a multiple of it, with noise and temperatures per row: those of score_tokens."""
    hidden, weight = torch.randint(-3, 4, (131, 7)).half(), torch.randint(-2, 3, (517, 7)).half()
    ids = torch.randint(-2, 518, (131,))
    ids[::3] = -1
    noise = {"temperature": torch.rand(131), "seed": torch.randint(-(2**63), 2**63 - 1, (131,))}
    noise["temperature"][::6] = 0.0
    noise["temperature"][[9, 15, 21]] = torch.tensor([math.nan, math.inf, -1.0])
    fused = wino_kernels.linear_score_tokens(hidden, weight, ids, **noise)
    unfused = wino_kernels.score_tokens(F.linear(hidden, weight), ids, **noise)
    assert torch.equal(fused[0], unfused[0]) and fused[1][[9, 15, 21]].isnan().all()
    assert torch.allclose(fused[1], unfused[1], rtol=4e-6, atol=1e-12, equal_nan=True)


@over_paths("linear_score_tokens")
def test_skipped_rows_change_nothing(path: str) -> None:
    """Whole tiles of skipped rows, and single ones: whatever they hold, the others are what they are alone."""
    hidden, weight, _ = head(260, 12, 400, torch.float32)
    ids = torch.full((260,), -2)
    tokens, confidence = wino_kernels.linear_score_tokens(hidden, weight, ids)
    assert (tokens == -2).all() and (confidence == 0.0).all()
    wanted = torch.tensor([128, 131, 255])
    hidden[torch.ones(260, dtype=torch.bool).index_fill(0, wanted, False)] = math.nan
    ids[wanted] = torch.tensor([-1, 399, -1])
    tokens, confidence = wino_kernels.linear_score_tokens(hidden, weight, ids)
    alone = wino_kernels.linear_score_tokens(hidden[wanted], weight, ids[wanted])
    assert torch.equal(tokens[wanted], alone[0]) and (confidence[wanted] - alone[1]).abs().max() <= 2e-6
    assert (tokens == -2).sum() == 257 and confidence.count_nonzero() == 3


@pytest.mark.parametrize("path", ["triton"], indirect=True)
def test_tiles_of_many_rows(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does with many rows where the library's rounding is not asked for."""
    monkeypatch.setattr(importlib.import_module("wino_kernels.triton.linear_score_tokens"), "MOST_FUSED", 10**9)
    test_many_rows(path)
    test_skipped_rows_change_nothing(path)
    test_ties_and_candidates_at_tile_boundaries(path, 130)


@over_paths("linear_score_tokens")
def test_full_vocabulary(path: str) -> None:
    vocabulary = 126464 if share(path) == 1 else 20011
    hidden, weight, _ = head(3, 16, vocabulary, torch.bfloat16)
    ids = torch.tensor([-1, vocabulary - 1, 0])
    tokens, confidence = wino_kernels.linear_score_tokens(hidden, weight, ids)
    logits = F.linear(hidden, weight)
    assert tokens.tolist() == [int(logits[0].argmax()), vocabulary - 1, 0]
    exact = probability(exact_logits(hidden, weight), tokens)
    assert ((confidence - exact).abs() <= (probability(logits, tokens) - exact).abs() + 2e-6).all()


@pytest.mark.parametrize(
    ("rows", "width", "vocabulary", "dtype", "round_to"),
    [
        (1, 8, 126464, torch.float32, "input"),
        (64, 8, 126464, torch.float32, "input"),
        (1024, 8, 20000, torch.float32, "input"),
        (5000, 8, 3000, torch.float32, torch.bfloat16),
        (33, 4096, 1500, torch.bfloat16, torch.float32),
        (1100, 4096, 1100, torch.float32, "input"),
        (40, 3000, 5000, torch.float16, "input"),
    ],
)
@pytest.mark.parametrize("skips", [False, True])
def test_memory_is_bounded_on_the_cpu(
    rows: int, width: int, vocabulary: int, dtype: torch.dtype, round_to: Any, skips: bool
) -> None:
    """Whatever the rows, the vocabulary and the dtypes; and tiles and blocks of rows join to what they should be."""
    hidden = torch.randint(-1, 2, (rows, width)).to(dtype)
    weight = torch.randint(-1, 2, (vocabulary, width)).to(dtype) / 8
    ids = torch.arange(rows) % vocabulary
    ids[::3] = -1
    if skips:
        ids[1::3] = -2

    def call() -> tuple[Tensor, Tensor]:
        return wino_kernels.linear_score_tokens(hidden, weight, ids, round_to=round_to)

    tokens, confidence = call()
    peak = peak_extra(call)
    assert peak is None or peak < 16 << 20
    some = torch.arange(0, rows, max(rows // 40, 1))
    logits = F.linear(hidden[some].float(), weight.float()).to(dtype if round_to == "input" else round_to)
    expected = wino_kernels.score_tokens(logits, ids[some])
    assert torch.equal(tokens[some], expected[0])
    assert torch.allclose(confidence[some], expected[1], rtol=4e-6, atol=1e-12)


@pytest.mark.parametrize(
    "path", [path for path in paths("linear_score_tokens") if path.startswith("cpu")], indirect=True
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_keeps_its_bits_in_any_company_on_the_cpu(path: str, dtype: torch.dtype) -> None:
    """Whatever the rows beside it and the number of threads: several stretches, tiles, groups of rows, parts of H."""
    hidden, weight, bias = head(150, 700, 4200, dtype)
    ids = torch.randint(-2, 4200, (150,))
    ids[::2] = -1
    seeds = torch.arange(150)

    def score(rows: Tensor) -> list[tuple[int, float]]:
        settings = {"temperature": 0.7, "seed": seeds[rows]}
        tokens, confidence = wino_kernels.linear_score_tokens(hidden[rows], weight, ids[rows], bias=bias, **settings)
        return list(zip(tokens.tolist(), confidence.tolist(), strict=True))

    expected = score(torch.arange(150))
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        for first, last in ((0, 150), (0, 1), (17, 18), (5, 29), (10, 139)):
            assert score(torch.arange(first, last)) == expected[first:last]


@over_paths("linear_score_tokens")
def test_weights_that_ask_for_gradients(path: str) -> None:
    """As parameters do: the scores carry none."""
    hidden, weight, bias = head(40, 16, 2500, torch.float32)
    ids = torch.randint(-2, 2500, (40,))
    plain = wino_kernels.linear_score_tokens(hidden, weight, ids, bias=bias)
    asking = wino_kernels.linear_score_tokens(hidden, torch.nn.Parameter(weight), ids, bias=torch.nn.Parameter(bias))
    assert torch.equal(asking[0], plain[0]) and torch.equal(asking[1], plain[1])


@over_paths("linear_score_tokens")
def test_token_and_confidence_stay_together_at_any_temperature(path: str) -> None:
    """Where logit + T * noise overflows for every token."""
    weight, hidden = torch.tensor([[0.0], [1.0]]), torch.ones(1, 1)
    p = torch.tensor([0.0, 1.0]).softmax(0)
    for seed in range(300, 340):
        settings = {"temperature": 3e38, "seed": seed}
        for token, confidence in (
            wino_kernels.linear_score_tokens(hidden, weight, torch.tensor([-1]), **settings),
            wino_kernels.draft_confidence(hidden @ weight.T, **settings),
        ):
            torch.testing.assert_close(confidence[0], p[token[0]], check_dtype=False)
    token, confidence = wino_kernels.linear_score_tokens(
        hidden, torch.zeros(1, 1), torch.tensor([-1]), temperature=3.3e38, seed=44
    )
    assert token.item() == 0 and confidence.item() == 1.0
