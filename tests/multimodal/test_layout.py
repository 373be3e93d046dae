"""Prompts of codes and text, token by token, and pictures drawn through the loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import wino
from wino.models import MMadaConfig, MMadaModelLM
from wino.multimodal import PromptLayout, draw, drawing_config, pad_left

WORDS = [
    "<eos>",
    "<mask>",
    "<bos>",
    "<unk>",
    "<|soi|>",
    "<|eoi|>",
    "<|t2i|>",
    "<|mmu|>",
    "a",
    "red",
    "cube",
    "user",
    "?",
]
CODES, PICTURE = 16, 9


def tokenizer(words: list[str] = WORDS, template: str | None = "user {{ messages[0].content }}") -> Any:
    vocabulary = {word: number for number, word in enumerate(words)}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=model, eos_token="<eos>", bos_token="<bos>", unk_token="<unk>", mask_token="<mask>"
    )
    made.chat_template = template
    return made


def config(**changes: Any) -> MMadaConfig:
    sizes: dict[str, Any] = {
        "d_model": 32, "n_heads": 4, "n_layers": 2, "mlp_hidden_size": 64, "vocab_size": len(WORDS) + CODES,
        "codebook_size": CODES, "num_vq_tokens": PICTURE, "max_sequence_length": 64, "rope_theta": 10000.0,
        "mask_token_id": 1, "eos_token_id": 0, "pad_token_id": 0, "init_std": 0.2,
    }  # fmt: skip
    return MMadaConfig(**{**sizes, **changes})


def test_a_question_about_a_picture() -> None:
    layout = PromptLayout(tokenizer(), config())
    ids = layout.about_picture(torch.tensor([0, 15, 3]), "a cube ?")
    assert ids == [7, 4, 13, 28, 16, 5, 2, 11, 8, 10, 12]
    two = layout.about_picture([torch.tensor([1]), torch.tensor([2])], "a ?")
    assert two == [7, 4, 14, 5, 4, 15, 5, 2, 11, 8, 12]
    assert layout.token_range == (13, 29) and layout.code_offset == 13


def test_a_template_that_begins_with_sot_has_it_once() -> None:
    layout = PromptLayout(tokenizer(template="<bos> user {{ messages[0].content }}"), config())
    assert layout.about_picture(torch.tensor([0]), "a cube") == [7, 4, 13, 5, 2, 11, 8, 10]


def test_without_a_template_the_chat_is_mmadas() -> None:
    words = [
        *WORDS,
        "<|start_header_id|>user<|end_header_id|>",
        "a<|eot_id|><|start_header_id|>assistant<|end_header_id|>",
    ]
    layout = PromptLayout(tokenizer(words, None), config(vocab_size=40))
    assert layout.about_picture(torch.tensor([0]), "a") == [7, 4, 15, 5, 2, 13, 14]


def test_a_picture_from_text() -> None:
    layout = PromptLayout(tokenizer(), config())
    assert layout.for_picture("a red cube") == [6, 2, 8, 9, 10, 0, 4]
    assert layout.for_picture("<bos> a") == [6, 2, 8, 0, 4]
    assert layout.for_picture("") == [6, 2, 0, 4]
    assert layout.picture_region(1) == [1] * PICTURE + [5]


def test_the_reserved_tokens_of_lladas_tokenizer() -> None:
    """MMaDA-8B's special tokens have no names of their own there."""

    class LLaDATokenizer:
        bos_token_id, eos_token_id, unk_token_id, chat_template = 126080, 126081, None, None

        def __len__(self) -> int:
            return 126349

        def convert_tokens_to_ids(self, name: str) -> None:
            return None

        def convert_ids_to_tokens(self, number: int) -> str:
            return f"<|reserved_token_{number - 126084}|>"

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [len(text)]}

    layout = PromptLayout(LLaDATokenizer(), MMadaConfig())
    ids = layout.about_picture(torch.arange(1024), "what")
    assert ids[:3] == [126089, 126084, 126349] and ids[1025:1028] == [127372, 126085, 126080] and len(ids) == 1029
    assert layout.for_picture("x") == [126088, 126080, 1, 126081, 126084]
    assert layout.token_range == (126349, 134541)


@pytest.mark.parametrize("missing", ["<|soi|>", "<|mmu|>", "<|t2i|>", "<|eoi|>"])
def test_a_tokenizer_without_a_token_of_the_layout(missing: str) -> None:
    words = [word if word != missing else "other" for word in WORDS]
    with pytest.raises(ValueError, match=rf"the tokenizer has no token {missing}".replace("|", r"\|")):
        PromptLayout(tokenizer(words), config())


