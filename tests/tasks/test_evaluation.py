"""The arithmetic of the reported figures, and how they are gathered."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import wino
from wino.generation import GenerationOutput
from wino.pretrain import Recipe, build_model, build_tokenizer
from wino.tasks import Item, evaluation, get_task
from wino.tasks.evaluation import (
    Evaluation,
    answer_lengths,
    encode_prompts,
    evaluate,
)
from wino.tasks.presets import baseline_configs, decoder_configs, load_presets, write_presets

RECIPE = Recipe(d_model=32, n_layers=1, n_heads=2, mlp_hidden_size=48)


def test_answer_lengths_count_the_first_end_token_and_no_padding() -> None:
    generated = torch.tensor([[5, 6, 0, 0, 0], [0, 5, 6, 7, 0], [5, 6, 7, 8, 9], [5, 6, 7, 8, 0]])
    assert answer_lengths(generated, [0]).tolist() == [3, 1, 5, 5]
    assert answer_lengths(generated, (7, 0)).tolist() == [3, 1, 3, 3]
    assert answer_lengths(generated, ()).tolist() == [5] * 4


def test_figures_of_an_evaluation() -> None:
    result = Evaluation(["", "", "", ""], [True, False, True, True], [10, 20, 30, 40], [10, 10, 10, 20], seconds=4.0)
    assert result.accuracy == 0.75 and result.mean_steps == 12.5
    assert result.step_reduction == pytest.approx(100 / 50)  # sums, not the mean of ratios
    assert result.tokens_per_forward == pytest.approx((1 + 2 + 3 + 2) / 4)
    assert result.tokens_per_second == 25.0
    assert result.row()["n"] == 4 and result.row()["ci_low"] == result.accuracy_interval[0]


def test_prompts_are_padded_on_the_left_behind_the_chat_template() -> None:
    tokenizer = build_tokenizer()
    ids, mask = encode_prompts(tokenizer, ["sum 12", "sum 1234"])
    assert tokenizer.convert_ids_to_tokens(ids[1]) == ["<|user|>", "sum", "1", "2", "3", "4", "<|assistant|>"]
    assert mask.tolist() == [[0, 0, 1, 1, 1, 1, 1], [1] * 7]
    assert ids[0, 2:].tolist() == encode_prompts(tokenizer, ["sum 12"])[0][0].tolist()


def test_prompts_that_cannot_be_encoded_are_named() -> None:
    tokenizer = build_tokenizer()
    with pytest.raises(ValueError, match="empty prompt"):
        encode_prompts(tokenizer, ["sum 12", "  \n"])
    with pytest.raises(ValueError, match=r"cannot encode '\?z' in 'sum \?z2z'"):
        encode_prompts(tokenizer, ["sum 12", "sum ?z2z"])


def test_what_stands_behind_the_end_of_the_turn_is_not_graded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose turns end in <|eot_id|> goes on as user and assistant; its tokenizer's own end comes later."""
    pieces = ["<|endoftext|>", "<|mdm_mask|>", "<|eot_id|>", "?", "\\boxed{18}", "assistant", "\\boxed{7}"]
    core = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>", mask_token="<|mdm_mask|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot_id|>"]})
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    model = build_model(RECIPE, build_tokenizer()).eval()
    decoded = torch.tensor([[4, 2, 5, 6, 6, 0, 0, 0]])
    out = GenerationOutput(torch.cat((torch.tensor([[3]]), decoded), 1), torch.tensor([4]), decoded)
    monkeypatch.setattr(evaluation, "generate", lambda *arguments, **named: out)
    item = Item("gsm8k:1", "?", "18")
    result = evaluate(
        model, tokenizer, get_task("gsm8k"), [item], wino.GenerationConfig(max_new_tokens=8), prompts=[[3]]
    )
    assert (result.texts, result.tokens, result.correct) == (["\\boxed{18}"], [2], [True])


