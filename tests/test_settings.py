"""Settings of wino and of transformers: each does what it says, or is refused by name before the first forward pass."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import reference_loop
import torch
import transformers
from test_generation import BLOCK, DECODERS, EOS, LENGTH, MASK, PROMPT, VOCAB, config, peaked_model, prompts
from torch import Tensor

import wino
import wino_kernels
from wino.config import USED_BY
from wino.drafts import likeliest
from wino.models import Backbone, LLaDAModelLM
from wino.settings import CARRIED, HONOURED

OURS = set(vars(wino.GenerationConfig())) - set(vars(transformers.GenerationConfig())) | {
    "max_new_tokens",
    "temperature",
}
TRANSFORMERS = sorted({*vars(transformers.GenerationConfig()), *HONOURED} - OURS)


@pytest.fixture(scope="module")
def model() -> LLaDAModelLM:
    return peaked_model()


@pytest.fixture
def no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused is refused before anything runs through the layers."""

    def trunk(*_: Any, **__: Any) -> None:
        raise AssertionError("a forward pass")

    monkeypatch.setattr(Backbone, "trunk", trunk)


class Letters:
    """A tokenizer as ``stop_strings`` needs one: a letter a token."""

    eos_token_id, chat_template = None, None

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert not skip_special_tokens
        return "".join(chr(ord("A") + token) for token in ids)

    def convert_tokens_to_ids(self, token: str) -> None:
        return None


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_setting_of_transformers_is_honoured_or_refused(
    name: str, model: LLaDAModelLM, no_pass: None, tmp_path: Path
) -> None:
    """Those honoured are tested below by what they do; of all others every way in is shut."""
    if name in (*HONOURED, *CARRIED):
        assert name in wino.GenerationConfig.__doc__ or name in CARRIED
        return
    for value in (True, 7, "some", [[3, 4]], {"a": 1}):
        with pytest.raises(ValueError, match=f"^{name}: not supported, got .*Leave it out"):
            config(**{name: value})
        with pytest.raises(ValueError, match=f"^{name}: not supported"):
            wino.generate(model, prompts(1), generation_config=config(), **{name: value})
        changed = config()
        setattr(changed, name, value)
        with pytest.raises(ValueError, match=f"^{name}: not supported"):
            wino.generate(model, prompts(1), generation_config=changed)
        (tmp_path / "generation_config.json").write_text(json.dumps({name: value}))
        with pytest.raises(ValueError, match=f"{name}: not supported"):
            wino.GenerationConfig.from_pretrained(tmp_path)


def test_values_that_ask_for_nothing_are_no_settings(model: LLaDAModelLM) -> None:
    """Defaults of transformers 4 in a file, and the installed version's own."""
    defaults = {
        "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "num_beams": 1, "num_beam_groups": 1, "repetition_penalty": 1.0,
        "length_penalty": 1.0, "diversity_penalty": 0.0, "min_length": 0, "no_repeat_ngram_size": 0, "max_length": 20,
        "early_stopping": False, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "encoder_repetition_penalty": 1.0,
        "encoder_no_repeat_ngram_size": 0, "num_return_sequences": 1, "output_scores": False, "use_cache": True,
        "return_dict_in_generate": False, "renormalize_logits": False, "remove_invalid_values": False,
        "bos_token_id": 3, "transformers_version": "4.46.3", "do_sample": False,
    }  # fmt: skip
    expected = wino.generate(model, prompts(1), generation_config=config())
    assert torch.equal(wino.generate(model, prompts(1), None, config(**defaults)).sequences, expected.sequences)
    plain = transformers.GenerationConfig(eos_token_id=[EOS, 5], suppress_tokens=[4])
    taken = wino.GenerationConfig(**plain.to_diff_dict())
    assert taken.eos_token_id == [EOS, 5] and taken.suppress_tokens == [4] and taken.top_k is None