def test_other_tokenizers_that_do_not_fit() -> None:
    without = tokenizer()
    without.bos_token = None
    with pytest.raises(ValueError, match="the tokenizer has no bos_token"):
        PromptLayout(without, config())
    with pytest.raises(ValueError, match="13 tokens and 16 codes are more than the model's vocabulary of 28"):
        PromptLayout(tokenizer(), config(vocab_size=28))


@pytest.mark.parametrize(
    ("codes", "kind", "match"),
    [
        (torch.tensor([16]), ValueError, r"codes: must lie in \[0, 16\), got 16"),
        (torch.tensor([3, -1]), ValueError, r"codes: must lie in \[0, 16\), got -1"),
        (torch.tensor([1.0]), TypeError, r"codes: expected an int64 tensor \(N,\), not empty, got torch\.float32"),
        (torch.zeros(1, 9, dtype=torch.int64), TypeError, r"got torch\.int64 \(1, 9\)"),
        (torch.zeros(0, dtype=torch.int64), TypeError, "not empty"),
        ([[1, 2]], TypeError, "got list"),
    ],
)
def test_codes_that_do_not_fit(codes: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        PromptLayout(tokenizer(), config()).about_picture(codes, "a")


def test_text_that_cannot_be_encoded() -> None:
    layout = PromptLayout(tokenizer(template="{{ messages[0].content }}"), config())
    with pytest.raises(ValueError, match="text: the tokenizer cannot encode a part of 'a dog'"):
        layout.about_picture(torch.tensor([1]), "a dog")
    with pytest.raises(ValueError, match="text: no token comes of ''"):
        layout.about_picture(torch.tensor([1]), "")
    with pytest.raises(ValueError, match="cannot encode a part of 'a dog'"):
        layout.for_picture("a dog")


def test_padding() -> None:
    ids, mask = pad_left([[5, 6, 7], [8]])
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    for bad in ([], [[]], [[1], []]):
        with pytest.raises(ValueError, match="prompts: expected at least one, none of them empty"):
            pad_left(bad)


def model() -> MMadaModelLM:
    torch.manual_seed(0)
    return MMadaModelLM(config()).eval()


def test_drawing() -> None:
    layout, drawn = PromptLayout(tokenizer(), config()), {}
    for scale in (0.0, 2.0):
        settings = drawing_config(layout, steps=4, cfg_scale=scale, seed=[1, 2])
        codes, out = draw(model(), layout, ["a red cube", "a"], settings)
        assert codes.shape == (2, PICTURE) and codes.min() >= 0 and codes.max() < CODES
        assert out.steps.tolist() == [4, 4]
        assert (out.sequences[:, -1] == 5).all() and (out.accepted_at[:, -1] == -1).all()
        alone, _ = draw(model(), layout, ["a"], drawing_config(layout, steps=4, cfg_scale=scale, seed=2))
        assert torch.equal(alone[0], codes[1])
        drawn[scale] = codes
    assert not torch.equal(drawn[0.0], drawn[2.0])
    codes, out = draw(model(), layout, ["a"])
    assert int(out.steps) <= 15 and codes.shape == (1, PICTURE)


def test_drawings_that_do_not_fit() -> None:
    layout = PromptLayout(tokenizer(), config())
    with pytest.raises(TypeError, match="texts: expected a sequence of descriptions, got one text"):
        draw(model(), layout, "a red cube")
    with pytest.raises(TypeError, match="cfg_scale, steps: expected in config, from drawing_config, not beside it"):
        draw(model(), layout, ["a"], drawing_config(layout), steps=3, cfg_scale=0.0)


def test_drawings_are_guided_by_the_prompt_of_no_text() -> None:
    layout, settings = PromptLayout(tokenizer(), config()), {"steps": 4, "cfg_scale": 2.0, "seed": 3}
    codes, _ = draw(model(), layout, ["a red cube"], drawing_config(layout, **settings))
    out = wino.generate(
        model(),
        torch.tensor([layout.for_picture("a red cube")]),
        generation_config=drawing_config(layout, **settings),
        generation_ids=torch.tensor([layout.picture_region(1)]),
        unconditional_ids=torch.tensor([layout.for_picture("")]),
    )
    assert torch.equal(layout.codes_of(out.sequences[:, -PICTURE - 1 :]), codes)
    masked, _ = draw(
        model(),
        layout,
        ["a red cube"],
        drawing_config(layout, **settings),
        unconditional_ids=None,
        unconditional_mask=None,
    )
    assert not torch.equal(masked, codes)


def test_codes_of_a_decode_without_a_range() -> None:
    layout = PromptLayout(tokenizer(), config())
    tokens = torch.tensor([[*range(13, 22), 5]])
    assert layout.codes_of(tokens).tolist() == [[*range(9)]]
    tokens[0, 3] = 12
    with pytest.raises(ValueError, match=r"tokens: 12 is no image code, which are 13 \.\. 28"):
        layout.codes_of(tokens)
