"""accept_remask_ against the plain-list oracle of docs/spec.md sections 3 and 3a."""

from __future__ import annotations

import collections
import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_paths import on_path, over_paths, paths, share
from torch import Tensor

import wino_kernels

MASK = 999
NAN = math.nan
STATE = ("tokens", "masked", "revocable", "last_accepted")


def to_tensors(blocks: list[oracle.Block], width: int) -> dict[str, Tensor]:
    masked = torch.tensor([[i in b.masked for i in range(width)] for b in blocks], dtype=torch.bool)
    revocable = torch.tensor([[i in b.revocable for i in range(width)] for b in blocks], dtype=torch.bool)
    return {
        "tokens": torch.tensor([b.tokens for b in blocks], dtype=torch.int64).view(len(blocks), width),
        "masked": masked.view(len(blocks), width),
        "revocable": revocable.view(len(blocks), width),
        "last_accepted": torch.tensor([b.last for b in blocks], dtype=torch.int32),
    }


def check_step(blocks: list[oracle.Block], ids: Tensor, confidence: Tensor, **rule: Any) -> collections.Counter[str]:
    """Runs operator and oracle on the same state, compares everything, and says which branches were taken."""
    width = ids.shape[1]
    state = to_tensors(blocks, width)
    outputs = wino_kernels.accept_remask_(
        *(state[name] for name in STATE[:3]), ids, confidence, state["last_accepted"], mask_id=MASK, **rule
    )
    per_row = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in rule.items()}
    branches: collections.Counter[str] = collections.Counter()
    expected = []
    for row, (block, own_ids, own_confidence) in enumerate(zip(blocks, ids.tolist(), confidence.tolist(), strict=True)):
        own = {name: value[row] if isinstance(value, list) else value for name, value in per_row.items()}
        expected.append(oracle.wino_step(block, own_ids, own_confidence, MASK, **own))
        branches.update(block.branches)
    assert torch.stack(outputs, 1).tolist() == [list(row) for row in expected]
    assert all(output.dtype == torch.int32 and output.shape == (len(blocks),) for output in outputs)
    after = to_tensors(blocks, width)
    for name in STATE:
        assert torch.equal(state[name], after[name]), name
    return branches


def random_blocks(rows: int, width: int) -> list[oracle.Block]:
    """Every mixture of masked, revocable and fixed positions, some full, some empty."""
    blocks = []
    for row in range(rows):
        shares = torch.rand(3) * torch.tensor([row % 5 != 0, row % 7 != 0, row % 3 == 0])
        kind = torch.multinomial(shares + 1e-6, width, replacement=True)
        tokens = torch.where(kind == 0, MASK, torch.arange(width))
        last = int(torch.randint(0, 8, ())) if row % 2 else int(torch.randint(1, width + 2, ()))
        masked, revocable = ({int(i) for i in (kind == k).nonzero()} for k in (0, 1))
        blocks.append(oracle.Block(tokens.tolist(), masked, revocable, last))
    return blocks


EVERY_BRANCH = {"cap", "none above threshold", "n = 1", "re-mask", "last - 1 cut", "done before", "NaN"}


