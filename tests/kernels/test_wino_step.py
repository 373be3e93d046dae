"""wino_step_ = score_tokens on one row per position, then accept_remask_ (docs/spec.md section 6), bit for bit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from kernel_paths import over_paths, share
from torch import Tensor

import wino_kernels

MASK, NAN = 999, math.nan
RULE = {"mask_id": MASK, "threshold": 0.5, "threshold_back": 0.6}


def state_of(rows: int, width: int, vocabulary: int) -> dict[str, Tensor]:
    kind = torch.randint(0, 3, (rows, width))
    kind[1::3] = kind[1::3].clamp(min=1)  # nothing masked
    return {
        "tokens": torch.where(kind == 0, MASK, torch.randint(0, vocabulary, (rows, width))),
        "masked": kind == 0,
        "revocable": kind == 1,
        "last_accepted": torch.randint(0, 6, (rows,), dtype=torch.int32),
    }


def logits_of(rows: int, width: int, vocabulary: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(rows, width, vocabulary) * torch.rand(rows, width, 1) * 6).to(dtype)


def assert_like_two_steps(logits: Tensor, state: dict[str, Tensor], noise: dict[str, Any], **rule: Any) -> Tensor:
    """Both ways from the same state; returns the outputs (B, 3)."""
    expected = {name: tensor.clone() for name, tensor in state.items()}
    candidates = torch.where(state["masked"], -1, torch.where(state["revocable"], state["tokens"], -2))
    ids, confidence = wino_kernels.score_tokens(logits, candidates, **noise)
    if isinstance(noise.get("temperature"), Tensor) and noise["temperature"].dim() == 1:
        raise AssertionError("expand it for score_tokens")
    two = wino_kernels.accept_remask_(
        expected["tokens"],
        expected["masked"],
        expected["revocable"],
        ids,
        confidence,
        expected["last_accepted"],
        **rule,
    )
    one = wino_kernels.wino_step_(logits, *state.values(), **noise, **rule)
    assert torch.equal(torch.stack(one), torch.stack(two))
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]), name
    return torch.stack(one, 1)


@over_paths("wino_step_")
@pytest.mark.parametrize(
    ("dtype", "verify_last"),
    [(torch.float32, False), (torch.float32, True), (torch.bfloat16, True), (torch.float16, False)],
)
def test_is_the_two_operators(path: str, dtype: torch.dtype, verify_last: bool) -> None:
    accepted = remasked = 0
    blocks = ((7, 31, 123), (64, 16, 33), (1, 128, 50)) if share(path) == 1 else ((3, 33, 70), (1, 65, 50))
    for rows, width, vocabulary in ((1, 1, 1), *blocks):
        logits = logits_of(rows, width, vocabulary, dtype)
        for noise in ({}, {"temperature": 0.7, "seed": 11}):
            state = state_of(rows, width, vocabulary)
            outputs = assert_like_two_steps(logits, state, noise, verify_last=verify_last, **RULE)
            accepted, remasked = accepted + outputs[:, 0].sum(), remasked + outputs[:, 1].sum()
    assert accepted > 20 and remasked > (10 if share(path) == 1 else 2)


@over_paths("wino_step_")
def test_temperature_per_sequence_and_per_position(path: str) -> None:
    rows, width, vocabulary = 3, 9, 40
    logits = logits_of(rows, width, vocabulary, torch.float32)
    per_sequence = torch.tensor([0.0, 0.5, 2.0])
    seeds = torch.randint(-(2**62), 2**62, (rows, width))
    everywhere = per_sequence[:, None].expand(rows, width)
    start = state_of(rows, width, vocabulary)
    states = [{name: tensor.clone() for name, tensor in start.items()} for _ in range(2)]
    assert_like_two_steps(logits, states[0], {"temperature": everywhere, "seed": seeds}, **RULE)
    wino_kernels.wino_step_(logits, *states[1].values(), temperature=per_sequence, seed=seeds, **RULE)
    for name in start:
        assert torch.equal(states[0][name], states[1][name]), name


@over_paths("wino_step_")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_logits_and_state(path: str, dtype: torch.dtype) -> None:
    """Logits of a window of longer sequences, with both strides, NaN all around."""
    rows, width, vocabulary = 4, 11, 45
    store = torch.full((rows, width + 6, vocabulary + 3), NAN, dtype=dtype)
    logits = store[:, 3 : 3 + width, 1 : 1 + vocabulary]
    logits.copy_(logits_of(rows, width, vocabulary, dtype))
    state = state_of(rows, width, vocabulary)
    wide = {name: torch.zeros(rows, width + 8, dtype=t.dtype) for name, t in state.items() if t.dim() == 2}
    views = {name: w[:, 2 : 2 + width].copy_(state[name]) for name, w in wide.items()}
    views["last_accepted"] = state["last_accepted"].clone()
    outputs = assert_like_two_steps(logits, views, {}, **RULE)
    assert (outputs[:, 2] != 2).all()
    wino_kernels.wino_step_(logits.contiguous(), *state.values(), **RULE)
    for name, tensor in state.items():
        assert torch.equal(tensor, views[name]), name
    assert all((w[:, :2] == 0).all() and (w[:, 2 + width :] == 0).all() for w in wide.values())


@over_paths("wino_step_")
def test_nan_rows(path: str) -> None:
    """Met at a masked position and at a revocable one that is verified; not where no row is read."""
    logits = torch.zeros(4, 4, 10)
    logits[:, :2, 3] = 8.0
    logits[0, 1] = NAN  # masked
    logits[1, 2] = NAN  # revocable, two accepted
    logits[2, 3] = NAN  # fixed
    logits[3, 2] = NAN  # revocable, one accepted
    state = {
        "tokens": torch.tensor([[MASK, MASK, 5, 6]]).repeat(4, 1),
        "masked": torch.tensor([[True, True, False, False]]).repeat(4, 1),
        "revocable": torch.tensor([[False, False, True, False]]).repeat(4, 1),
        "last_accepted": torch.full((4,), 3, dtype=torch.int32),
    }
    state["tokens"][3, 1], state["masked"][3, 1] = 1, False
    before = {name: tensor.clone() for name, tensor in state.items()}
    _, _, status = wino_kernels.wino_step_(logits, *state.values(), **RULE)
    assert status.tolist() == [2, 2, 0, 1]
    for name, tensor in state.items():
        assert torch.equal(tensor[:2], before[name][:2]), name
    assert state["tokens"][2].tolist() == [3, 3, MASK, 6] and state["tokens"][3].tolist() == [3, 1, 5, 6]


@over_paths("wino_step_")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_rows_of_several_chunks(path: str, dtype: torch.dtype, temperature: float) -> None:
    """Held tokens at both sides of what may be boundaries between parts of a row; blocks that are no power of two."""
    held = [0, 4095, 4096, 8191, 8192, 9999, -1, 10_000]
    state = state_of(3, 11, 10_000)
    state["tokens"][:, : len(held)] = torch.tensor(held)
    state["masked"][:2], state["revocable"][:2] = False, True
    state["masked"][:2, 8:], state["revocable"][:2, 8:] = True, False
    state["tokens"][1, 6:8] = 1
    logits = logits_of(3, 11, 10_000, dtype)
    logits[..., [4095, 4096, 8191, 8192]] += 9
    outputs = assert_like_two_steps(
        logits, state, {"temperature": temperature, "seed": 5} if temperature else {}, **RULE
    )
    assert outputs[0, 2] == (2 if outputs[0, 0] == 0 else 0) and outputs[1, 0] > 0


@over_paths("wino_step_")
@pytest.mark.parametrize("verify_last", [False, True])
def test_finished_sequences_are_not_read(path: str, verify_last: bool) -> None:
    state = state_of(3, 6, 20)
    state["masked"][:2], state["revocable"][:2] = False, True
    state["last_accepted"] = torch.tensor([1, 4, 4], dtype=torch.int32)
    logits = logits_of(3, 6, 20, torch.float32)
    logits[:2] = NAN
    before = {name: tensor.clone() for name, tensor in state.items()}
    outputs = torch.stack(wino_kernels.wino_step_(logits, *state.values(), verify_last=verify_last, **RULE), 1)
    assert outputs[:2].tolist() == [[0, 0, 1], [0, 0, 2 if verify_last else 1]]  # the second one has a pass ahead
    for name, tensor in state.items():
        assert torch.equal(tensor[:2], before[name][:2]), name


@over_paths("wino_step_")
@pytest.mark.parametrize("width", [3, 100, 300])
def test_lengths_of_blocks(path: str, width: int) -> None:
    logits, state = logits_of(1, width, 12, torch.bfloat16), state_of(1, width, 12)
    assert_like_two_steps(logits, state, {}, verify_last=True, **RULE)


@over_paths("wino_step_")
def test_nan_thresholds(path: str) -> None:
    """As in accept_remask_: with NaN one draft is accepted, or nothing is taken back."""
    rows, width, vocabulary = 12, 16, 33
    logits, nan = logits_of(rows, width, vocabulary, torch.float32), torch.tensor([NAN, -NAN]).repeat(rows // 2)
    for changed, column, most in (("threshold", 0, 1), ("threshold_back", 1, 0)):
        outputs = assert_like_two_steps(logits, state_of(rows, width, vocabulary), {}, **{**RULE, changed: nan})
        assert outputs[:, column].max() == most


@over_paths("wino_step_")
def test_decodes_the_same_in_any_batch_and_with_any_threads(path: str) -> None:
    rows, width, vocabulary = (6, 20, 64) if share(path) == 1 else (6, 9, 64)
    steps = 12 if share(path) == 1 else 2
    all_logits = [logits_of(rows, width, vocabulary, torch.float32) for _ in range(steps)]
    rule = {**RULE, "temperature": 0.4, "verify_last": True}
    seeds = torch.arange(rows * width).view(rows, width)

    def decode(picked: slice, threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        number = len(range(rows)[picked])
        masked = torch.ones(number, width, dtype=torch.bool)
        state = [torch.full((number, width), MASK), masked, ~masked, torch.full((number,), 30, dtype=torch.int32)]
        for step, logits in enumerate(all_logits):
            wino_kernels.wino_step_(logits[picked], *state, seed=seeds[picked] + 1000 * step, **rule)
        return state

    before = torch.get_num_threads()
    try:
        together = decode(slice(None), 2)
        for picked in (slice(0, 1), slice(2, 5), slice(5, 6)):
            for tensor, other in zip(decode(picked, 1), together, strict=True):
                assert torch.equal(tensor, other[picked])
    finally:
        torch.set_num_threads(before)
    assert not together[1].all(1).any()


@over_paths("wino_step_")
def test_empty(path: str) -> None:
    for rows, width in ((0, 3), (2, 0)):
        state = state_of(rows, width, 5)
        outputs = assert_like_two_steps(torch.zeros(rows, width, 5), state, {}, **RULE)
        assert outputs.shape == (rows, 3)
