"""Pictures' decoder: MaskGIT over a range of the vocabulary, with and without noise and guidance."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import reference_loop
import torch
from torch import Tensor

import wino
import wino_kernels
from wino.config import DECODER_NAMES
from wino.models import MMadaConfig, MMadaModelLM
from wino_kernels.eager.philox import gumbel_noise

MASK, TEXT, CODES = 1, 24, 16
RANGE = (TEXT, TEXT + CODES)
MARGIN = 1e-4


def random_model(seed: int) -> MMadaModelLM:
    torch.manual_seed(seed)
    config = MMadaConfig(
        d_model=32, n_heads=4, n_layers=2, mlp_hidden_size=64, vocab_size=TEXT + CODES + 8, codebook_size=CODES,
        num_vq_tokens=16, max_sequence_length=96, rope_theta=10000.0, mask_token_id=MASK, eos_token_id=0,
        pad_token_id=0, init_std=0.15,
    )  # fmt: skip
    model = MMadaModelLM(config).eval()
    with torch.no_grad():
        model.model.transformer["wte"].weight.normal_(std=0.3)
        model.model.transformer["ff_out"].weight.normal_(std=3 / 32**0.5)
    return model


def row_seed(seed: int, step: int, position: int) -> Tensor:
    return wino_kernels.row_seeds(seed, step, torch.tensor([position]))


def greedy(step: int, position: int, logits: Tensor) -> int:
    return int(logits.argmax())


def drawn(seed: int, temperature: float) -> Callable[[int, int, Tensor], int]:
    """By docs/spec.md section 6's noise."""

    def draw(step: int, position: int, logits: Tensor) -> int:
        noise = gumbel_noise(row_seed(seed, step, position), len(logits))[0]
        return int((logits + temperature * noise).argmax())

    return draw


def choice_noise(seed: int) -> Callable[[int, int], float]:
    def noise(step: int, position: int) -> float:
        word = int(wino_kernels.splitmix64(row_seed(seed, step, position))) >> 40 & 0xFFFFFF
        return -math.log(max(-math.log(max(word * 2.0**-24, 1e-20)), 1e-20))

    return noise


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(("temperature", "choice"), [(0.0, 0.0), (1.0, 1.0), (0.7, 4.0)])
def test_equals_the_plain_loop(backend: str, guided: bool, temperature: float, choice: float) -> None:
    compared = 0
    for seed in range(8):
        rng, model = random.Random(seed), random_model(seed)
        prompt = [rng.randrange(2, TEXT) for _ in range(rng.randrange(2, 9))]
        other = prompt[: rng.randrange(1, len(prompt) + 1)]
        given = [rng.randrange(*RANGE) if rng.random() < 0.1 * (seed % 2) else MASK for _ in range(16)]
        block, steps = ((16, 5), (16, 12), (8, 6))[seed % 3]
        expected = reference_loop.maskgit(
            model,
            prompt,
            given,
            mask_id=MASK,
            block_length=block,
            steps=steps,
            token_range=RANGE,
            draw=drawn(seed, temperature) if temperature else greedy,
            noise=choice_noise(seed),
            choice_temperature=choice,
            guide=(1.5, other) if guided else None,
        )
        with wino_kernels.use_backend(backend):
            out = wino.generate(
                model,
                torch.tensor([prompt]),
                decoder="maskgit",
                max_new_tokens=16,
                block_length=block,
                steps=steps,
                token_range=RANGE,
                temperature=temperature,
                choice_temperature=choice,
                seed=seed,
                generation_ids=torch.tensor([given]),
                **({"cfg_scale": 1.5, "unconditional_ids": torch.tensor([other])} if guided else {}),
            )
        if expected.margin >= MARGIN:
            assert out.sequences[0].tolist() == expected.tokens
            assert int(out.steps) == expected.steps
            assert out.accepted_at[0].tolist() == expected.accepted_at
            compared += 1
    assert compared >= 6


def settings(**changes: Any) -> dict[str, Any]:
    return {"decoder": "maskgit", "max_new_tokens": 16, "token_range": RANGE, "steps": 6, **changes}


def test_only_tokens_of_the_range_are_drafted() -> None:
    model, ids = random_model(0), torch.tensor([[2, 3, 4]] * 4)
    for decoder in DECODER_NAMES:
        steps = 6 if decoder == "maskgit" else None
        out = wino.generate(model, ids, **settings(decoder=decoder, steps=steps, temperature=4.0, seed=[1, 2, 3, 4]))
        codes = out.sequences[:, 3:]
        assert (codes >= RANGE[0]).all() and (codes < RANGE[1]).all() and len(codes.unique()) > 4
    everything = wino.generate(model, ids[:1], **settings(token_range=(0, 48)))
    assert torch.equal(everything.sequences, wino.generate(model, ids[:1], **settings(token_range=None)).sequences)