@over_paths("accept_remask_")
@pytest.mark.parametrize("width", [1, 5, 31, 64, 128, 200])
@pytest.mark.parametrize("verify_last", [False, True])
def test_random_steps(path: str, width: int, verify_last: bool) -> None:
    rows = 128 if share(path) == 1 else 32
    branches: collections.Counter[str] = collections.Counter()
    for sharpness in (0.3, 1.0, 3.0):
        confidence = torch.rand(rows, width) ** (1 / sharpness)
        confidence[5::11, width // 2] = NAN
        confidence[1::4] = (confidence[1::4] * 8).round() / 8  # many ties
        ids = torch.randint(0, 900, (rows, width))
        blocks = random_blocks(rows, width)
        branches += check_step(blocks, ids, confidence, threshold=0.6, threshold_back=0.5, verify_last=verify_last)
    if width in (31, 64):
        assert branches.keys() == EVERY_BRANCH | ({"final pass"} if verify_last else set())
        assert min(branches.values()) >= (3 if rows == 128 else 1), branches


@over_paths("accept_remask_")
@pytest.mark.parametrize("width", [2, 3, 100, 1000, 1024])
def test_lengths_of_blocks(path: str, width: int) -> None:
    """Also all equal confidences: the cut then lies among as many ties as there are positions."""
    blocks = random_blocks(4, width)
    ids, confidence = torch.randint(0, 900, (4, width)), torch.rand(4, width)
    confidence[1], confidence[2] = 0.7, -confidence[2]
    check_step(blocks, ids, confidence, threshold=0.6, threshold_back=0.8, min_accept=width // 3, max_accept=width)
    check_step(blocks, ids, confidence, threshold=0.6, threshold_back=0.8, verify_last=True)


@over_paths("accept_remask_")
@pytest.mark.parametrize("width", [31, 128])
def test_what_float32_takes_for_equal_is_ranked(path: str, width: int) -> None:
    """Float64 confidences within 1e-8 of each other, near 1 and elsewhere, with ties; thresholds do not part them."""
    rows = 40 if share(path) == 1 else 4
    branches: collections.Counter[str] = collections.Counter()
    for center, threshold in ((1.0, 0.6), (1.0, 1.0), (0.75, 0.75), (1e-30, 0.0)):
        below = torch.rand(rows, width, dtype=torch.float64) * 10.0 ** -torch.randint(8, 17, (rows, width)).double()
        below[1::4] = (below[1::4] * 1e9).round() / 1e9
        confidence = center - below * center
        assert (confidence.float() == center).all()
        ids, blocks = torch.randint(0, 900, (rows, width)), random_blocks(rows, width)
        branches += check_step(blocks, ids, confidence, threshold=threshold, threshold_back=0.9)
    assert {"cap", "none above threshold", "last - 1 cut"} <= branches.keys()


@over_paths("accept_remask_")
def test_float32_confidences_mean_what_they_say(path: str) -> None:
    """Those of another scorer, dense or not: the step of the same numbers in float64."""
    blocks, ids = random_blocks(16, 24), torch.randint(0, 900, (16, 24))
    confidence = torch.rand(16, 48)[:, ::2]
    results = []
    for given_confidence in (
        confidence,
        confidence.double(),
        confidence.contiguous(),
        confidence.double().contiguous(),
    ):
        state = to_tensors(blocks, 24)
        outputs = wino_kernels.accept_remask_(
            *(state[name] for name in STATE[:3]), ids, given_confidence, state["last_accepted"],
            mask_id=MASK, threshold=0.6, threshold_back=0.5,
        )  # fmt: skip
        results.append([*outputs, *state.values()])
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))


EDGES = [0.0, -0.0, 1e-45, 2e-45, 1.2e-38, 0.5, 0.7, 0.9, 1.0, 1.0000001, -0.3, 3.4028235e38, math.inf, -math.inf, NAN]


def around(threshold: float) -> list[float]:
    """Float64 numbers that are rounded to this float32 or just not, and that lie half-way."""
    t = np.float32(threshold)
    found = [float(t)]
    for direction in (np.float32(-np.inf), np.float32(np.inf)):
        with np.errstate(over="ignore"):
            neighbour = np.nextafter(t, direction)
        other = math.copysign(2.0**128, neighbour) if np.isinf(neighbour) else float(neighbour)
        own = math.copysign(2.0**128, t) if np.isinf(t) else float(t)
        half = (own + other) / 2
        found += [half, np.nextafter(half, -np.inf), np.nextafter(half, np.inf), float(neighbour)]
    return [float(value) for value in found if not math.isnan(value)]


@over_paths("accept_remask_")
@pytest.mark.parametrize("edge", EDGES)
def test_confidences_are_compared_as_float32(path: str, edge: float) -> None:
    """To nearest, ties to even, on both sides of both thresholds."""
    values = around(0.5 if math.isnan(edge) else edge)
    width = 2 * len(values)
    threshold = torch.tensor(edge, dtype=torch.float32)
    for verified in (values, values[::-1]):
        confidence = torch.tensor([*values, *verified], dtype=torch.float64)[None]
        masked, revocable = set(range(len(values))), set(range(len(values), width))
        block = oracle.Block([MASK] * len(values) + [7] * len(values), masked, revocable, width + 1)
        ids = torch.randint(0, 900, (1, width))
        check_step([block], ids, confidence, threshold=threshold, threshold_back=threshold, max_accept=width)


