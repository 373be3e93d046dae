"""Whole decodes of random models, token for token against the plain-Python loop, on the best backend and the eager one.

Randomly initialised models accept one token a step and doubt none; these are scaled so that several tokens pass the
threshold, and the tests assert how often each branch of the rule ran.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import reference_loop
import torch
from reference_loop import ReferenceDecode

import wino
import wino_kernels
from wino.decoders import prophet
from wino.models import LLaDAConfig, LLaDAModelLM

MASK, VOCAB, LENGTH = 1, 40, 32
MARGIN = 1e-4  # docs/spec.md section 6: decodes are promised to be equal at this distance from ties and thresholds
PROMPTS_PER_MODEL = 12
THRESHOLDS = ((0.3, 0.6), (0.4, 0.2), (0.35, 0.8))


def random_model(seed: int) -> LLaDAModelLM:
    """Sharp predictions that depend on the context, and never the mask token itself."""
    torch.manual_seed(seed)
    config = LLaDAConfig(
        d_model=32, n_heads=4, n_kv_heads=(4, 2, 1)[seed % 3], n_layers=2, mlp_hidden_size=64, vocab_size=VOCAB,
        max_sequence_length=128, rope_theta=10000.0, mask_token_id=MASK, eos_token_id=0, pad_token_id=0,
        init_std=0.1 + 0.03 * (seed % 4),
    )  # fmt: skip
    model = LLaDAModelLM(config).eval()
    with torch.no_grad():
        model.model.transformer["wte"].weight.normal_(std=0.3)
        model.model.transformer["ff_out"].weight.normal_(std=(3 + seed % 2) / 32**0.5)
        model.model.transformer["ff_out"].weight[MASK] = 0
    return model


def random_prompts(rng: random.Random) -> list[list[int]]:
    return [[rng.randrange(2, VOCAB) for _ in range(rng.randrange(1, 12))] for _ in range(PROMPTS_PER_MODEL)]


def generate(
    model: Any, prompts: list[list[int]], generation: list[list[int]], **settings: Any
) -> wino.GenerationOutput:
    """All prompts in one left-padded batch, as many tokens as ``generation`` has."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    real = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    config = wino.GenerationConfig(max_new_tokens=len(generation[0]), **settings)
    return wino.generate(model, ids, real, config, generation_ids=torch.tensor(generation))


def assert_equal(out: wino.GenerationOutput, row: int, expected: ReferenceDecode) -> None:
    length = len(expected.accepted_at)
    assert out.sequences[row, -length:].tolist() == expected.tokens[-length:]
    assert int(out.steps[row]) == expected.steps
    assert out.accepted_at[row].tolist() == expected.accepted_at


def compare(
    model: Any,
    prompts: list[list[int]],
    generation: list[list[int]],
    settings: dict[str, Any],
    reference: Callable[[list[int], list[int]], ReferenceDecode],
) -> Counter[str]:
    """Decode on each backend and by the reference; returns the reference's branches over the sequences compared."""
    expected = [reference(prompt, given) for prompt, given in zip(prompts, generation, strict=True)]
    for backend in ("auto", "eager"):
        with wino_kernels.use_backend(backend):
            out = generate(model, prompts, generation, **settings)
        for row, decode in enumerate(expected):
            if decode.margin >= MARGIN:
                assert_equal(out, row, decode)
    kept = [decode for decode in expected if decode.margin >= MARGIN]
    return sum((decode.branches for decode in kept), Counter(decodes=len(kept), steps=sum(d.steps for d in kept)))


def test_wino_equals_the_specified_loop() -> None:
    ran: Counter[str] = Counter()
    for seed in range(26):
        rng = random.Random(seed)
        model, prompts = random_model(seed), random_prompts(rng)
        block_length = rng.choice((8, 16, 32))
        threshold, threshold_back = THRESHOLDS[seed % len(THRESHOLDS)]
        rule = {"block_length": block_length, "threshold": threshold, "threshold_back": threshold_back}
        ran += compare(
            model,
            prompts,
            [[MASK] * LENGTH] * len(prompts),
            {"decoder": "wino", **rule},
            partial(reference_loop.wino, model, mask_id=MASK, **rule),
        )
    assert ran["decodes"] >= 200
    assert 3 <= ran["accepted tokens"] / ran["steps"] <= 10
    for branch in ("capped", "none above threshold", "one accepted", "all doubted re-masked", "cut to last - 1"):
        assert ran[branch] >= 100, ran