def test_a_foreign_configuration_and_wrong_names(model: LLaDAModelLM, no_pass: None) -> None:
    foreign = transformers.GenerationConfig(num_beams=3)
    with pytest.raises(TypeError, match=r"expected a wino\.GenerationConfig, got transformers.*to_diff_dict\(\)"):
        wino.generate(model, prompts(1), generation_config=foreign)
    with pytest.raises(ValueError, match="num_beams: not supported, got 3"):
        wino.GenerationConfig(**foreign.to_diff_dict())
    changed = config()
    changed.blok_length = 8
    with pytest.raises(TypeError, match="unknown settings blok_length"):
        wino.generate(model, prompts(1), generation_config=changed)
    with pytest.raises(TypeError, match="unknown settings _hidden"):
        config(_hidden=1)


def test_settings_survive_a_file(tmp_path: Path) -> None:
    settings = config(suppress_tokens=[4], eos_token_id=[0, 5], stop_strings=["a"], defer_tokens=[6], max_length=30,
                      max_new_tokens=None, temperature=1.0, top_k=9, num_return_sequences=2)  # fmt: skip
    settings.save_pretrained(tmp_path)
    loaded = wino.GenerationConfig.from_pretrained(tmp_path)
    for name in (*OURS, *HONOURED):
        assert getattr(loaded, name) == getattr(settings, name), name