@over_paths("accept_remask_")
def test_thresholds_per_sequence(path: str) -> None:
    rows, width = 40, 24
    confidence = (torch.rand(rows, width) * 16).round() / 16
    blocks = random_blocks(rows, width)
    threshold, threshold_back = torch.rand(rows), (torch.rand(rows) * 16).round() / 16
    ids = torch.randint(0, 900, (rows, width))
    check_step(blocks, ids, confidence, threshold=threshold, threshold_back=threshold_back)
    check_step(blocks, ids, confidence, threshold=torch.tensor(0.3), threshold_back=threshold_back)


@over_paths("accept_remask_")
def test_whole_decodes(path: str) -> None:
    """From all masks to the end, each step's confidences new: every state a decode passes through."""
    rows, width = 16 if share(path) == 1 else 4, 48
    for verify_last in (False, True):
        blocks = [oracle.Block([MASK] * width, set(range(width)), set(), 30) for _ in range(rows)]
        steps = 0
        while any(b.masked or (verify_last and b.last > 1) for b in blocks):
            confidence = (torch.rand(rows, width) ** 0.5 * 64).round() / 64
            ids = torch.randint(0, 900, (rows, width))
            check_step(blocks, ids, confidence, threshold=0.8, threshold_back=0.7, verify_last=verify_last)
            steps += 1
            assert steps < 2000
        assert steps > 8
        assert all(MASK not in b.tokens for b in blocks)


@over_paths("accept_remask_")
def test_limit_is_exact(path: str) -> None:
    """floor(f * m) of the decimal as written, where 0.7 * 90 and 0.29 * 100 are just below the integer as floats."""
    width = 130
    sizes = [*range(1, width + 1, share(path)), 90, 100]
    masked = torch.arange(width)[None, :] < torch.tensor(sizes)[:, None]
    assert math.floor(0.7 * 90) == 62 and math.floor(0.29 * 100) == 28
    for fraction, exact in (
        (0.7, Fraction(7, 10)),
        (0.29, Fraction(29, 100)),
        (0.84, Fraction(84, 100)),
        (1 / 3, Fraction(1, 3)),
        (1.0, 1),
        (0.0, 0),
    ):
        for low, high in ((0, 10**6), (5, 20)):
            state = [torch.full(masked.shape, MASK), masked.clone(), torch.zeros_like(masked)]
            accepted, _, _ = wino_kernels.accept_remask_(
                *state,
                torch.zeros(masked.shape, dtype=torch.int64),
                torch.ones(masked.shape),
                torch.full((len(sizes),), 30, dtype=torch.int32),
                mask_id=MASK,
                threshold=0.5,
                threshold_back=0.9,
                accept_fraction=fraction,
                min_accept=low,
                max_accept=high,
            )
            floors = [math.floor(exact * m) for m in sizes]
            expected = [min(max(1, min(max(floor, low), high)), m) for m, floor in zip(sizes, floors, strict=True)]
            assert accepted.tolist() == expected


@over_paths("accept_remask_")
def test_thresholds_are_float32(path: str) -> None:
    """A confidence equal to the rounded threshold is neither above nor below it."""
    for value in (0.1, 0.6, 0.7, 0.9):
        at = torch.tensor(value)
        above, below = torch.nextafter(at, torch.tensor(1.0)), torch.nextafter(at, torch.tensor(0.0))
        confidence = torch.stack([at, above, below, at, above, below])[None]
        blocks = [oracle.Block([MASK] * 3 + [1, 2, 3], {0, 1, 2}, {3, 4, 5}, 30)]
        check_step(blocks, torch.arange(6)[None], confidence, threshold=value, threshold_back=value)
        assert blocks[0].masked == {0, 2} and blocks[0].branches == {"n = 1"}
        confidence[0, :3] = 1.0
        blocks[0].last = 30
        check_step(blocks, torch.arange(6)[None], confidence, threshold=value, threshold_back=value)
        assert 5 in blocks[0].masked and not {3, 4} & blocks[0].masked