def sure_model(seed: int, prompt: list[int], length: int) -> LLaDAModelLM:
    """So scaled that all but 20 of a masked prompt's positions lead by 18 or more: 1 less 2e-8, and less than that."""
    model = random_model(seed)
    ids = torch.tensor([[*prompt, *[MASK] * length]])
    with torch.no_grad():
        top, second = model(ids).logits[0, len(prompt) :].topk(2).values.T
        model.model.transformer["ff_out"].weight.mul_(18 / (top - second).sort().values[20])
    return model


def test_saturated_confidences_keep_the_published_order() -> None:
    """Float32 takes more confidences of a step for 1 than are accepted: float64 softmaxes rank them, and so does ours.

    Tokens may not hang on the order; the step at which each was accepted, from which WINO+ learns, does.
    """
    ran: Counter[str] = Counter()
    length = 64
    rule = {"block_length": length, "threshold": 0.6, "threshold_back": 0.9}
    for seed in (40, 68, 72, 64):
        rng = random.Random(seed)
        prompts = [*random_prompts(rng), *random_prompts(rng)]
        model = sure_model(seed, prompts[0], length)
        expected = [reference_loop.wino(model, p, [MASK] * length, mask_id=MASK, **rule) for p in prompts]
        for backend in ("auto", "eager"):
            with wino_kernels.use_backend(backend):
                out = generate(model, prompts, [[MASK] * length] * len(prompts), decoder="wino", **rule)
            for row, decode in enumerate(expected):
                if decode.value_margin >= MARGIN and decode.rank_margin >= 1e-3 and decode.branches["saturated"]:
                    assert_equal(out, row, decode)
                    ran[backend] += 1
    assert ran["auto"] == ran["eager"] >= 50, ran


def test_infilling_and_verify_last_equal_the_specified_loop() -> None:
    ran: Counter[str] = Counter()
    for seed in range(6):
        rng = random.Random(seed)
        model, prompts = random_model(seed), random_prompts(rng)
        generation = [[rng.randrange(2, VOCAB) if rng.random() < 0.3 else MASK for _ in range(LENGTH)] for _ in prompts]
        rule = {"block_length": 16, "threshold": 0.3, "threshold_back": 0.6, "verify_last": seed > 0}
        ran += compare(
            model,
            prompts,
            generation,
            {"decoder": "wino", **rule},
            partial(reference_loop.wino, model, mask_id=MASK, **rule),
        )
    assert ran["decodes"] >= 20 and ran["verify pass"] >= 20


@pytest.mark.parametrize("steps", [32, 12, 2])
def test_low_confidence_equals_the_specified_loop(steps: int) -> None:
    ran: Counter[str] = Counter()
    for seed in range(2):
        model, prompts = random_model(seed), random_prompts(random.Random(seed))
        rule = {"block_length": 16, "steps": steps}
        ran += compare(
            model,
            prompts,
            [[MASK] * LENGTH] * len(prompts),
            {"decoder": "low_confidence", **rule},
            partial(reference_loop.low_confidence, model, mask_id=MASK, **rule),
        )
    assert ran["decodes"] >= 8 and ran["steps"] == steps * ran["decodes"]


def prophet_model(seed: int) -> LLaDAModelLM:
    """Between hesitant and sure, so that early commits happen in every phase of a decode, and never."""
    model = random_model(seed)
    with torch.no_grad():
        model.model.transformer["ff_out"].weight.mul_((0.6, 1.0, 1.5, 2.5, 4.0)[seed % 5])
    return model


