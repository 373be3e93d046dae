"""score_tokens and its two views against float64 (docs/spec.md sections 3 and 6)."""

from __future__ import annotations

import math
from typing import Any

import oracle
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_paths import on_path, over_paths, paths, share
from sureness import adversarial, assert_sure_enough, peaked
from torch import Tensor

import wino_kernels

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAN, INF = math.nan, math.inf
# Around vector widths and unrolling; 1, 31, 127, 123, 1000 divide nothing.
VOCABULARIES = [1, 2, 5, 15, 16, 17, 31, 33, 64, 123, 127, 128, 129, 255, 257, 1000, 1025, 4097]


def reference(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and float64 probabilities of finite rows: max and sum of exponentials, nothing of the code under test."""
    exact = logits.double()
    top = exact.amax(-1, keepdim=True)
    lowest_argmax = (exact == top).int().argmax(-1)
    tokens = torch.where(ids == -1, lowest_argmax, ids)
    shifted = (exact - top).gather(-1, tokens.clamp(min=0)[..., None])[..., 0]
    probability = shifted.exp() / (exact - top).exp().sum(-1)
    return tokens, torch.where(ids == -2, 0.0, probability)


def assert_close(confidence: Tensor, probability: Tensor) -> None:
    error = (confidence.double() - probability).abs()
    assert (error <= 2e-6 * probability + 1e-12).all(), f"largest relative error {(error / probability).max():.2e}"


def mixed_candidates(shape: torch.Size, vocabulary: int) -> Tensor:
    """Drafts, given tokens and skipped rows."""
    given_ids = torch.randint(0, vocabulary, shape)
    kind = torch.arange(shape.numel()).view(shape) % 4
    return torch.where(kind == 0, -1, torch.where(kind == 3, -2, given_ids))


@over_paths("score_tokens")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.1, 4.0, 40.0])
def test_against_float64(path: str, dtype: torch.dtype, scale: float) -> None:
    for vocabulary in VOCABULARIES:
        logits = (torch.randn(9, vocabulary) * scale + scale).to(dtype)
        ids = mixed_candidates(torch.Size([9]), vocabulary)
        tokens, confidence = wino_kernels.score_tokens(logits, ids)
        expected_tokens, probability = reference(logits, ids)
        assert torch.equal(tokens, expected_tokens)
        assert_close(confidence, probability)
        assert confidence.dtype == torch.float64 and tokens.dtype == torch.int64


@over_paths("score_tokens")
@pytest.mark.parametrize("dtype", DTYPES)
def test_near_one_against_float64(path: str, dtype: torch.dtype) -> None:
    """Drafts and given tokens, odd shapes, strides, banned tokens: what is missing to 1 keeps its digits."""
    rows = 24 if share(path) == 1 else 8
    for vocabulary in VOCABULARIES if share(path) == 1 else (1, 31, 129, 1000):
        logits = peaked(rows, vocabulary, dtype)
        largest = logits.float().argmax(-1)
        tokens, confidence = wino_kernels.draft_confidence(logits)
        assert torch.equal(tokens, largest)
        assert_sure_enough(confidence, logits, tokens)
        given_ids = torch.where(torch.arange(rows) % 2 == 0, largest, torch.randint(0, vocabulary, (rows,)))
        assert_sure_enough(wino_kernels.verify_confidence(logits, given_ids), logits, given_ids)
        drawn, confidence = wino_kernels.draft_confidence(logits, temperature=0.5, seed=3)
        assert_sure_enough(confidence, logits, drawn)
    store = torch.full((4, 9, 135), INF, dtype=dtype)
    view = store[1:3, 2:7, 3:130]
    view.copy_(peaked(10, 127, dtype).view(2, 5, 127))
    tokens, confidence = wino_kernels.draft_confidence(view)
    assert_sure_enough(confidence, view, tokens)


@over_paths("score_tokens")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [9, 2051, 20_000])
def test_near_one_where_a_pass_may_stumble(path: str, dtype: torch.dtype, vocabulary: int) -> None:
    logits = adversarial(vocabulary, dtype)
    ids = torch.full((len(logits),), -1)
    tokens, confidence = wino_kernels.score_tokens(logits, ids)
    assert torch.equal(tokens, reference(logits, ids)[0])
    assert_sure_enough(confidence, logits, tokens)
    assert_sure_enough(wino_kernels.verify_confidence(logits, tokens), logits, tokens)
    other = (tokens + 1) % vocabulary
    assert_close(wino_kernels.verify_confidence(logits, other), reference(logits, other)[1])


@over_paths("score_tokens")
def test_near_one_in_a_full_vocabulary(path: str) -> None:
    """126463 others that weigh 1e-3 to 1e-15 together: a float32 sum that began with the largest would lose them."""
    logits = torch.full((5, 126464), 0.0) + torch.randn(126464).clamp(-3, 3)
    logits[torch.arange(5), torch.tensor([0, 5000, 63_000, 126_463, 77_777])] = torch.tensor([19.0, 26, 33, 40, 47])
    tokens, confidence = wino_kernels.draft_confidence(logits)
    assert_sure_enough(confidence, logits, tokens)
    assert confidence.unique().numel() == 5 and (confidence[2:].float() == 1.0).all()


@over_paths("score_tokens")
@pytest.mark.parametrize("dtype", DTYPES)
def test_full_vocabulary(path: str, dtype: torch.dtype) -> None:
    logits = (torch.randn(5, 126464) * 3).to(dtype)
    logits[1, 126463] = logits[2, 63000] = 30.0
    ids = torch.tensor([-1, -1, 63000, 126463, -2])
    tokens, confidence = wino_kernels.score_tokens(logits, ids)
    expected_tokens, probability = reference(logits, ids)
    assert torch.equal(tokens, expected_tokens) and tokens[1] == 126463
    assert_close(confidence, probability)


@over_paths("score_tokens")
@pytest.mark.parametrize("leading", [(), (1,), (7,), (5, 123), (2, 3, 4), (0,), (3, 0)])
def test_leading_dimensions(path: str, leading: tuple[int, ...]) -> None:
    logits = torch.randn(*leading, 123)
    ids = mixed_candidates(torch.Size(leading), 123)
    tokens, confidence = wino_kernels.score_tokens(logits, ids)
    expected_tokens, probability = reference(logits, ids)
    assert tokens.shape == confidence.shape == leading
    assert torch.equal(tokens, expected_tokens)
    assert_close(confidence, probability)


@over_paths("score_tokens")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_strided_views_read_nothing_around_them(path: str, dtype: torch.dtype, offset: int) -> None:
    """(B, K, V) with two strides, at addresses no vector is aligned to, between NaNs and +infs."""
    for vocabulary in (1, 31, 127, 257):
        store = torch.full((4, 9, vocabulary + 8), NAN, dtype=dtype)
        store[..., :offset] = INF
        view = store[1:3, 2:7, offset : offset + vocabulary]
        view.copy_(torch.randn(2, 5, vocabulary) * 3)
        id_store = torch.full((2, 11), 2**40)
        ids = id_store[:, 3:8].copy_(mixed_candidates(torch.Size([2, 5]), vocabulary))
        tokens, confidence = wino_kernels.score_tokens(view, ids)
        expected_tokens, probability = reference(view, ids)
        assert torch.equal(tokens, expected_tokens)
        assert_close(confidence, probability)


@over_paths("score_tokens")
def test_any_leading_strides(path: str) -> None:
    logits = torch.randn(4, 3, 5, 50)
    for view in (logits.transpose(0, 2), logits[::2, :, 1::3], logits[:1].expand(6, 3, 5, 50), logits[:, 1, 2]):
        ids = mixed_candidates(view.shape[:-1], 50)
        expected_tokens, probability = reference(view, ids)
        tokens, confidence = wino_kernels.score_tokens(view, ids)
        assert torch.equal(tokens, expected_tokens)
        assert_close(confidence, probability)


@over_paths("score_tokens")
@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_go_to_the_lowest_id(path: str, dtype: torch.dtype) -> None:
    vocabulary = 300
    pairs = [(a, b) for a in (0, 1, 7, 15, 16, 31, 63, 64, 127, 255, 298) for b in (16, 32, 64, 65, 128, 299) if a < b]
    logits = torch.randn(len(pairs), vocabulary).clamp(max=2).to(dtype)
    for row, (a, b) in enumerate(pairs):
        logits[row, [a, b, 299]] = 5.0
    tokens, confidence = wino_kernels.draft_confidence(logits)
    assert tokens.tolist() == [a for a, _ in pairs]
    assert_close(confidence, reference(logits, torch.full((len(pairs),), -1))[1])
    zeros = torch.zeros(3, vocabulary, dtype=dtype)
    zeros[1, :200] = -0.0  # equal to 0.0
    assert wino_kernels.draft_confidence(zeros)[0].tolist() == [0, 0, 0]


@over_paths("score_tokens")
@pytest.mark.parametrize("dtype", DTYPES)
def test_across_the_parts_of_a_row(path: str, dtype: torch.dtype) -> None:
    """Ties, given tokens and bad logits at both sides of where a kernel may divide a row, and a part that is banned."""
    vocabulary, edges = 20_000, [4095, 4096, 8191, 8192, 12288, 16383, 16384, 19_999]
    logits = (torch.randn(len(edges), vocabulary) * 3).clamp(max=15).to(dtype)
    for row, edge in enumerate(edges):
        logits[row, [edge, *edges[row + 1 :]]] = 16.0
    logits[2::2, :8191] = -INF
    tokens, confidence = wino_kernels.draft_confidence(logits)
    assert tokens.tolist() == edges
    assert_close(confidence, reference(logits, torch.full((len(edges),), -1))[1])
    for ids in (torch.tensor(edges), torch.tensor(edges).flip(0)):
        assert_close(wino_kernels.verify_confidence(logits, ids), reference(logits, ids)[1])
    logits[torch.arange(len(edges)), torch.tensor(edges).roll(1)] = NAN
    tokens, confidence = wino_kernels.draft_confidence(logits)
    assert confidence.isnan().all() and (tokens == 0).all()


@over_paths("score_tokens")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_small_terms(path: str, dtype: torch.dtype) -> None:
    """V - 1 equal logits so far below the maximum that together they weigh what it does: rounding adds up one way."""
    vocabulary, depths = 126464, torch.tensor([10.0, 11.09, 11.75, 12.5])
    logits = (30.0 - depths[:, None]).repeat(1, vocabulary).to(dtype)
    logits[:, 77_777] = 30.0
    ids = torch.tensor([-1, 77_777, 5, 126463])
    tokens, confidence = wino_kernels.score_tokens(logits, ids)
    expected_tokens, probability = reference(logits, ids)
    assert torch.equal(tokens, expected_tokens)
    assert_close(confidence, probability)


@over_paths("score_tokens")
@pytest.mark.parametrize("dtype", DTYPES)
def test_draws_are_those_of_eager(path: str, dtype: torch.dtype) -> None:
    """Of these rows no two perturbed logits are within float32 rounding of each other."""
    for rows, vocabulary, temperature in ((40, 300, 0.9), (2, 9000, 2.0)):
        logits = (torch.randn(rows, vocabulary) * 2).to(dtype)
        tokens, confidence = wino_kernels.draft_confidence(logits, temperature=temperature, seed=17)
        with wino_kernels.use_backend("eager"):
            expected, probability = wino_kernels.draft_confidence(logits, temperature=temperature, seed=17)
        assert torch.equal(tokens, expected)
        assert_close(confidence, probability.double())


@over_paths("score_tokens")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [NAN, INF, -NAN])
def test_one_bad_logit_anywhere(path: str, dtype: torch.dtype, bad: float) -> None:
    """At every position, in front of and behind the maximum: NaN confidence, token 0 for a draft, the row alone."""
    for vocabulary in (1, 17, 64, 131):
        position = torch.arange(0, vocabulary, share(path) // 2 + 1 if vocabulary > 17 else 1)
        position[-1] = vocabulary - 1
        logits = torch.randn(len(position), vocabulary).to(dtype)
        logits.scatter_(1, position[:, None], bad)
        tokens, confidence = wino_kernels.draft_confidence(logits)
        assert confidence.isnan().all() and (tokens == 0).all()
        given_ids = vocabulary - 1 - position
        tokens, confidence = wino_kernels.score_tokens(logits, given_ids)
        assert confidence.isnan().all() and torch.equal(tokens, given_ids)
        tokens, confidence = wino_kernels.draft_confidence(logits, temperature=0.7, seed=3)
        assert confidence.isnan().all() and (tokens == 0).all()


@over_paths("score_tokens")
@pytest.mark.parametrize("dtype", DTYPES)
def test_banned_tokens(path: str, dtype: torch.dtype) -> None:
    for vocabulary in (2, 33, 129, 1000):
        allowed = torch.arange(0, vocabulary, share(path) if vocabulary > 100 else 1)
        logits = torch.full((len(allowed), vocabulary), -INF, dtype=dtype)
        logits.scatter_(1, allowed[:, None], -3.0)
        for temperature in (0.0, 50.0):
            tokens, confidence = wino_kernels.draft_confidence(logits, temperature=temperature, seed=1)
            assert torch.equal(tokens, allowed) and (confidence == 1.0).all()
        assert (wino_kernels.verify_confidence(logits, (allowed + 1) % vocabulary) == 0.0).all()
        tokens, confidence = wino_kernels.draft_confidence(torch.full((2, vocabulary), -INF, dtype=dtype))
        assert confidence.isnan().all() and (tokens == 0).all()
        half = torch.randn(4, vocabulary).to(dtype)
        half[:, ::2] = -INF
        tokens, confidence = wino_kernels.draft_confidence(half)
        assert torch.equal(tokens, reference(half, torch.full((4,), -1))[0])
        assert_close(confidence, reference(half, torch.full((4,), -1))[1])


@over_paths("score_tokens")
@pytest.mark.parametrize("dtype", DTYPES)
def test_largest_finite_logits(path: str, dtype: torch.dtype) -> None:
    """No overflow on the way: differences of up to twice the dtype's range."""
    most = torch.finfo(dtype).max
    logits = torch.full((4, 40), -most, dtype=dtype)
    logits[1, 7] = logits[2, 7] = logits[2, 9] = most
    logits[3] = most
    tokens, confidence = wino_kernels.draft_confidence(logits)
    assert tokens.tolist() == [0, 7, 7, 0]
    assert_close(confidence, torch.tensor([1 / 40, 1.0, 0.5, 1 / 40], dtype=torch.float64))


@over_paths("score_tokens")
def test_candidates_that_are_no_token(path: str) -> None:
    """Confidence NaN, the candidate handed back; -2 costs nothing and never looks at its row."""
    logits = torch.randn(6, 20)
    logits[5] = NAN
    ids = torch.tensor([20, -3, 2**62, -(2**63), 19, -2])
    tokens, confidence = wino_kernels.score_tokens(logits, ids)
    assert torch.equal(tokens, ids)
    assert confidence.isnan().tolist() == [True, True, True, True, False, False] and confidence[5] == 0.0


@over_paths("score_tokens")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_bits_do_not_depend_on_the_batch(path: str, dtype: torch.dtype, temperature: float) -> None:
    rows, vocabulary = 13, 777
    logits = (torch.randn(rows, vocabulary) * 3).to(dtype)
    ids = mixed_candidates(torch.Size([rows]), vocabulary)
    seeds = torch.arange(rows) * 7919
    tokens, confidence = wino_kernels.score_tokens(logits, ids, temperature=temperature, seed=seeds)

    def same(picked: Tensor, other: tuple[Tensor, Tensor]) -> bool:
        return torch.equal(other[0], tokens[picked]) and torch.equal(other[1], confidence[picked])

    for row in range(rows):
        one = torch.tensor([row])
        assert same(one, wino_kernels.score_tokens(logits[one], ids[one], temperature=temperature, seed=seeds[one]))
    order = torch.randperm(rows)
    shuffled = wino_kernels.score_tokens(logits[order], ids[order], temperature=temperature, seed=seeds[order])
    assert same(order, shuffled)
    logits[::2] = NAN
    odd = torch.arange(1, rows, 2)
    beside_nan = wino_kernels.score_tokens(logits, ids, temperature=temperature, seed=seeds)
    assert same(odd, (beside_nan[0][odd], beside_nan[1][odd]))


@pytest.mark.parametrize(
    "path", [path for path in paths("score_tokens") if path.startswith(("cpu", "eager"))], indirect=True
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bits_do_not_depend_on_the_number_of_threads(path: str, temperature: float) -> None:
    before = torch.get_num_threads()
    inputs = [(torch.randn(rows, vocabulary) * 3) for rows, vocabulary in ((1, 50001), (3, 20011), (64, 1031))]
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append([wino_kernels.draft_confidence(x, temperature=temperature, seed=5) for x in inputs])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for (tokens, confidence), (other_tokens, other_confidence) in zip(results[0], other, strict=True):
            assert torch.equal(tokens, other_tokens) and torch.equal(confidence, other_confidence)


@over_paths("score_tokens")
@pytest.mark.parametrize("dtype", DTYPES)
def test_draws_follow_the_definition(path: str, dtype: torch.dtype) -> None:
    """argmax of logit + T g, with the oracle's g; only a float32 tie may fall either way. Confidence: without noise."""
    for vocabulary, temperature in ((1, 1.0), (31, 0.3), (127, 1.0), (600, 2.5)):
        logits = torch.randn(6, vocabulary).mul(2).to(dtype)
        seeds = torch.arange(6) - 3
        tokens, confidence = wino_kernels.draft_confidence(logits, temperature=temperature, seed=seeds)
        noise = torch.tensor([[oracle.gumbel(w) for w in oracle.words(int(s), vocabulary)] for s in seeds]).double()
        perturbed = logits.double() + oracle.float32(temperature) * noise
        drawn = perturbed.gather(1, tokens[:, None])[:, 0]
        assert (drawn >= perturbed.amax(1) - 2e-6 * temperature * 23).all()
        assert_close(confidence, reference(logits, tokens)[1])


@over_paths("score_tokens")
@pytest.mark.parametrize("temperature", [1e-38, 1e-4, 1e4, 1e30])
def test_draws_at_extreme_scales(path: str, temperature: float) -> None:
    """Noise far below and far above the logits, and large logits: still the argmax of the definition."""
    vocabulary, eps = 300, 2.0**-23
    for scale in (1e-6, 1.0, 1e6, 1e30):
        logits = torch.randn(8, vocabulary) * scale
        logits[::2, ::3] = -INF
        seeds = torch.arange(8)
        tokens, confidence = wino_kernels.draft_confidence(logits, temperature=temperature, seed=seeds)
        noise = torch.tensor([[oracle.gumbel(w) for w in oracle.words(seed, vocabulary)] for seed in range(8)]).double()
        perturbed = logits.double() + oracle.float32(temperature) * noise
        drawn = perturbed.gather(1, tokens[:, None])[:, 0]
        best = perturbed.amax(1)
        assert (drawn >= best - 4 * eps * (best.abs() + temperature * 23)).all()
        assert_close(confidence, reference(logits, tokens)[1])


@over_paths("score_tokens")
def test_temperature_per_row(path: str) -> None:
    logits = torch.randn(4, 5, 60)
    temperature = torch.tensor([0.0, 0.5, 1.0, 4.0])[:, None].expand(4, 5)
    seeds = torch.arange(20).view(4, 5)
    ids = torch.full((4, 5), -1)
    tokens, _ = wino_kernels.score_tokens(logits, ids, temperature=temperature, seed=seeds)
    for row, value in enumerate(temperature[:, 0].tolist()):
        alone, _ = wino_kernels.score_tokens(logits[row], ids[row], temperature=value, seed=seeds[row])
        assert torch.equal(tokens[row], alone)
    assert torch.equal(tokens[0], logits[0].argmax(-1))
    assert not torch.equal(tokens[3], logits[3].argmax(-1))
    host_scalar = wino_kernels.score_tokens(logits, ids, temperature=torch.tensor(4.0), seed=seeds)
    assert torch.equal(host_scalar[0][3], tokens[3])


@over_paths("score_tokens")
def test_temperature_that_is_none(path: str) -> None:
    """A tensor is not looked at before the kernel: a draft then says NaN; a given token needs no temperature."""
    logits = torch.randn(5, 30)
    temperature = torch.tensor([NAN, INF, -1.0, NAN, 1.0])
    tokens, confidence = wino_kernels.score_tokens(
        logits, torch.tensor([-1, -1, -1, 4, -1]), temperature=temperature, seed=torch.arange(5)
    )
    assert confidence.isnan().tolist() == [True, True, True, False, False]
    assert tokens[:4].tolist() == [0, 0, 0, 4]


def drawn(path: str, logits: Tensor, **noise: Any) -> Tensor:
    """One draw per row; where not every row is drawn on this path, eager draws them all and those must be the same."""
    if path not in ("triton", "cuda"):
        return wino_kernels.draft_confidence(logits, **noise)[0]
    with wino_kernels.use_backend("eager"):
        tokens, _ = wino_kernels.draft_confidence(logits, **noise)
    few = len(logits) // 300  # of the seeds of an integer, the first rows'
    assert torch.equal(wino_kernels.draft_confidence(logits[:few], **noise)[0], tokens[:few]) and few >= 100
    return tokens


def chi_square(counts: Tensor, probability: Tensor) -> float:
    expected = probability * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def chi_square_limit(degrees: int, z: float = 4.75) -> float:
    """Wilson-Hilferty: exceeded once in a million."""
    return degrees * (1 - 2 / (9 * degrees) + z * math.sqrt(2 / (9 * degrees))) ** 3


@over_paths("score_tokens")
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_softmax(path: str, temperature: float) -> None:
    vocabulary, draws = 21, 40_000
    logits = torch.linspace(-1.5, 1.5, vocabulary)[torch.randperm(vocabulary)]
    tokens = drawn(path, logits.expand(draws, vocabulary), temperature=temperature, seed=77)
    counts = tokens.bincount(minlength=vocabulary).double()

    def distance(at: float) -> float:
        return chi_square(counts, torch.softmax(logits.double() / at, -1))

    limit = chi_square_limit(vocabulary - 1)
    assert distance(temperature) < limit
    assert distance(temperature * 1.15) > limit and distance(temperature / 1.15) > limit  # the test can fail


@over_paths("score_tokens")
def test_successive_seeds_are_independent(path: str) -> None:
    """Pairs (row r, row r + 1) of one integer seed fill the product distribution."""
    vocabulary, draws = 6, 30_000
    tokens = drawn(path, torch.zeros(draws, vocabulary), temperature=1.0, seed=0)
    counts = (tokens[:-1] * vocabulary + tokens[1:]).bincount(minlength=vocabulary**2).double()
    uniform = torch.full((vocabulary**2,), 1 / vocabulary**2, dtype=torch.float64)
    assert chi_square(counts, uniform) < chi_square_limit(vocabulary**2 - 1)


@over_paths("score_tokens")
def test_views_are_score_tokens(path: str) -> None:
    logits = torch.randn(3, 4, 50)
    draft = wino_kernels.score_tokens(logits, torch.full((3, 4), -1), temperature=1.0, seed=9)
    view = wino_kernels.draft_confidence(logits, temperature=1.0, seed=9)
    assert torch.equal(draft[0], view[0]) and torch.equal(draft[1], view[1])
    ids = torch.randint(0, 50, (3, 4))
    given_ids = wino_kernels.score_tokens(logits, ids)
    assert torch.equal(wino_kernels.verify_confidence(logits, ids), given_ids[1])


@pytest.mark.parametrize("path", paths("score_tokens"))
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_row(path: str, data: st.DataObject) -> None:
    """Few distinct values, so ties, banned tokens and bad logits meet in every combination."""
    vocabulary = data.draw(st.integers(1, 70))
    values = st.sampled_from([-INF, -2.0, 0.0, 0.5, 3.0, 3.0, 3.0, NAN, INF])
    usual = st.sampled_from([-INF, -2.0, 0.0, 0.5, 3.0])
    row = data.draw(st.lists(data.draw(st.sampled_from([values, usual])), min_size=vocabulary, max_size=vocabulary))
    candidate = data.draw(st.integers(-4, vocabulary + 1))
    dtype = data.draw(st.sampled_from(DTYPES))
    with on_path(path):
        token, confidence = wino_kernels.score_tokens(torch.tensor([row], dtype=dtype), torch.tensor([candidate]))
    expected_token, expected = brute_force(row, candidate)
    assert token.item() == expected_token
    if math.isnan(expected):
        assert math.isnan(confidence.item())
    else:
        assert abs(confidence.item() - expected) <= 2e-6 * expected + 1e-12


def brute_force(row: list[float], candidate: int) -> tuple[int, float]:
    if candidate == -2:
        return -2, 0.0
    bad = any(math.isnan(x) or x == INF for x in row) or all(x == -INF for x in row)
    token = candidate if candidate != -1 else 0 if bad else row.index(max(row))
    if bad or not 0 <= token < len(row):
        return token, NAN
    top = max(row)
    return token, math.exp(row[token] - top) / math.fsum(math.exp(x - top) for x in row)


@over_paths("score_tokens")
def test_verifying_takes_every_id_as_given(path: str) -> None:
    """-1 and -2 neither draft nor skip: like every other id outside the vocabulary they have no probability."""
    logits, ids = torch.randn(6, 7), torch.tensor([3, -1, -2, -3, 7, 0])
    confidence = wino_kernels.verify_confidence(logits, ids)
    assert confidence.isnan().tolist() == [False, True, True, True, True, False]
    expected = wino_kernels.score_tokens(logits[[0, 5]], ids[[0, 5]])[1]
    assert torch.equal(confidence[[0, 5]], expected)