@over_paths("accept_remask_")
def test_strided_state(path: str) -> None:
    """The block as a window of longer sequences, as a decoder holds it: nothing around it changes."""
    rows, width, before, after = 6, 37, 5, 9
    blocks = random_blocks(rows, width)
    state = to_tensors(blocks, width)
    wide: dict[str, Tensor] = {}
    for name, sentinel in (("tokens", -77), ("masked", True), ("revocable", True)):
        wide[name] = torch.full((rows + 2, before + width + after), sentinel, dtype=state[name].dtype)
    views = {name: store[1:-1, before : before + width].copy_(state[name]) for name, store in wide.items()}
    lasts = torch.full((rows + 2,), 123, dtype=torch.int32)
    views["last_accepted"] = lasts[1:-1].copy_(state["last_accepted"])
    ids = torch.full((width, rows + 1), 2**40)[:, 1:].copy_(torch.randint(0, 900, (width, rows))).T
    confidence = torch.full((rows, 3 * width), NAN)[:, ::3].copy_(torch.rand(rows, width))

    def step(of: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return wino_kernels.accept_remask_(
            of["tokens"],
            of["masked"],
            of["revocable"],
            ids,
            confidence,
            of["last_accepted"],
            mask_id=MASK,
            threshold=0.6,
            threshold_back=0.5,
        )

    assert all(torch.equal(a, b) for a, b in zip(step(state), step(views), strict=True))
    for name in STATE:
        assert torch.equal(views[name], state[name]), name
    window = torch.zeros(rows + 2, before + width + after, dtype=torch.bool)
    window[1:-1, before : before + width] = True
    assert (wide["tokens"][~window] == -77).all() and wide["masked"][~window].all() and wide["revocable"][~window].all()
    assert lasts[0] == lasts[-1] == 123


@over_paths("accept_remask_")
def test_a_sequence_does_not_see_its_batch(path: str) -> None:
    rows, width = 64, 128
    blocks = random_blocks(rows, width)
    together = to_tensors(blocks, width)
    alone = {name: tensor.clone() for name, tensor in together.items()}
    ids, confidence = torch.randint(0, 900, (rows, width)), torch.rand(rows, width)
    confidence[3] = NAN
    rule = {"mask_id": MASK, "threshold": 0.6, "threshold_back": 0.5}

    def step(of: dict[str, Tensor], at: slice) -> Tensor:
        parts = [of[name][at] for name in STATE]
        outputs = wino_kernels.accept_remask_(*parts[:3], ids[at], confidence[at], parts[3], **rule)
        return torch.stack(outputs, 1)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        outputs = step(together, slice(None))
        torch.set_num_threads(1)
        assert torch.equal(torch.cat([step(alone, slice(row, row + 1)) for row in range(rows)]), outputs)
    finally:
        torch.set_num_threads(before)
    for name in STATE:
        assert torch.equal(together[name], alone[name]), name


@over_paths("accept_remask_")
def test_nan_that_nobody_reads(path: str) -> None:
    """NaN at fixed positions, and at revocable ones of a step that accepts one token, is not met."""
    fixed = oracle.Block([MASK, MASK, 5], {0, 1}, set(), 30)
    single = oracle.Block([MASK, 4, 5], {0}, {1, 2}, 3)
    read = oracle.Block([MASK, MASK, 5], {0, 1}, {2}, 3)
    confidence = torch.tensor([[0.9, 0.9, NAN], [0.9, NAN, NAN], [0.9, 0.9, NAN]])
    check_step(
        [fixed, single, read], torch.zeros(3, 3, dtype=torch.int64), confidence, threshold=0.5, threshold_back=0.9
    )
    assert fixed.branches == set() and single.branches == {"n = 1"} and read.branches == {"NaN"}
    assert read == oracle.Block([MASK, MASK, 5], {0, 1}, {2}, 3, {"NaN"})


@over_paths("accept_remask_")
@pytest.mark.parametrize("verify_last", [False, True])
def test_nan_thresholds(path: str, verify_last: bool) -> None:
    """Nothing is above or below NaN, whichever its sign: the surest draft is accepted, no token is taken back."""
    rows, width = 60 if share(path) == 1 else 16, 24
    ids, confidence = torch.randint(0, 900, (rows, width)), torch.rand(rows, width)
    nan, number = torch.tensor([NAN, -NAN]).repeat(rows // 2), torch.tensor(0.5)
    for threshold, threshold_back in ((nan, number), (number, nan), (nan, nan), (nan[0], nan[1]), (nan[1], nan[0])):
        check_step(
            random_blocks(rows, width),
            ids,
            confidence,
            threshold=threshold,
            threshold_back=threshold_back,
            verify_last=verify_last,
        )


@over_paths("accept_remask_")
def test_empty_batches_and_blocks(path: str) -> None:
    for rows, width in ((0, 4), (3, 0), (0, 0)):
        blocks = [oracle.Block([], set(), set(), 30) for _ in range(rows)]
        check_step(
            blocks,
            torch.zeros(rows, width, dtype=torch.int64),
            torch.zeros(rows, width),
            threshold=0.5,
            threshold_back=0.9,
        )


CONFIDENCES = st.sampled_from([0.0, 0.25, 0.5, 0.5, 0.625, 0.75, 0.875, 1.0, 1.0])


@st.composite
def block_and_confidence(draw: st.DrawFn, width: int) -> tuple[oracle.Block, list[float]]:
    kinds = draw(st.lists(st.sampled_from("MMUUF"), min_size=width, max_size=width))
    if draw(st.integers(0, 5)) == 0:
        kinds = ["U" if kind == "M" else kind for kind in kinds]
    masked, revocable = ({i for i, kind in enumerate(kinds) if kind == which} for which in "MU")
    confidence = draw(st.lists(CONFIDENCES, min_size=width, max_size=width))
    if draw(st.integers(0, 9)) == 0:
        confidence[draw(st.integers(0, width - 1))] = NAN
    tokens = [MASK if kind == "M" else 100 + i for i, kind in enumerate(kinds)]
    return oracle.Block(tokens, masked, revocable, draw(st.integers(-1, width + 2))), confidence


@pytest.mark.parametrize("path", paths("accept_remask_"))
@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_step(path: str, data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 14))
    drawn = data.draw(st.lists(block_and_confidence(width), min_size=1, max_size=3))
    fraction = data.draw(st.sampled_from(["0.7", "0.5", "0.1", "1.0"]))
    rule = {
        "threshold": data.draw(st.sampled_from([0.0, 0.5, 0.6, 0.75, 1.0])),
        "threshold_back": data.draw(st.sampled_from([0.0, 0.5, 0.8, 0.875, 1.0])),
        "min_accept": data.draw(st.integers(0, 6)),
        "max_accept": data.draw(st.integers(1, 9)),
        "verify_last": data.draw(st.booleans()),
    }
    blocks = [block for block, _ in drawn]
    ids = torch.arange(len(blocks) * width).view(len(blocks), width)
    confidence = torch.tensor([values for _, values in drawn])
    state = to_tensors(blocks, width)
    with on_path(path):
        outputs = wino_kernels.accept_remask_(
            *(state[name] for name in STATE[:3]),
            ids,
            confidence,
            state["last_accepted"],
            mask_id=MASK,
            accept_fraction=float(fraction),
            **rule,
        )
    expected = [
        oracle.wino_step(block, ids[row].tolist(), values, MASK, fraction=Fraction(fraction), **rule)
        for row, (block, values) in enumerate(drawn)
    ]
    assert torch.stack(outputs, 1).tolist() == [list(row) for row in expected]
    after = to_tensors(blocks, width)
    for name in STATE:
        assert torch.equal(state[name], after[name]), name


Key = tuple[frozenset[int], frozenset[int], int]


def successors(width: int, key: Key, verify_last_lowers_last: bool = True, **rule: Any) -> set[Key]:
    """All states one step can lead to: each draft sure or not, each verified token doubtful or not."""
    masked, revocable, last = key
    results = set()
    for sure in itertools.product((0.2, 0.95), repeat=width):
        block = oracle.Block([0] * width, set(masked), set(revocable), last)
        oracle.wino_step(block, [0] * width, list(sure), MASK, 0.5, 0.9, verify_last=True, **rule)
        if not verify_last_lowers_last and not masked and block.masked:
            block.last = last
        results.add((frozenset(block.masked), frozenset(block.revocable), block.last))
    return results


def longest_path(width: int, **rule: Any) -> int:
    """Steps of the longest decode from all masks; raises if states repeat, i.e. if one never ends."""
    length: dict[Key, int] = {}
    on_the_way: set[Key] = set()

    def visit(key: Key) -> int:
        if not key[0] and key[2] <= 1:
            return 0
        if key in on_the_way:
            raise RecursionError(f"a decode can return to {key}")
        if key not in length:
            on_the_way.add(key)
            length[key] = 1 + max(visit(after) for after in successors(width, key, **rule))
            on_the_way.remove(key)
        return length[key]

    return visit((frozenset(range(width)), frozenset(), 30))


LIMITS = [(Fraction(7, 10), 5, 20), (Fraction(7, 10), 1, 2), (Fraction(1, 2), 2, 3), (Fraction(1), 1, 4)]


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5])
def test_verify_last_always_ends(width: int, limits: tuple[Fraction, int, int]) -> None:
    fraction, low, high = limits
    assert longest_path(width, fraction=fraction, min_accept=low, max_accept=high) >= min(width, 2)