def test_an_evaluation_needs_items_and_a_journal_of_its_own(tmp_path: Path) -> None:
    tokenizer, task = build_tokenizer(), get_task("sudoku")
    model = build_model(RECIPE, tokenizer).eval()
    config = wino.GenerationConfig(decoder="low_confidence", max_new_tokens=20, steps=5)
    with pytest.raises(ValueError, match="items: expected at least one"):
        evaluate(model, tokenizer, task, [], config)
    items, journal = list(islice(task.items("validation"), 2)), tmp_path / "journal"
    for line in ("{}", "[1, 2, 3, 4]", '["a", 1]', "\xff"):
        journal.write_bytes(line.encode("latin-1") + b"\n")
        with pytest.raises(ValueError, match="journal, line 1: expected a decoded answer; remove the file"):
            evaluate(model, tokenizer, task, items, config, journal=journal)


def test_evaluate_reports_every_item_once_whatever_the_batches() -> None:
    tokenizer, task = build_tokenizer(), get_task("sudoku")
    model = build_model(RECIPE, tokenizer).eval()
    items = list(islice(task.items("validation"), 7))
    config = wino.GenerationConfig(decoder="low_confidence", max_new_tokens=20, steps=5)
    seen: list[int] = []
    result = evaluate(model, tokenizer, task, items, config, batch_size=3, on_batch=seen.append)
    assert seen == [3, 3, 1]
    assert result.steps == [5] * 7 and len(result.texts) == len(result.tokens) == 7 and result.seconds > 0
    assert result.correct == [task.grade(item, text) for item, text in zip(items, result.texts, strict=True)]
    assert result.config["decoder"] == "low_confidence" and result.config["steps"] == 5
    whole = evaluate(model, tokenizer, task, items, config)
    assert (whole.texts, whole.tokens) == (result.texts, result.tokens)


def test_the_compared_decoders(tmp_path) -> None:  # type: ignore[no-untyped-def]
    task = get_task("sum")
    assert [config.steps for config in baseline_configs(task).values()] == [44, 22, 11]
    assert load_presets(tmp_path) == {}
    write_presets(tmp_path, {"sum": {"wino": {"threshold": 0.7, "block_length": 22}}}, "a test")
    assert json.loads((tmp_path / "presets.json").read_text())["_source"] == "a test"
    configs = decoder_configs(task, load_presets(tmp_path))
    assert list(configs) == [*baseline_configs(task), "confidence_threshold", "wino"]
    assert configs["wino"].threshold == 0.7 and configs["wino"].block_size == 22
    assert configs["confidence_threshold"].threshold == wino.GenerationConfig().threshold
    assert {config.max_new_tokens for config in configs.values()} == {44}
    (tmp_path / "presets.json").write_text('{"_source": 3}')
    with pytest.raises(ValueError, match=r"presets\.json: _source: expected a sentence"):
        load_presets(tmp_path)


def test_many_prompts_pass_through_the_template_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that may be a program costs a process a call."""
    model, tokenizer = wino.load("wino-tiny")
    calls: list[int] = []
    rendered = evaluation.render_chats

    def counting(tokenizer: Any, chats: Any, **options: Any) -> Any:
        calls.append(len(chats))
        return rendered(tokenizer, chats, **options)

    monkeypatch.setattr(evaluation, "render_chats", counting)
    task = get_task("sum")
    items = list(islice(task.items("heldout"), 300))
    config = wino.GenerationConfig(max_new_tokens=task.max_new_tokens)
    kept, prompts = evaluation.encode_checked(model, tokenizer, task, items, [config])
    assert kept == items and calls == [256, 44]
    alone = [evaluation.encode_checked(model, tokenizer, task, [item], [config])[1][0] for item in items[::50]]
    assert prompts[::50] == alone
    told: list[str] = []
    bad = [*items[:3], Item("sum:bad", "sum 1 ☃", ""), *items[3:5]]
    kept, prompts = evaluation.encode_checked(model, tokenizer, task, bad, [config], on_invalid=told.append)
    assert kept == items[:5] and len(prompts) == 5 and len(told) == 1 and "sum:bad" in told[0]