@pytest.mark.parametrize("name", USED_BY)
def test_a_setting_that_the_decoder_does_not_go_by_is_refused(name: str, model: LLaDAModelLM, no_pass: None) -> None:
    values: dict[str, Any] = {"verify_last": True, "remasking": "random", "steps": 24, "answer_start": 3}
    value = values.get(name, 1 if name in ("min_accept", "max_accept") else 0.25)
    for decoder in DECODERS:
        if decoder in USED_BY[name]:
            assert getattr(config(decoder, **{name: value}), name) == value
            continue
        with pytest.raises(ValueError, match=f"^{name}: decoder {decoder} "):
            config(decoder, **{name: value})
        with pytest.raises(ValueError, match=f"^{name}: decoder {decoder} "):
            wino.generate(model, prompts(1), generation_config=config(decoder), **{name: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_sample": True}, "do_sample: True needs a temperature above 0, got temperature 0.0"),
        ({"do_sample": False, "temperature": 0.5}, "do_sample: False needs temperature 0, got temperature 0.5"),
        ({"do_sample": "yes"}, "do_sample: expected True, False or None"),
        ({"top_k": 3}, "top_k: needs a temperature above 0, got 3"),
        ({"top_p": 0.5}, "top_p: needs a temperature above 0, got 0.5"),
        ({"top_k": -1, "temperature": 1.0}, "top_k: expected an integer >= 0"),
        ({"top_p": 1.5, "temperature": 1.0}, r"top_p: expected in \(0, 1\]"),
        ({"num_return_sequences": 2}, "num_return_sequences: greedy decodes of one prompt are equal"),
        ({"num_return_sequences": 0}, "num_return_sequences: expected an integer >= 1"),
        ({"max_length": 30}, "max_length: max_new_tokens is set as well, got 30 and 24"),
        ({"max_length": 5, "max_new_tokens": None}, "max_length: the prompt alone has 6 positions, got 5"),
        ({"max_length": 29, "max_new_tokens": None}, "block_length: must divide max_new_tokens = 23, got 8"),
        ({"suppress_tokens": 4}, "suppress_tokens: expected token ids, got 4"),
        ({"suppress_tokens": [37]}, r"suppress_tokens: token ids must lie in \[0, 37\), got 37"),
        ({"suppress_tokens": list(range(37))}, "suppress_tokens: expected some token that may be drafted"),
        (
            {"begin_suppress_tokens": list(range(30)), "defer_tokens": list(range(30, 37))},
            "begin_suppress_tokens, defer_tokens: expected some token that may be drafted",
        ),
        ({"token_range": (MASK, MASK + 1)}, "token_range: expected some token that may be drafted"),
        ({"begin_suppress_tokens": [-1]}, "begin_suppress_tokens: expected token ids"),
        ({"begin_suppress_tokens": [99]}, "begin_suppress_tokens: token ids must lie in"),
        ({"defer_tokens": ["a"]}, "defer_tokens: expected token ids"),
        ({"bad_words_ids": [[3, 4]]}, r"bad_words_ids: only words of one token .* got \[3, 4\]"),
        ({"bad_words_ids": [3]}, "bad_words_ids: expected token ids, got 3"),
        ({"bad_words_ids": [[40]]}, "bad_words_ids: token ids must lie in"),
        ({"eos_token_id": "</s>"}, "eos_token_id: expected token ids"),
        ({"eos_token_id": [0, 40]}, "eos_token_id: token ids must lie in"),
        ({"pad_token_id": [0]}, "pad_token_id: expected token ids"),
        ({"stop_strings": [""]}, "stop_strings: expected texts, none of them empty"),
        ({"stop_strings": 5}, "stop_strings: expected texts"),
        ({"use_cache": False, "cache": "dual"}, "use_cache: False needs cache 'none', got cache 'dual'"),
        ({"return_dict_in_generate": "yes"}, "return_dict_in_generate: expected True or False"),
        ({"return_trace": 1}, "return_trace: expected True or False"),
    ],
)
def test_values_that_contradict_are_named(
    model: LLaDAModelLM, no_pass: None, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        wino.generate(model, prompts(2), generation_config=config(**settings))


def test_arguments_that_would_be_misread(model: LLaDAModelLM, no_pass: None) -> None:
    class Deaf:
        def put(self, value: Tensor) -> None: ...

    ids, rule = prompts(2), config()
    half = torch.full((2, PROMPT), 0.5)
    additive = torch.zeros(2, PROMPT).masked_fill(torch.arange(PROMPT) < 2, -math.inf)
    given = torch.full((2, LENGTH), MASK)
    given[0, -1] = 5
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, r"attention_mask: expected 0 \(padding\) and 1, got values in \[0.5\]", {"attention_mask": half}),
        (ValueError, "attention_mask: expected 0", {"attention_mask": additive}),
        (ValueError, "attention_mask: expected 0", {"attention_mask": torch.full((2, PROMPT), 2)}),
        (ValueError, "unconditional_mask: expected 0", {
            "cfg_scale": 1.0, "unconditional_ids": ids, "unconditional_mask": half
        }),
        (TypeError, r"streamer: expected put\(value\) and end\(\), .*Deaf has no end", {"streamer": Deaf()}),
        (TypeError, "streamer: expected put", {"streamer": print}),
        (TypeError, "tokenizer: stop_strings needs the model's tokenizer, got .*NoneType", {"stop_strings": "a"}),
        (ValueError, "stop_strings: generation_ids gives tokens", {
            "stop_strings": "a", "tokenizer": Letters(), "generation_ids": given
        }),
    ]  # fmt: skip
    for error, message, arguments in cases:
        with pytest.raises(error, match=message):
            wino.generate(model, ids, generation_config=rule, **arguments)


class Changed:
    """The model with other logits: what the plain loops decode."""

    def __init__(self, model: Any, change: Any) -> None:
        self.model, self.change = model, change

    def __call__(self, ids: Tensor, **arguments: Any) -> Any:
        output = self.model(ids, **arguments)
        output.logits = self.change(output.logits.clone(), arguments["position_ids"], ids)
        return output


def suppressed(everywhere: list[int], first: list[int], logits: Tensor, positions: Tensor, ids: Tensor) -> Tensor:
    logits[..., everywhere] = -torch.inf
    begins = positions == PROMPT
    logits[:, begins] = logits[:, begins].index_fill(-1, torch.tensor(first, dtype=torch.int64), -torch.inf)
    return logits