def test_verify_last_would_cycle_if_last_stayed() -> None:
    """The search does find cycles: without docs/spec.md section 3a's update of `last` there is one."""
    assert longest_path(6) > 6
    with pytest.raises(RecursionError, match="can return"):
        longest_path(6, verify_last_lowers_last=False)


def ends_by_counts(width: int, limits: tuple[Fraction, int, int], lowers_last: bool = True) -> bool:
    """The same question on (number masked, last) alone, which decide what a step may do: reaches larger blocks."""
    fraction, low, high = limits

    def after(masked: int, last: int) -> set[tuple[int, int]]:
        if not masked:
            return {(r, last - r if lowers_last else last) for r in range(1, min(width, last - 1) + 1)}
        limit = max(1, min(max(math.floor(fraction * masked), low), high))
        revocable = width - masked
        return {
            (masked - n + r, n)
            for n in range(1, min(limit, masked) + 1)
            for r in range(min(revocable, last - 1) + 1 if n > 1 else 1)
        }

    open_states, finished = {(width, 30)}, set()
    while open_states - finished:
        state = (open_states - finished).pop()
        open_states |= after(*state)
        finished.add(state)
    ending: set[tuple[int, int]] = set()
    while more := {state for state in finished - ending if after(*state) <= ending}:
        ending |= more
    return ending == finished