def test_wino_verifies_within_the_range() -> None:
    """Confidences, of drafts and of verifications, are shares of the range: as of a model of these tokens alone."""
    rule = {"threshold": 0.2, "threshold_back": 0.8, "block_length": 16}
    remasked = 0
    for seed in range(6):
        model, ids = random_model(seed), torch.randint(2, TEXT, (3, 5))
        out = wino.generate(model, ids, **settings(decoder="wino", steps=None, **rule), return_trace=True)
        with torch.no_grad():
            head = model.model.transformer["ff_out"]
            head.bias = torch.nn.Parameter(torch.full((len(head.weight),), -math.inf))
            head.bias[RANGE[0] : RANGE[1]] = 0
        same = wino.generate(model, ids, **settings(decoder="wino", steps=None, token_range=None, **rule))
        assert torch.equal(out.sequences, same.sequences) and torch.equal(out.accepted_at, same.accepted_at)
        assert out.trace is not None
        remasked += sum(len(record.remasked_tokens) for trace in out.trace for record in trace)
    assert remasked >= 10


def test_a_batch_of_different_prompts_is_each_alone() -> None:
    model, rows = random_model(1), [[2, 3, 4, 5, 6], [7, 8], [9, 10, 11]]
    guides = [[2, 3], [7], [9, 10, 11]]
    call = settings(temperature=1.0, choice_temperature=1.0, cfg_scale=2.0)
    alone = [
        wino.generate(model, torch.tensor([row]), unconditional_ids=torch.tensor([guide]), seed=number, **call)
        for number, (row, guide) in enumerate(zip(rows, guides, strict=True))
    ]

    def padded(lists: list[list[int]]) -> tuple[Tensor, Tensor]:
        width = max(map(len, lists))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in lists])
        return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in lists])

    (ids, mask), (other, other_mask) = padded(rows), padded(guides)
    together = wino.generate(
        model, ids, mask, unconditional_ids=other, unconditional_mask=other_mask, seed=[0, 1, 2], **call
    )
    for row, one in enumerate(alone):
        assert torch.equal(together.sequences[row, -16:], one.sequences[0, -16:])


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_caches_and_compiled_steps_take_guides(cache: str) -> None:
    model, ids = random_model(1), torch.tensor([[2, 3, 4]])
    call = settings(cfg_scale=2.0, temperature=1.0, choice_temperature=1.0, seed=5)
    exact = wino.generate(model, ids, unconditional_ids=ids[:, :1], **call)
    refreshed = wino.generate(model, ids, unconditional_ids=ids[:, :1], cache=cache, cache_refresh=1, **call)
    assert torch.equal(exact.sequences, refreshed.sequences)
    torch._dynamo.reset()
    compiled = wino.generate(model, ids, unconditional_ids=ids[:, :1], compile_step={"backend": "aot_eager"}, **call)
    assert torch.equal(exact.sequences, compiled.sequences)


def test_steps_without_a_number_are_eighteen_a_block() -> None:
    out = wino.generate(random_model(0), torch.tensor([[2]]), **settings(steps=None, max_new_tokens=64))
    assert int(out.steps) == 18


def test_a_guide_of_more_positions_than_the_model_has() -> None:
    """Beside a short prompt that is padded to its length."""
    ids, mask = torch.full((1, 90), 2), torch.zeros(1, 90, dtype=torch.int64)
    mask[:, -1] = 1
    with pytest.raises(ValueError, match="unconditional_ids: with the generation they need 106 positions, the model's"):
        wino.generate(random_model(0), ids, mask, **settings(cfg_scale=1.0), unconditional_ids=ids)


@pytest.mark.parametrize(
    ("changes", "kind", "match"),
    [
        ({"token_range": (5, 5)}, ValueError, r"token_range: expected \(first, behind\) with 0 <= first < behind"),
        ({"token_range": (-1, 5)}, ValueError, "token_range: expected"),
        ({"token_range": "ab"}, ValueError, "token_range: expected"),
        ({"token_range": (5, 49)}, ValueError, r"token_range: the vocabulary ends at 48, got \(5, 49\)"),
        ({"choice_temperature": -1.0}, ValueError, r"choice_temperature: expected a finite number >= 0, got -1\.0"),
        ({"unconditional_ids": torch.tensor([[2]])}, ValueError, "unconditional_ids: needs cfg_scale > 0"),
        ({"unconditional_mask": torch.tensor([[1]])}, ValueError, "unconditional_mask: needs unconditional_ids"),
        (
            {"unconditional_ids": torch.tensor([[2, 3, 4]]), "cfg_scale": 1.0},
            ValueError,
            r"unconditional_ids: expected shape \(1, U\) with U <= 2, got \(1, 3\)",
        ),
        ({"unconditional_ids": torch.tensor([[99]]), "cfg_scale": 1.0}, ValueError, "unconditional_ids: token ids"),
        ({"unconditional_ids": [[2]], "cfg_scale": 1.0}, TypeError, "unconditional_ids: expected an int64 tensor"),
        (
            {
                "unconditional_ids": torch.tensor([[2, 3]]),
                "unconditional_mask": torch.tensor([[1, 0]]),
                "cfg_scale": 1.0,
            },
            ValueError,
            "unconditional_mask: expected left padding",
        ),
    ],
)
def test_calls_that_do_not_fit(changes: dict[str, Any], kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        wino.generate(random_model(0), torch.tensor([[2, 3]]), **settings(**changes))