REFERENCES: dict[str, tuple[Any, dict[str, Any]]] = {
    "wino": (reference_loop.wino, {"threshold": 0.35, "threshold_back": 0.6}),
    "low_confidence": (reference_loop.low_confidence, {"steps": 12}),
    "confidence_threshold": (reference_loop.confidence_threshold, {"threshold": 0.5}),
}


@pytest.mark.parametrize("decoder", REFERENCES)
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_suppressed_tokens_are_as_if_their_logits_were_minus_infinity(decoder: str, backend: str) -> None:
    loop, rule = REFERENCES[decoder]
    compared = changed = 0
    for seed in range(3):
        model, ids = peaked_model(seed), prompts(4, seed=seed)
        plain = wino.generate(model, ids, None, config(decoder, **rule)).sequences[:, PROMPT:]
        frequent = plain.flatten().bincount(minlength=VOCAB).topk(4).indices.tolist()
        first = plain[:, 0].unique().tolist()
        change = partial(suppressed, frequent, first)
        settings = {
            "suppress_tokens": frequent[:3], "bad_words_ids": [frequent[3:]], "begin_suppress_tokens": first,
        }  # fmt: skip
        with wino_kernels.use_backend(backend):
            out = wino.generate(model, ids, None, config(decoder, **rule, **settings))
        assert not torch.isin(out.sequences[:, PROMPT:], torch.tensor(frequent)).any()
        assert not torch.isin(out.sequences[:, PROMPT], torch.tensor(first)).any()
        for row, prompt in enumerate(ids.tolist()):
            expected = loop(Changed(model, change), prompt, [MASK] * LENGTH, mask_id=MASK, block_length=BLOCK, **rule)
            changed += expected.tokens[PROMPT:] != plain[row].tolist()
            if expected.margin >= 1e-4:
                compared += 1
                assert out.sequences[row].tolist() == expected.tokens
                assert out.accepted_at[row].tolist() == expected.accepted_at
    assert compared >= 6 and changed >= 6


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    "extra", [{}, {"cfg_scale": 1.0}, {"temperature": 1.0, "top_p": 0.9}, {"token_range": (3, 30)}]
)
def test_suppression_with_everything_else(model: LLaDAModelLM, decoder: str, extra: dict[str, Any]) -> None:
    banned, first = list(range(3, 20)), [21, 22, 23]
    out = wino.generate(
        model, prompts(3), None,
        config(decoder, suppress_tokens=banned, begin_suppress_tokens=first, defer_tokens=[25], **extra),
    ).sequences[:, PROMPT:]  # fmt: skip
    assert (
        not torch.isin(out, torch.tensor([MASK, *banned])).any()
        and not torch.isin(out[:, 0], torch.tensor(first)).any()
    )


