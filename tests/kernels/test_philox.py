"""The random numbers of docs/spec.md section 6: Philox words, their layout, row seeds, Gumbel noise."""

from __future__ import annotations

import oracle
import pytest
import torch
from kernel_paths import over_paths, share

import wino_kernels
from wino_kernels.eager.philox import gumbel_noise, philox_4x32, random_words

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, output.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
SEEDS = [0, 1, -1, 2**63 - 1, -(2**63), 0x299F31D0A4093822, -0x123456789ABCDEF]


def int64(value: int) -> int:
    value &= 2**64 - 1
    return value - 2**64 if value >> 63 else value


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_published_vectors(counter: tuple[int, ...], key: tuple[int, int], output: tuple[int, ...]) -> None:
    result = philox_4x32(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(int(word) for word in result) == output
    assert oracle.philox_4x32_10(counter, key) == output


def test_layout_of_words() -> None:
    """Word v % 4 of counter (v // 4, 0, 0, 0), key = low and high half of the row's seed."""
    for vocabulary in (1, 3, 4, 5, 127):
        expected = [oracle.words(seed, vocabulary) for seed in SEEDS]
        assert random_words(torch.tensor(SEEDS), vocabulary).tolist() == expected
    assert random_words(torch.tensor([0]), 4).tolist() == [list(KNOWN_ANSWERS[0][2])]


@over_paths("score_tokens")
@pytest.mark.parametrize("vocabulary", [1, 2, 31, 127, 1000])
def test_every_backend_draws_from_these_words(path: str, vocabulary: int) -> None:
    """With equal logits the smallest word (as float32 sees it; lowest index first) has the largest noise and wins."""
    seeds = [*SEEDS, *(int64(oracle.splitmix64(i)) for i in range(40 if share(path) == 1 else 4))]
    uniforms = [[oracle.uniform(word) for word in oracle.words(seed, vocabulary)] for seed in seeds]
    expected = [min(range(vocabulary), key=lambda v, row=row: (row[v], v)) for row in uniforms]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        logits = torch.zeros(len(seeds), vocabulary, dtype=dtype)
        drawn, _ = wino_kernels.draft_confidence(logits, temperature=1.0, seed=torch.tensor(seeds))
        assert drawn.tolist() == expected


@over_paths("score_tokens")
def test_words_of_a_large_vocabulary(path: str) -> None:
    seeds, vocabulary = [5, -7], 126464
    words = random_words(torch.tensor(seeds), vocabulary)
    assert words[0, 126460:].tolist() == list(oracle.philox_4x32_10((31615, 0, 0, 0), (5, 0)))
    expected = words.argmin(-1)
    assert words.amin(-1).max() < 2**23  # so small that float32 keeps neighbours apart
    drawn, _ = wino_kernels.draft_confidence(torch.zeros(2, vocabulary), temperature=2.0, seed=torch.tensor(seeds))
    assert torch.equal(drawn, expected)


def test_gumbel_noise_is_accurate_and_finite() -> None:
    noise = gumbel_noise(torch.tensor([3]), 5000)[0]
    reference = torch.tensor([oracle.gumbel(word) for word in oracle.words(3, 5000)], dtype=torch.float64)
    assert (noise.double() - reference).abs().max() <= 2.0**-23 * reference.abs().max()


def test_splitmix64() -> None:
    assert oracle.splitmix64(0) == 0xE220A8397B1DCDAF  # first output of the published generator, state 0
    assert oracle.splitmix64(1234567) == 6457827717110365317
    values = [*SEEDS, 1234567, *range(20)]
    expected = [int64(oracle.splitmix64(value)) for value in values]
    assert wino_kernels.splitmix64(torch.tensor(values)).tolist() == expected
    with pytest.raises(TypeError, match="int64"):
        wino_kernels.splitmix64(torch.zeros(1))


@pytest.mark.parametrize("seed", [0, 12, -3, 2**64 - 1, 2**70 + 5, 2**63])
def test_integer_seed_is_splitmix64_of_seed_plus_row(seed: int) -> None:
    logits = torch.randn(2, 3, 50)
    rows = [int64(oracle.splitmix64(seed + row)) for row in range(6)]
    by_integer = wino_kernels.draft_confidence(logits, temperature=1.0, seed=seed)
    by_rows = wino_kernels.draft_confidence(logits, temperature=1.0, seed=torch.tensor(rows).view(2, 3))
    assert torch.equal(by_integer[0], by_rows[0])


def test_row_seeds_of_a_decoder() -> None:
    def expected(request: int, step: int, position: int) -> int:
        return int64(oracle.splitmix64(oracle.splitmix64(oracle.splitmix64(request) + step) + position))

    positions = torch.tensor([[0, 1, 7], [3, 4, 5]])
    seeds = wino_kernels.row_seeds(torch.tensor([11, -12]), torch.tensor([0, 9]), positions)
    steps = ((11, 0), (-12, 9))
    assert seeds.tolist() == [[expected(*steps[b], int(q)) for q in positions[b]] for b in range(2)]
    assert wino_kernels.row_seeds(2**64 - 5, 3, positions[0]).tolist() == [expected(-5, 3, q) for q in (0, 1, 7)]
    one_step = wino_kernels.row_seeds(torch.tensor([11, 11]), torch.tensor(9), positions)
    assert one_step.tolist() == [[expected(11, 9, int(q)) for q in row] for row in positions]


def test_extreme_words_stay_finite() -> None:
    """x is never 0 nor 1, so no noise is infinite and a banned token (-inf) never wins by it."""
    assert oracle.gumbel(0) == pytest.approx(22.874, abs=1e-3)
    assert oracle.gumbel(0xFFFFFFFF) == pytest.approx(-2.8115, abs=1e-3)
