"""Every token that ends an answer is found, wherever a checkpoint says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from llada_models import build_llada
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

import wino
from wino.models import end_token_ids
from wino.tasks.evaluation import answer_lengths, read_answers

SPECIAL = ["<eos>", "<mask>", "<|eot_id|>", "<|im_end|>", "<|start_header_id|>"]
WORDS = [*SPECIAL, "assistant", "user", "18", "7", "\\boxed"]
LLADA = (
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + ' ' + message['content'] | trim + "
    "'<|eot_id|>' }}{% endfor %}{{ '<|start_header_id|>assistant ' }}"
)
CHATML = "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + '\n<|im_end|>\n' }}{% endfor %}"


def build_tokenizer(template: str | None = None, words: list[str] = WORDS) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<mask>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL if word in words])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", mask_token="<mask>")
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        (0, None, (0,)),
        ([5, 0, 5], None, (5, 0)),
        (None, [7, 8], (7, 8)),
        (6, {"eos_token_id": [7, 6]}, (6, 7)),
        (None, None, ()),
    ],
)
def test_of_a_model_alone(config: Any, generation: Any, expected: tuple[int, ...]) -> None:
    model = build_llada(eos_token_id=config)
    if generation is not None:
        model.generation_config = GenerationConfig(
            **(generation if isinstance(generation, dict) else {"eos_token_id": generation})
        )
    assert end_token_ids(model) == expected


@pytest.mark.parametrize("wrong", ["<eos>", [0, "1"], -1, True, 2**70, 1.5])
def test_what_is_no_id_is_refused(wrong: Any) -> None:
    model = build_llada()
    model.config.eos_token_id = wrong
    with pytest.raises(ValueError, match="eos_token_id of the model's configuration: expected a token id"):
        end_token_ids(model)


@pytest.mark.parametrize(
    ("template", "words", "expected"),
    [
        (None, [word for word in WORDS if word != "<|eot_id|>"], (0,)),
        (None, WORDS, (0, 2)),  # <|eot_id|> wherever the tokenizer has it
        (LLADA, WORDS, (0, 2)),
        (CHATML, WORDS, (0, 2, 3)),
        # A turn that nothing ends, or that a word of the language ends, adds nothing.
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", WORDS, (0, 2)),
        ("{% for m in messages %}{{ m['content'] + ' user ' }}{% endfor %}", WORDS, (0, 2)),
        ("{{ messages[0]['content'] }}", WORDS, (0, 2)),
        ("{{ raise_exception('questions alone') }}", WORDS, (0, 2)),
    ],
)
def test_of_a_tokenizer(template: str | None, words: list[str], expected: tuple[int, ...]) -> None:
    assert end_token_ids(build_llada(eos_token_id=None), build_tokenizer(template, words)) == expected


def test_the_bundled_model_ends_in_one_token() -> None:
    model, tokenizer = wino.load("wino-tiny")
    assert end_token_ids(model, tokenizer) == (0,)


def test_generation_config_of_a_folder_counts(tokenizer_folder: Path) -> None:
    build_llada().save_pretrained(tokenizer_folder)
    assert end_token_ids(wino.load(tokenizer_folder)[0]) == (0,)
    path = tokenizer_folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [4, 5], "max_new_tokens": 32}))
    model, tokenizer = wino.load(tokenizer_folder)
    assert end_token_ids(model, tokenizer) == (0, 4, 5)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"generation_config.json: expected an object, got list"):
        wino.load(tokenizer_folder)


def test_an_answer_is_read_up_to_whatever_ends_it_first() -> None:
    tokenizer = build_tokenizer(LLADA)
    said = "\\boxed 18 <|eot_id|> <|start_header_id|> assistant \\boxed 7 <eos> <eos>"
    generated = torch.tensor([tokenizer(said)["input_ids"], [2] + [7] * 8, [7] * 9])
    ends = end_token_ids(build_llada(), tokenizer)
    assert read_answers(tokenizer, generated, ends) == (["\\boxed 18", "", " ".join(["18"] * 9)], [3, 1, 9])
    assert answer_lengths(generated, (0,)).tolist() == [8, 9, 9]
