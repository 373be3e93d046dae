"""Unfolding a trajectory into samples, and what a batch of them holds (docs/spec.md section 5)."""

from __future__ import annotations

import pytest
import torch
from plus_records import make_record

from wino.plus.records import randomised
from wino.plus.unfold import (
    CANDIDATE,
    NEITHER,
    TARGET,
    TrajectorySamples,
    collate,
    ended,
    mask_answers,
    steps_of,
    unfold,
)

MASK = 1


def test_one_sample_by_hand() -> None:
    record = make_record(
        0,
        prompt_ids=[7, 8],
        prompt_length=2,
        generated_ids=[10, 11, 12, 13, 14, 15],
        trajectory_accepted=[-1, 0, 2, 1, 1, 3],
        decoding_steps=4,
    )
    sample = unfold(record, 1, 3, MASK)
    assert sample.tokens == [7, 8, 10, 11, 12, 13, 14, 15]
    assert sample.input_ids == [7, 8, 10, 11, MASK, MASK, MASK, MASK]
    # The first target stands in the second block, so position 2, still masked in the first, is no candidate.
    assert sample.roles == [NEITHER] * 5 + [TARGET, TARGET, CANDIDATE]


def test_every_token_is_a_target_once() -> None:
    for number in range(50):
        record = make_record(number)
        samples = [unfold(record, step, 6, MASK) for step in steps_of(record)]
        targets = torch.tensor([[role == TARGET for role in s.roles] for s in samples])
        accepted = [True] * 12
        assert targets.sum(0).tolist() == [0] * record.prompt_length + [int(a) for a in accepted]
        for sample in samples:
            shown = torch.tensor(sample.input_ids)
            roles = torch.tensor(sample.roles)
            assert (shown[roles != NEITHER] == MASK).all()
            places = (roles != NEITHER).nonzero().flatten() - record.prompt_length
            first = (roles == TARGET).nonzero()[0, 0] - record.prompt_length
            candidates = (roles == CANDIDATE).nonzero().flatten() - record.prompt_length
            assert (candidates // 6 == first // 6).all()
            assert places.min() >= 0


def test_a_step_that_accepted_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"step: 'item:3' accepted nothing at step 99"):
        unfold(make_record(3), 99, 6, MASK)


def test_samples_take_the_block_from_the_record_then_the_argument_then_the_answer() -> None:
    record = make_record(1, block_length=None, trajectory_accepted=[0] * 3 + [1] * 9)
    whole = TrajectorySamples([record], MASK)[0]
    assert whole.roles[record.prompt_length :].count(CANDIDATE) == 9
    assert TrajectorySamples([record], MASK, block_length=4)[0].roles.count(CANDIDATE) == 1
    known = make_record(1, trajectory_accepted=[0] * 3 + [1] * 9, metadata={"block_length": 6})
    assert TrajectorySamples([known], MASK, block_length=4)[0].roles.count(CANDIDATE) == 3


def test_samples_are_numbered_and_random_order_differs() -> None:
    trajectories = [make_record(i) for i in range(5)]
    samples = TrajectorySamples(trajectories, MASK)
    assert [samples[i].number for i in range(len(samples))] == list(range(len(samples)))
    shuffled = TrajectorySamples(trajectories, MASK, order="random", seed=1)
    assert len(shuffled) == len(samples)
    assert [shuffled[i].roles for i in range(len(shuffled))] != [samples[i].roles for i in range(len(samples))]
    with pytest.raises(ValueError, match=r"order: expected 'wino' or 'random', got 'up'"):
        TrajectorySamples(trajectories, MASK, order="up")
    with pytest.raises(ValueError, match=r"at least one record"):
        TrajectorySamples([], MASK)


def test_the_ablation_keeps_tokens_blocks_and_numbers_per_step() -> None:
    for number in range(30):
        record = make_record(number)
        mixed = randomised(record, 0)
        assert mixed.generated_ids == record.generated_ids
        for block in (slice(0, 6), slice(6, 12)):
            assert sorted(mixed.trajectory_accepted[block]) == sorted(record.trajectory_accepted[block])
    assert randomised(make_record(4), 0) == randomised(make_record(4), 0)
    assert any(randomised(make_record(4), s) != randomised(make_record(4), 0) for s in range(1, 5))
    fixed = make_record(2, trajectory_accepted=[-1, -1, 0, 1, 2, 0] * 2, decoding_steps=3)
    assert randomised(fixed, 0).trajectory_accepted[::6] == [-1, -1]


def test_batches_are_padded_on_the_right_and_padding_takes_no_part() -> None:
    samples = TrajectorySamples([make_record(i) for i in range(5)], MASK)
    batch = collate([samples[0], samples[len(samples) - 1]], pad_id=0)
    lengths = batch["length"].tolist()
    assert lengths[0] != lengths[1]
    for row, length in enumerate(lengths):
        assert batch["attention_mask"][row].tolist() == [True] * length + [False] * (max(lengths) - length)
        assert (batch["roles"][row, length:] == NEITHER).all()
        assert (batch["input_ids"][row, length:] == 0).all()


def test_masked_answers_depend_on_the_sample_alone() -> None:
    samples = TrajectorySamples([make_record(i) for i in range(8)], MASK)
    together = collate([samples[i] for i in range(12)], pad_id=0)
    noisy, masked = mask_answers(together, MASK, "seed")
    for row in range(12):
        alone = collate([samples[row]], pad_id=0)
        own_noisy, own_masked = mask_answers(alone, MASK, "seed")
        length = int(together["length"][row])
        assert torch.equal(noisy[row, :length], own_noisy[0])
        assert torch.equal(masked[row, :length], own_masked[0])
        start = int(together["prompt_length"][row])
        assert not masked[row, :start].any() and not masked[row, length:].any()
        assert 1 <= masked[row].sum() <= length - start
    other, _ = mask_answers(together, MASK, "other seed")
    assert not torch.equal(noisy, other)
    counts = [int(mask_answers(together, MASK, str(s))[1][0].sum()) for s in range(200)]
    assert set(counts) == set(range(1, 13))


def test_the_first_share_of_the_samples() -> None:
    records = [make_record(i) for i in range(4)]
    whole = TrajectorySamples(records, 1)
    part = TrajectorySamples(records, 1, first_share=0.6)
    assert len(part) == int(0.6 * len(whole))
    assert [part[i] for i in range(len(part))] == [whole[i] for i in range(len(part))]


def test_an_answer_ends_with_its_first_end_token() -> None:
    record = make_record(0, generated_ids=[5, 6, 7, 0, 0, 8, 0, 0, 0, 0, 0, 0], trajectory_proposed=list(range(12)))
    cut = ended(record, 0)
    assert cut.generated_ids == [5, 6, 7, 0] and cut.trajectory_accepted == record.trajectory_accepted[:4]
    assert cut.trajectory_proposed == [0, 1, 2, 3] and cut.prompt_ids == record.prompt_ids
    assert ended(record, 19) is record


def test_visible_padding_is_attended_and_never_trained_on() -> None:
    samples = TrajectorySamples([make_record(0), make_record(1)], 1)
    chosen = [samples[0], samples[len(samples) - 1]]
    hidden, visible = collate(chosen, 0), collate(chosen, 0, visible_length=30)
    width = hidden["tokens"].shape[1]
    assert visible["tokens"].shape == (2, 30) and bool(visible["attention_mask"].all())
    assert not bool(hidden["attention_mask"].all())
    for name in ("tokens", "input_ids", "roles"):
        assert torch.equal(visible[name][:, :width], hidden[name])
        assert not visible[name][:, width:].any()
