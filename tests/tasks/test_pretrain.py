"""The training recipe: its noise, its schedule, and that an interrupted run ends where an uninterrupted one does."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wino import pretrain
from wino.models import LLaDAModelLM
from wino.pretrain import (
    Recipe,
    build_model,
    build_tokenizer,
    learning_rate_factor,
    mask_response,
    train,
    training_rows,
)
from wino.tasks import TASKS, split_of

MASK = 1
RECIPE = Recipe(
    steps=4, d_model=32, n_layers=1, n_heads=2, mlp_hidden_size=48, batch=(("sudoku", 2), ("sum", 2)), warmup_steps=2
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_noise_masks_k_response_tokens_and_weighs_them_by_one_over_k() -> None:
    tokens = torch.arange(2, 2 + 30).expand(64, 30).contiguous()
    noisy, weights = mask_response(tokens, 10, MASK, generator())
    masked = noisy == MASK
    assert torch.equal(noisy[:, :10], tokens[:, :10])
    assert torch.equal(noisy[~masked], tokens[~masked])
    count = masked[:, 10:].sum(1)
    assert ((count >= 1) & (count <= 20)).all()
    assert torch.allclose(weights, masked[:, 10:] / count[:, None])
    assert torch.allclose(weights.sum(1), torch.ones(64))


def test_the_number_of_masks_is_stratified_and_every_position_is_masked_alike() -> None:
    tokens = torch.full((100, 20), 5)
    masked = torch.stack([mask_response(tokens, 0, MASK, generator(s))[0] == MASK for s in range(50)])  # [50, 100, 20]
    counts = masked.sum(-1).sort(dim=1).values
    assert torch.equal(counts, torch.arange(1, 21).repeat_interleave(5).expand(50, 100))
    share = masked.float().mean((0, 1))
    assert (share - 10.5 / 20).abs().max() < 0.03


def test_noise_repeats_with_its_seed() -> None:
    tokens = torch.full((8, 20), 5)
    first, second, other = (mask_response(tokens, 4, MASK, generator(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, other)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_training_rows_are_prompt_answer_and_end_tokens_of_training_items(
    task: pretrain.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = build_tokenizer()
    splits: list[str] = []
    items = type(task).items
    monkeypatch.setattr(type(task), "items", lambda self, split, seed: splits.append(split) or items(self, split, seed))
    rows, prompt_length = training_rows(task, 5, random.Random(0), tokenizer)
    assert splits and set(splits) == {"train"}
    assert rows.shape == (5, prompt_length + task.max_new_tokens)
    for row in rows:
        prompt, answer = tokenizer.decode(row[:prompt_length]), tokenizer.decode(row[prompt_length:])
        assert prompt.startswith(f"<|user|>{task.name}") and prompt.endswith("<|assistant|>")
        text = answer.partition("<|endoftext|>")[0]
        assert text and answer[len(text) :].replace("<|endoftext|>", "") == ""
    assert split_of("countdown:30,93,100=23") == "published"


def test_the_learning_rate_warms_up_holds_and_falls_to_zero() -> None:
    recipe = Recipe(steps=100, warmup_steps=10, decay_fraction=0.5)
    factors = [learning_rate_factor(step, recipe) for step in range(101)]
    assert factors[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert factors[10:50] == [1.0] * 40 and factors[75] == pytest.approx(0.5) and factors[100] == 0
    assert factors[50:] == sorted(factors[50:], reverse=True)


def weights(model: LLaDAModelLM) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_training_repeats_and_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = weights(train(RECIPE, tmp_path / "whole"))
    assert not same(whole, weights(build_model(RECIPE, build_tokenizer())))
    assert same(whole, weights(train(RECIPE, tmp_path / "again")))
    assert not same(whole, weights(train(dataclasses.replace(RECIPE, seed=1), tmp_path / "other")))

    class Interrupted(Exception):
        pass

    step = pretrain.train_step

    def interrupted(*arguments: object) -> dict[str, float]:
        if arguments[3] == 3:
            raise Interrupted
        return step(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(pretrain, "train_step", interrupted)
        train(RECIPE, tmp_path / "resumed", checkpoint_every=2)
    torch.manual_seed(123)
    assert same(whole, weights(train(RECIPE, tmp_path / "resumed", checkpoint_every=2)))
    assert same(whole, torch.load(tmp_path / "resumed" / "checkpoint.pt", weights_only=True)["model"])
    assert not list((tmp_path / "resumed").glob("*.partial"))


def test_the_log_has_one_line_a_step_with_every_loss(tmp_path: Path) -> None:
    train(dataclasses.replace(RECIPE, steps=2), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1]
    assert all(line[name] > 0 for line in lines for name, _ in RECIPE.batch)


def test_another_recipe_s_checkpoint_is_refused(tmp_path: Path) -> None:
    train(dataclasses.replace(RECIPE, steps=1), tmp_path)
    with pytest.raises(ValueError, match="belongs to another recipe"):
        train(RECIPE, tmp_path)