@pytest.mark.parametrize("answer_start", [None, 0, 20, 27])
def test_prophet_equals_the_specified_loop(answer_start: int | None) -> None:
    ran: Counter[str] = Counter()
    for seed in range(15):
        rng = random.Random(seed)
        model, prompts = prophet_model(seed), random_prompts(rng)
        given = 0.3 if seed % 3 == 0 else 0.0
        generation = [
            [rng.randrange(2, VOCAB) if rng.random() < given else MASK for _ in range(LENGTH)] for _ in prompts
        ]
        rule = {"block_length": rng.choice((8, 16, 32)), "steps": rng.choice((8, 16, 32)), "answer_start": answer_start}
        ran += compare(
            model,
            prompts,
            generation,
            {"decoder": "prophet", **rule},
            partial(reference_loop.prophet, model, mask_id=MASK, **rule),
        )
    assert ran["decodes"] >= 60
    for branch in ("committed at 7.5", "committed at 5.0", "committed at 2.5", "never committed"):
        assert ran[branch] >= 2, ran


def test_prophet_in_phases_of_its_own_sequence() -> None:
    """Sequences of one batch commit in different steps; the others go on as they would alone."""
    model = prophet_model(3)
    prompts = [[2 + i] * (1 + i) for i in range(6)]
    together = generate(model, prompts, [[MASK] * LENGTH] * 6, decoder="prophet", block_length=16)
    assert len(set(together.steps.tolist())) >= 3
    for row, prompt in enumerate(prompts):
        alone = generate(model, [prompt], [[MASK] * LENGTH], decoder="prophet", block_length=16)
        assert torch.equal(alone.sequences[0, -LENGTH:], together.sequences[row, -LENGTH:])


def test_the_gap_of_two_largest_logits() -> None:
    """Against sorting; ties, a vocabulary of one, a token that cannot be."""
    logits = torch.randn(3, 5, 30)
    logits[..., MASK] = -9
    top = logits.sort(-1).values
    (gaps,) = prophet.draft_gap(logits, MASK)
    assert torch.equal(gaps, top[..., -1] - top[..., -2])
    logits[0, 0, 21] = logits[0, 0, 3] = 9.0
    logits[0, 1, :28] = -torch.inf
    (gaps,) = prophet.draft_gap(logits, MASK)
    assert gaps[0, 0] == 0 and gaps[0, 1] == (logits[0, 1, 28] - logits[0, 1, 29]).abs()
    assert torch.equal(prophet.draft_gap(logits[..., :1], MASK)[0], torch.zeros(3, 5))
    logits[1, 0, MASK] = logits[1, 0].max() + 2  # what is drafted is below it
    torch.testing.assert_close(prophet.draft_gap(logits, MASK)[0][1, 0], torch.tensor(-2.0))
    assert (prophet.draft_gap(logits, MASK - 40)[0] >= 0).all()


@pytest.mark.parametrize("answer_start", [None, 20])
def test_prophet_is_not_sure_of_a_mask(answer_start: int | None) -> None:
    model = prophet_model(0)
    rule = {"decoder": "prophet", "block_length": 16, "steps": 16, "answer_start": answer_start}
    lift = torch.nn.functional.one_hot(torch.tensor(MASK), VOCAB) * 50.0
    model.model.transformer["ff_out"].register_forward_hook(lambda module, inputs, logits: logits + lift)
    out = generate(model, [[3, 4]], [[MASK] * LENGTH], **rule)
    assert out.steps[0] == 16 and not (out.sequences == MASK).any()


def test_confidence_threshold_equals_the_specified_loop() -> None:
    ran: Counter[str] = Counter()
    for seed in range(4):
        model, prompts = random_model(seed), random_prompts(random.Random(seed))
        rule = {"block_length": 16, "threshold": 0.5}
        ran += compare(
            model,
            prompts,
            [[MASK] * LENGTH] * len(prompts),
            {"decoder": "confidence_threshold", **rule},
            partial(reference_loop.confidence_threshold, model, mask_id=MASK, **rule),
        )
    assert ran["decodes"] >= 30 and LENGTH * ran["decodes"] > 2 * ran["steps"]
