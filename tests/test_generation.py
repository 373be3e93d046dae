"""The loop: what every decoder returns, records and refuses."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

import wino
import wino.config
import wino.decoders
import wino_kernels
from wino.models import LLaDAConfig, LLaDAModelLM

MASK, EOS, VOCAB, PROMPT, LENGTH, BLOCK = 1, 0, 37, 6, 24, 8
DECODERS = ("wino", "low_confidence", "confidence_threshold", "prophet", "maskgit")


def peaked_model(seed: int = 0, scale: float = 6.0) -> LLaDAModelLM:
    """A random model whose predictions are sharp enough that several tokens pass the thresholds in a step."""
    torch.manual_seed(seed)
    config = LLaDAConfig(
        d_model=32, n_heads=4, n_layers=2, mlp_hidden_size=64, vocab_size=VOCAB, max_sequence_length=64,
        rope_theta=10000.0, mask_token_id=MASK, eos_token_id=EOS, pad_token_id=EOS, init_std=0.3,
    )  # fmt: skip
    model = LLaDAModelLM(config).eval()
    with torch.no_grad():
        model.model.transformer["ff_out"].weight.mul_(scale / config.init_std / 32**0.5)
        model.model.transformer["ff_out"].weight[MASK] = 0
    return model


@pytest.fixture(scope="module")
def model() -> LLaDAModelLM:
    return peaked_model()


def prompts(batch: int, length: int = PROMPT, seed: int = 1) -> Tensor:
    return torch.randint(2, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def config(decoder: str = "wino", **settings: object) -> wino.GenerationConfig:
    rule = {"threshold": 0.5} if decoder in ("wino", "confidence_threshold") else {}
    return wino.GenerationConfig(
        **{"decoder": decoder, "max_new_tokens": LENGTH, "block_length": BLOCK, **rule, **settings}
    )


def fitting(decoder: str, **settings: object) -> wino.GenerationConfig:
    """``config`` with those of ``settings`` that ``decoder`` goes by."""
    own = {name: value for name, value in settings.items() if decoder in wino.config.USED_BY.get(name, DECODERS)}
    return config(decoder, **own)


@pytest.mark.parametrize("decoder", DECODERS)
def test_output_is_complete_and_consistent(model: LLaDAModelLM, decoder: str) -> None:
    ids, settings = prompts(3), config(decoder, return_trace=True)
    out = wino.generate(model, ids, generation_config=settings)
    assert out.sequences.shape == (3, PROMPT + LENGTH)
    assert torch.equal(out.sequences[:, :PROMPT], ids)
    assert not (out.sequences == MASK).any()
    assert (out.accepted_at.amax(1) < out.steps).all() and (out.accepted_at >= 0).all()
    for row in range(3):
        assert len(out.trace[row]) == out.steps[row]
        replayed, at = torch.full((LENGTH,), MASK), torch.full((LENGTH,), -1)
        for record in out.trace[row]:
            assert (replayed[record.accepted_positions] == MASK).all()
            replayed[record.accepted_positions] = torch.tensor(record.accepted_tokens, dtype=torch.int64)
            at[record.accepted_positions] = record.step
            assert replayed[record.remasked_positions].tolist() == record.remasked_tokens
            replayed[record.remasked_positions] = MASK
            at[record.remasked_positions] = -1
            block_of = [p // settings.block_size for p in record.accepted_positions + record.remasked_positions]
            assert set(block_of) <= {record.block}
        assert torch.equal(replayed, out.sequences[row, PROMPT:])
        assert torch.equal(at, out.accepted_at[row])


def test_wino_really_revokes() -> None:
    revoked = sum(
        len(record.remasked_positions)
        for seed in range(5)
        for history in wino.generate(peaked_model(seed), prompts(4), generation_config=config(return_trace=True)).trace
        for record in history
    )
    assert revoked > 0


@pytest.mark.parametrize("decoder", DECODERS)
def test_left_padding_and_company_change_nothing(model: LLaDAModelLM, decoder: str) -> None:
    lengths = (2, 5, 9)
    alone = [wino.generate(model, prompts(1, n, seed=n), generation_config=config(decoder)) for n in lengths]
    longest = max(lengths)
    ids, mask = torch.full((3, longest), EOS), torch.zeros(3, longest, dtype=torch.long)
    for row, n in enumerate(lengths):
        ids[row, longest - n :], mask[row, longest - n :] = prompts(1, n, seed=n)[0], 1
    together = wino.generate(model, ids, mask, config(decoder))
    for row, single in enumerate(alone):
        assert torch.equal(together.sequences[row, longest:], single.sequences[0, lengths[row] :])
        assert together.steps[row] == single.steps[0]
        assert torch.equal(together.accepted_at[row], single.accepted_at[0])


@pytest.mark.parametrize("decoder", DECODERS)
def test_given_tokens_stay(model: LLaDAModelLM, decoder: str) -> None:
    given = torch.full((2, LENGTH), MASK)
    given[0, 3], given[0, BLOCK : 2 * BLOCK], given[1, ::2] = 7, 9, 11
    out = wino.generate(model, prompts(2), generation_config=config(decoder), generation_ids=given)
    fixed = given != MASK
    assert torch.equal(out.sequences[:, PROMPT:][fixed], given[fixed])
    assert (out.accepted_at[fixed] == -1).all() and (out.accepted_at[~fixed] >= 0).all()
    nothing_to_do = wino.generate(
        model, prompts(1), generation_config=config(decoder), generation_ids=torch.full((1, LENGTH), 5)
    )
    assert nothing_to_do.steps.tolist() == [0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"answer_start": -1}, "answer_start: expected an integer >= 0, got -1"),
        ({"answer_start": LENGTH - 4}, f"answer_start: expected at most {LENGTH - 5}, 5 positions before the end"),
        ({"stop_at_eos": True}, "stop_at_eos: decoder prophet has False only, got True"),
        ({"remasking": "random"}, "remasking: decoder prophet has 'low_confidence' only, got 'random'"),
    ],
)
def test_what_prophet_refuses(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config("prophet", **settings)


def test_low_confidence_takes_the_published_number_a_step(model: LLaDAModelLM) -> None:
    out = wino.generate(model, prompts(1), generation_config=config("low_confidence", steps=9, return_trace=True))
    assert [len(r.accepted_positions) for r in out.trace[0]] == [3, 3, 2] * 3
    assert out.steps.tolist() == [9]


def test_random_remasking_and_sampling_follow_the_seed(model: LLaDAModelLM) -> None:
    def decode(**settings: object) -> Tensor:
        out = wino.generate(model, prompts(1).repeat(2, 1), generation_config=config("low_confidence", **settings))
        return torch.cat((out.sequences[:, PROMPT:], out.accepted_at), dim=1)

    for settings in ({"remasking": "random"}, {"temperature": 1.5}):
        first = decode(seed=3, **settings)
        assert torch.equal(first, decode(seed=3, **settings))
        assert not torch.equal(first, decode(seed=4, **settings))
        assert torch.equal(first[0], first[1])
        mixed = decode(seed=[3, 4], **settings)
        assert torch.equal(mixed[0], first[0]) and not torch.equal(mixed[1], first[1])


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("settings", [{"temperature": 1.0}, {"cfg_scale": 1.0}, {"temperature": 0.7, "cfg_scale": 0.5}])
def test_draws_and_guidance_ignore_padding_and_company(
    model: LLaDAModelLM, decoder: str, settings: dict[str, float]
) -> None:
    lengths, seeds = (3, 8), (11, 2**63 + 5)
    ids, mask = torch.full((2, 8), EOS), torch.zeros(2, 8, dtype=torch.long)
    for row, n in enumerate(lengths):
        ids[row, 8 - n :], mask[row, 8 - n :] = prompts(1, n, seed=n)[0], 1
    together = wino.generate(model, ids, mask, config(decoder, seed=list(seeds), **settings))
    for row, n in enumerate(lengths):
        alone = wino.generate(model, prompts(1, n, seed=n), None, config(decoder, seed=seeds[row], **settings))
        assert torch.equal(together.sequences[row, 8:], alone.sequences[0, n:])
        assert torch.equal(together.accepted_at[row], alone.accepted_at[0])


def test_row_seeds_are_those_of_the_specification(model: LLaDAModelLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def mix(value: int) -> int:
        value = (value + 0x9E3779B97F4A7C15) % 2**64
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        return value ^ value >> 31

    seen: list[Tensor] = []
    score = wino_kernels.linear_score_tokens

    def recording(*arguments: object, seed: Tensor, **settings: object) -> object:
        seen.append(seed.clone())
        return score(*arguments, seed=seed, **settings)

    monkeypatch.setattr(wino_kernels, "linear_score_tokens", recording)
    ids, mask = prompts(1, 5), torch.tensor([[0, 0, 1, 1, 1]])
    wino.generate(model, ids, mask, config("low_confidence", temperature=1.0, seed=77))
    assert len(seen) == LENGTH
    for step, seeds in enumerate(seen):
        first = 3 + step // BLOCK * BLOCK  # counted from the first real token
        expected = [mix((mix((mix(77) + step) % 2**64) + first + j) % 2**64) for j in range(BLOCK)]
        assert [int(s) % 2**64 for s in seeds[0]] == expected


def test_guidance_is_guidance_of_the_logits(model: LLaDAModelLM) -> None:
    scale, ids = 1.5, prompts(1)
    full = torch.cat((ids, torch.full((1, LENGTH), MASK)), dim=1)
    unguided = full.clone()
    unguided[:, :PROMPT] = MASK
    with torch.no_grad():
        logits, free = model(full).logits, model(unguided).logits
    best = (free + (scale + 1) * (logits - free))[0, PROMPT : PROMPT + BLOCK].softmax(-1).max(-1)
    out = wino.generate(model, ids, generation_config=config("low_confidence", cfg_scale=scale, return_trace=True))
    first = out.trace[0][0]
    assert first.accepted_positions == [int(best.values.argmax())]
    assert first.accepted_tokens == [int(best.indices[best.values.argmax()])]
    assert first.accepted_confidences[0] == pytest.approx(float(best.values.max()), rel=1e-4)


def test_per_sequence_thresholds(model: LLaDAModelLM) -> None:
    ids = prompts(1).repeat(2, 1)
    both = wino.generate(model, ids, generation_config=config("confidence_threshold", threshold=[0.3, 1.0]))
    for row, threshold in enumerate((0.3, 1.0)):
        single = wino.generate(model, ids[:1], generation_config=config("confidence_threshold", threshold=threshold))
        assert torch.equal(both.sequences[row], single.sequences[0]) and both.steps[row] == single.steps[0]
    assert both.steps[0] < both.steps[1]


class Recorder:
    def __init__(self) -> None:
        self.puts: list[Tensor] = []
        self.drafts: list[Tensor] = []
        self.records: list[object] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.puts.append(value)

    def put_draft(self, value: Tensor) -> None:
        self.drafts.append(value.clone())

    def put_step(self, step: int, tokens: Tensor, records: list[object]) -> None:
        self.records.append((step, records))

    def end(self) -> None:
        self.ended = True


def test_streamer_sees_every_step(model: LLaDAModelLM) -> None:
    streamer = Recorder()
    out = wino.generate(model, prompts(2), generation_config=config(), streamer=streamer)
    assert torch.equal(streamer.puts[0], prompts(2)) and torch.equal(streamer.puts[1], out.sequences[:, PROMPT:])
    assert len(streamer.drafts) == len(streamer.records) == int(out.steps.max())
    assert torch.equal(streamer.drafts[-1], out.sequences[:, PROMPT:]) and streamer.ended


def test_nan_logits_are_named_and_nothing_is_returned() -> None:
    broken = peaked_model()
    with torch.no_grad():
        broken.model.transformer["ff_out"].weight[5, 0] = float("nan")
    for decoder in DECODERS:
        with pytest.raises(FloatingPointError, match=r"sequence 0, generated position 0, step 0"):
            wino.generate(broken, prompts(2), generation_config=config(decoder))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_length": 7}, "block_length: must divide"),
        ({"threshold": 0.0}, r"threshold: expected in \(0, 1\]"),
        ({"threshold": 1.5}, r"threshold: expected in \(0, 1\]"),
        ({"threshold": float("nan")}, r"threshold: expected"),
        ({"threshold_back": -1}, r"threshold_back: expected"),
        ({"decoder": "fastest"}, "decoder: expected one of wino"),
        ({"remasking": "none"}, "remasking: expected one of"),
        ({"steps": 7}, "steps: must be a multiple"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected an integer >= 1"),
        ({"temperature": -0.1}, "temperature: expected"),
        ({"seed": 0.5}, "seed: expected an integer"),
        ({"accept_fraction": [0.5]}, "accept_fraction: expected in"),
        ({"cfg_scale": [0.5]}, "cfg_scale: expected a finite number"),
        ({"verify_last": "no"}, "verify_last: expected True or False"),
        ({"cache": "yes"}, "cache: expected one of none, prefix, dual"),
        ({"cache_refresh": 2}, "cache_refresh: needs cache to be prefix or dual"),
        ({"cache": "dual", "cache_refresh": 0}, "cache_refresh: expected an integer >= 1"),
        ({"stop_at_eos": 1}, "stop_at_eos: expected True or False"),
        ({"compile_step": "fast"}, "compile_step: expected True, False or arguments"),
        ({"cuda_graph": True}, "cuda_graph: expected a model on a CUDA device, it is on cpu"),
        ({"threshold": [0.5, 0.5, 0.5]}, "threshold: expected one value or one for each of the 2"),
        (
            {"max_new_tokens": 80, "block_length": 8},
            "with the generation they need 86 positions, the model's limit is 64",
        ),
    ],
)
def test_bad_settings_are_named(model: LLaDAModelLM, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wino.generate(model, prompts(2), generation_config=config(**settings))
    if "max_new_tokens" not in settings:
        with pytest.raises(ValueError, match=message):
            wino.generate(model, prompts(2), generation_config=config(), **settings)


@pytest.mark.parametrize("mask_id", [-1, 37, 126336])
def test_a_mask_id_outside_the_vocabulary_is_named(
    model: LLaDAModelLM, mask_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.config, "mask_token_id", mask_id)
    with pytest.raises(ValueError, match=rf"mask_token_id .*in \[0, 37\), got {mask_id}"):
        wino.generate(model, prompts(2), generation_config=config())


def test_bad_inputs_are_named(model: LLaDAModelLM) -> None:
    good = prompts(2)
    masked = good.clone()
    masked[0, 2] = MASK
    hole = torch.tensor([[1, 0, 1, 1, 1, 1]] * 2)
    right_padded = torch.tensor([[1, 1, 1, 1, 1, 0]] * 2)
    cases = [
        (ValueError, "mask token", {"input_ids": masked}),
        (ValueError, "prompt is empty", {"input_ids": good[:, :0]}),
        (ValueError, "prompts not empty", {"input_ids": good, "attention_mask": torch.zeros(2, PROMPT)}),
        (ValueError, "hole inside", {"input_ids": good, "attention_mask": hole}),
        (ValueError, "left padding", {"input_ids": good, "attention_mask": right_padded}),
        (ValueError, "attention_mask: expected a tensor", {"input_ids": good, "attention_mask": hole[:1]}),
        (ValueError, "attention_mask: expected a tensor", {"input_ids": good, "attention_mask": hole.tolist()}),
        (ValueError, "generation_ids: expected an int64 tensor", {"input_ids": good, "generation_ids": [[1]]}),
        (TypeError, "int64 tensor", {"input_ids": good.float()}),
        (TypeError, "int64 tensor", {"input_ids": [[1, 2]]}),
        (ValueError, r"token ids must lie in \[0, 37\), got 99", {"input_ids": torch.full((1, 3), 99)}),
        (ValueError, "generation_ids", {"input_ids": good, "generation_ids": good}),
        (TypeError, "unknown settings", {"input_ids": good, "treshold": 0.5}),
        (TypeError, "GenerationConfig", {"input_ids": good, "generation_config": {"threshold": 0.5}}),
    ]
    for error, message, arguments in cases:
        with pytest.raises(error, match=message):
            wino.generate(model, **{"generation_config": config(), **arguments})
    with pytest.raises(TypeError, match="unknown settings blok_length"):
        wino.GenerationConfig(blok_length=8)
    with pytest.raises(TypeError, match="LLaDAModelLM"):
        wino.generate(torch.nn.Linear(2, 2), good, generation_config=config())


def test_every_decoder_has_its_name_in_the_configuration() -> None:
    assert tuple(wino.decoders.DECODERS) == wino.config.DECODER_NAMES == DECODERS


def test_config_is_a_transformers_config(tmp_path: object) -> None:
    settings = config(threshold=0.7, verify_last=True, seed=5)
    settings.save_pretrained(tmp_path)
    loaded = wino.GenerationConfig.from_pretrained(tmp_path)
    for name in (
        "decoder",
        "threshold",
        "threshold_back",
        "verify_last",
        "seed",
        "block_length",
        "max_new_tokens",
        "temperature",
    ):
        assert getattr(loaded, name) == getattr(settings, name), name
    assert json.loads(settings.to_json_string())["threshold"] == 0.7