@pytest.mark.parametrize("limits", LIMITS)
def test_verify_last_always_ends_in_larger_blocks(limits: tuple[Fraction, int, int]) -> None:
    assert all(ends_by_counts(width, limits) for width in range(1, 33))
    assert not ends_by_counts(12, LIMITS[0], lowers_last=False)


@over_paths("accept_remask_")
@pytest.mark.parametrize("verify_last", [False, True])
def test_every_state_of_small_blocks(path: str, verify_last: bool) -> None:
    """All 27 divisions of three positions, all `last`, all confidences of a small set with ties and both thresholds."""
    width, values = 3, (0.3, 0.5, 0.7, 0.9)
    blocks, confidences = [], []
    for kinds in itertools.product("MUF", repeat=width):
        masked, revocable = ({i for i, kind in enumerate(kinds) if kind == which} for which in "MU")
        for last in (0, 1, 2, 3, 30):
            for confidence in itertools.product(values, repeat=width):
                blocks.append(oracle.Block([MASK if k == "M" else 7 for k in kinds], set(masked), set(revocable), last))
                confidences.append(confidence)
    blocks, confidences = blocks[:: share(path)], confidences[:: share(path)]
    ids = torch.arange(width).expand(len(blocks), width)
    for low, high in ((5, 20), (1, 2)):
        fresh = [oracle.Block(list(b.tokens), set(b.masked), set(b.revocable), b.last) for b in blocks]
        check_step(
            fresh,
            ids,
            torch.tensor(confidences),
            threshold=0.5,
            threshold_back=0.9,
            min_accept=low,
            max_accept=high,
            verify_last=verify_last,
        )