def test_deferred_tokens_are_filled_in_last() -> None:
    """LLaDA's ``confidence_eos_eot_inf``: its loop, written down once more."""
    deferred, steps, different = torch.tensor([4, 9, 30]), 24, 0
    for seed in range(4):
        model, ids = peaked_model(seed), prompts(3, seed=seed)
        out = wino.generate(model, ids, None, config("low_confidence", steps=steps, defer_tokens=deferred.tolist()))
        plain = wino.generate(model, ids, None, config("low_confidence", steps=steps))
        different += int((out.accepted_at != plain.accepted_at).any(1).sum())
        for row in range(len(ids)):
            x = torch.cat((ids[row], torch.full((LENGTH,), MASK)))[None]
            for step in range(steps):
                with torch.no_grad():
                    logits = model(x).logits[0].double()
                logits[:, MASK] = -torch.inf
                token = logits.argmax(-1)
                logits[:, deferred] = -torch.inf
                confidence = logits.softmax(-1).gather(-1, token[:, None])[:, 0]
                block = PROMPT + step // BLOCK * BLOCK
                inside = (torch.arange(x.shape[1]) >= block) & (torch.arange(x.shape[1]) < block + BLOCK)
                best = torch.where(inside & (x[0] == MASK), confidence, -1.0).argmax()
                x[0, best] = token[best]
            assert torch.equal(out.sequences[row], x[0])
    assert different >= 6


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_mask_is_never_drafted(decoder: str) -> None:
    """And where the published loop does not draft it either, ours decodes the same."""
    masks = equal = 0
    for seed in range(4):
        model, ids = peaked_model(seed), prompts(6, seed=seed)
        drafted_now = wino.generate(model, ids, None, config(decoder)).sequences[:, PROMPT:].flatten()
        tokens, counts = drafted_now.unique(return_counts=True)
        with torch.no_grad():  # a tie, which the lower id wins: it is drafted wherever that token was
            weight = model.model.transformer["ff_out"].weight
            weight[MASK] = weight[tokens[counts.argsort()[len(counts) // 2]]]
        outs = [wino.generate(model, ids, None, config(decoder, **settings)) for settings in ({}, {"temperature": 1.0})]
        assert not any((out.sequences == MASK).any() for out in outs)
        if decoder not in REFERENCES:
            continue
        loop, rule = REFERENCES[decoder]
        out = wino.generate(model, ids, None, config(decoder, **rule))
        for row, prompt in enumerate(ids.tolist()):
            drafted: list[bool] = []

            def watched(logits: Tensor, _: Tensor, seen: Tensor, drafted: list[bool] = drafted) -> Tensor:
                drafted.append(bool((logits.argmax(-1) == MASK)[seen == MASK].any()))
                return logits

            given = [MASK] * LENGTH
            published = loop(Changed(model, watched), prompt, given, mask_id=MASK, block_length=BLOCK, **rule)
            masks += MASK in published.tokens
            if not any(drafted) and published.margin >= 1e-4:
                equal += 1
                assert out.sequences[row].tolist() == published.tokens
    assert decoder not in REFERENCES or (masks > 0 and equal > 0), (masks, equal)


def test_a_draft_beside_the_mask_has_its_share_of_the_whole(model: LLaDAModelLM) -> None:
    """On every path to logits: fused, called, drawn, compiled."""
    loud = peaked_model()
    with torch.no_grad():
        loud.model.transformer["ff_out"].weight[MASK] = 1.01 * loud.model.transformer["ff_out"].weight[3]
        region = torch.full((2, LENGTH), MASK)
        probabilities = loud(torch.cat((prompts(2), region), dim=1)).logits[:, PROMPT : PROMPT + BLOCK].softmax(-1)
    assert (probabilities.argmax(-1) == MASK).any()
    expected = probabilities.index_fill(-1, torch.tensor([MASK]), 0).max(-1)
    rule = config("confidence_threshold", threshold=1e-30, return_trace=True)

    def check(**settings: Any) -> None:
        out = wino.generate(loud, prompts(2), None, rule, **settings)
        for row in range(2):
            assert out.trace[row][0].accepted_tokens == expected.indices[row].tolist()
            found = torch.tensor(out.trace[row][0].accepted_confidences)
            torch.testing.assert_close(found, expected.values[row], atol=1e-6, rtol=1e-5)

    for settings in ({}, {"temperature": 1.0, "top_k": 1}, {"compile_step": {"backend": "eager"}}):
        check(**settings)
    loud.model.transformer["ff_out"].register_forward_hook(lambda *_: None)
    check()


def test_top_k_and_top_p_keep_what_transformers_keeps() -> None:
    logits = torch.randn(40, 50, generator=torch.Generator().manual_seed(0)) * 3
    logits[3, 10:] = -torch.inf
    for top_k, top_p in ((1, None), (7, None), (200, None), (None, 0.3), (None, 0.95), (5, 0.6), (0, 1.0)):
        expected = logits
        if top_k:
            expected = transformers.TopKLogitsWarper(top_k)(None, expected)
        if top_p:
            expected = transformers.TopPLogitsWarper(top_p)(None, expected)
        assert torch.equal(likeliest(logits, top_k, top_p), expected > -torch.inf), (top_k, top_p)


@pytest.mark.parametrize("decoder", ["wino", "low_confidence", "confidence_threshold"])
def test_what_is_drawn_is_filtered_and_confidence_is_not(model: LLaDAModelLM, decoder: str) -> None:
    greedy = wino.generate(model, prompts(2), None, config(decoder))
    for filters in ({"top_k": 1}, {"top_p": 1e-6}):
        out = wino.generate(model, prompts(2), None, config(decoder, temperature=3.0, do_sample=True, **filters))
        assert torch.equal(out.sequences, greedy.sequences) and torch.equal(out.accepted_at, greedy.accepted_at)
    rule = config("confidence_threshold", threshold=1e-30, temperature=2.0, top_k=2, return_trace=True)
    with torch.no_grad():
        logits = model(torch.cat((prompts(1), torch.full((1, LENGTH), MASK)), dim=1)).logits[0, PROMPT : PROMPT + BLOCK]
    allowed = logits.index_fill(-1, torch.tensor([MASK]), -torch.inf).topk(2).indices
    drawn = [wino.generate(model, prompts(1), None, rule, seed=seed).trace[0][0] for seed in range(12)]
    tokens = torch.tensor([record.accepted_tokens for record in drawn])
    assert (tokens[..., None] == allowed).any(-1).all() and (tokens != tokens[0]).any()
    for record in drawn:
        share = logits.softmax(-1).gather(-1, torch.tensor(record.accepted_tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(record.accepted_confidences), share, atol=1e-5, rtol=1e-4)


def test_max_length_counts_the_prompt(model: LLaDAModelLM) -> None:
    expected = wino.generate(model, prompts(2), None, config())
    by_length = config(max_new_tokens=None, max_length=PROMPT + LENGTH)
    for out in (
        wino.generate(model, prompts(2), None, by_length),
        wino.generate(model, prompts(2), None, config(), max_length=PROMPT + LENGTH),
        wino.generate(model, prompts(2), None, by_length, max_new_tokens=LENGTH),
    ):
        assert torch.equal(out.sequences, expected.sequences)


def test_copies_are_draws_of_their_own(model: LLaDAModelLM) -> None:
    ids, seeds = prompts(2), [5, 8]
    rule = {"temperature": [1.0, 1.5], "threshold": [0.5, 0.4]}
    out = wino.generate(model, ids, None, config(seed=seeds, num_return_sequences=3, **rule))
    assert out.sequences.shape == (6, PROMPT + LENGTH) and out.steps.shape == (6,)
    for copy in range(3):
        alone = wino.generate(model, ids, None, config(seed=[seed + copy * 2**32 for seed in seeds], **rule))
        assert torch.equal(out.sequences[copy::3], alone.sequences)
        assert torch.equal(out.accepted_at[copy::3], alone.accepted_at)
    assert not torch.equal(out.sequences[0], out.sequences[1])
    one = wino.generate(model, ids, None, config(seed=5, num_return_sequences=2, **rule))
    for copy in range(2):  # one seed serves every sequence, as without copies
        alone = wino.generate(model, ids, None, config(seed=5 + copy * 2**32, **rule))
        assert torch.equal(one.sequences[copy::2], alone.sequences)


def test_what_stands_behind_an_early_end_is_a_token(model: LLaDAModelLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings are checked apart; this is what a checkpoint says of itself, and the mask."""

    def refused(filler: int, **settings: Any) -> None:
        with pytest.raises(ValueError, match=rf"pad_token_id, else the first end token, .* got {filler}"):
            wino.generate(model, prompts(1), None, config(stop_at_eos=True, **settings))

    mask = model.config.mask_token_id
    refused(mask, eos_token_id=mask)
    refused(mask, eos_token_id=4, pad_token_id=mask)
    monkeypatch.setattr(model.config, "eos_token_id", model.config.vocab_size)
    refused(model.config.vocab_size)
    wino.generate(model, prompts(1), None, config())  # nothing is put anywhere


def test_several_end_tokens_end_a_sequence(model: LLaDAModelLM) -> None:
    ids = prompts(4)
    plain = wino.generate(model, ids, None, config()).sequences[:, PROMPT:]
    ends = plain[0, :BLOCK].unique().tolist()
    assert len(ends) > 1

    def decode(**settings: Any) -> wino.GenerationOutput:
        return wino.generate(model, ids[:1], None, config(stop_at_eos=True, **settings))

    out = decode(eos_token_id=ends)
    assert torch.equal(out.sequences[0, PROMPT : PROMPT + BLOCK], plain[0, :BLOCK])
    assert (out.sequences[0, PROMPT + BLOCK :] == ends[0]).all() and (out.accepted_at[0, BLOCK:] == -1).all()
    padded = decode(eos_token_id=ends, pad_token_id=3)
    assert (padded.sequences[0, PROMPT + BLOCK :] == 3).all() and padded.steps[0] == out.steps[0]
    assert torch.equal(decode(eos_token_id=ends[:1]).sequences[0, PROMPT:], plain[0])
    before = model.config.eos_token_id
    try:  # the model's own list
        model.config.eos_token_id = ends
        assert torch.equal(decode().sequences, out.sequences)
        model.config.eos_token_id = None
        with pytest.raises(ValueError, match="stop_at_eos: the model's configuration has no eos_token_id"):
            decode()
        assert torch.equal(decode(eos_token_id=ends).sequences, out.sequences)
    finally:
        model.config.eos_token_id = before


@pytest.mark.parametrize("decoder", ["wino", "low_confidence", "prophet"])
def test_stop_strings_end_a_sequence_behind_them(model: LLaDAModelLM, decoder: str) -> None:
    letters, ids = Letters(), prompts(3)
    plain = wino.generate(model, ids, None, config(decoder))
    texts = [letters.decode(row.tolist(), skip_special_tokens=False) for row in plain.sequences[:, PROMPT:]]
    for first in (2, BLOCK - 1, BLOCK + 3):  # within a block, over the end of one, in a later one
        stop = texts[0][first : first + 2]
        out = wino.generate(model, ids, None, config(decoder, stop_strings=[stop, "no such"]), tokenizer=letters)
        for row, text in enumerate(texts):
            end = text.index(stop) + 2 if stop in text else LENGTH
            assert (
                out.sequences[row, PROMPT : PROMPT + end].tolist()
                == plain.sequences[row, PROMPT : PROMPT + end].tolist()
            )
            assert (out.sequences[row, PROMPT + end :] == EOS).all()
            assert torch.equal(out.accepted_at[row, :end], plain.accepted_at[row, :end])
            assert (out.accepted_at[row, end:] == -1).all()
            blocks = -(-end // BLOCK)
            if decoder != "prophet" and blocks < LENGTH // BLOCK:
                assert out.steps[row] < plain.steps[row]
    model_without = peaked_model()
    model_without.config.eos_token_id = None
    with pytest.raises(ValueError, match="stop_strings: the model has no eos_token_id; set pad_token_id"):
        wino.generate(model_without, ids, None, config(stop_strings="x"), tokenizer=letters)


def test_steps_with_settings_are_compiled_and_captured_whole(model: LLaDAModelLM) -> None:
    settings = config(temperature=1.0, top_k=5, top_p=0.9, suppress_tokens=[4], begin_suppress_tokens=[7],
                      defer_tokens=[9], stop_at_eos=True, eos_token_id=[0, 5])  # fmt: skip
    plain = wino.generate(model, prompts(2), None, settings)
    torch._dynamo.reset()
    out = wino.generate(model, prompts(2), None, settings, compile_step={"backend": "eager"})
    assert torch.equal(out.sequences, plain.sequences) and torch.equal(out.accepted_at, plain.accepted_at)
