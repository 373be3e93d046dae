"""``wino.patch`` on a stand-in for the authors' MMaDA: its generate methods are the specified loops on its weights."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import authors_layout
import pytest
import reference_loop
import torch
from authors_layout import MMadaModelLM
from torch import Tensor

import wino

MASK, LENGTH, BLOCK, MARGIN = 1, 32, 16, 1e-4
RULE = {"threshold": 0.35, "threshold_back": 0.6}


def build(seed: int = 0) -> Any:
    """Peaked enough that several tokens pass the threshold; never the mask token itself."""
    model = authors_layout.build(seed, MMadaModelLM, codebook_size=16, num_vq_tokens=9, init_std=0.12)
    with torch.no_grad():
        model.model.transformer.wte.weight.normal_(std=0.3)
        model.model.transformer.ff_out.weight.normal_(std=3 / 48**0.5)
        model.model.transformer.ff_out.weight[MASK] = 0
    return model


class OwnArithmetic:
    """What the plain loops call: the stand-in without wino."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, ids: Tensor, **arguments: Any) -> Any:
        return authors_layout.CausalLMOutputWithPast(logits=authors_layout.own_logits(self.model, ids, **arguments))


def prompts(seed: int, number: int = 12) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(2, 64) for _ in range(rng.randrange(3, 30))] for _ in range(number)]


def test_mmu_generate_is_the_authors_loop_on_ours() -> None:
    compared = 0
    for seed in range(5):
        model = build(seed)
        expected = [
            reference_loop.low_confidence(
                OwnArithmetic(model), prompt, [MASK] * LENGTH, mask_id=MASK, block_length=BLOCK, steps=16
            )
            for prompt in prompts(seed)
        ]
        with wino.patch(model):
            for prompt, decode in zip(prompts(seed), expected, strict=True):
                out = model.mmu_generate(
                    torch.tensor([prompt]), max_new_tokens=LENGTH, steps=16, block_length=BLOCK, mask_id=MASK
                )
                if decode.margin >= MARGIN:
                    assert out.tolist() == [decode.tokens]
                    compared += 1
        assert model.mmu_generate(torch.tensor([[2]])) == "the authors' own loop"
    assert compared >= 50


def test_mmu_generate_wino_is_the_specified_loop() -> None:
    ran: Counter[str] = Counter()
    for seed in range(5):
        model = build(seed)
        expected = [
            reference_loop.wino(OwnArithmetic(model), prompt, [MASK] * LENGTH, mask_id=MASK, block_length=BLOCK, **RULE)
            for prompt in prompts(seed)
        ]
        assert not hasattr(model, "mmu_generate_wino")
        with wino.patch(model):
            for prompt, decode in zip(prompts(seed), expected, strict=True):
                sequences, steps = model.mmu_generate_wino(
                    torch.tensor([prompt]), gen_length=LENGTH, block_length=BLOCK, mask_id=MASK, **RULE
                )
                if decode.margin >= MARGIN:
                    assert sequences.tolist() == [decode.tokens] and steps == decode.steps
                    ran += decode.branches + Counter(decodes=1, steps=decode.steps)
        assert not hasattr(model, "mmu_generate_wino")
    assert ran["decodes"] >= 50
    assert ran["accepted tokens"] / ran["steps"] >= 1.5
    for branch in ("capped", "none above threshold", "one accepted", "all doubted re-masked", "cut to last - 1"):
        assert ran[branch] >= 20, ran


def test_mmu_generate_confidence_threshold_is_the_specified_loop() -> None:
    compared = tokens = passes = 0
    for seed in range(3):
        model = build(seed)
        expected = [
            reference_loop.confidence_threshold(
                OwnArithmetic(model), prompt, [MASK] * LENGTH, mask_id=MASK, block_length=BLOCK, threshold=0.35
            )
            for prompt in prompts(seed)
        ]
        with wino.patch(model):
            for prompt, decode in zip(prompts(seed), expected, strict=True):
                sequences, steps = model.mmu_generate_confidence_threshold(
                    torch.tensor([prompt]),
                    steps=LENGTH,
                    gen_length=LENGTH,
                    block_length=BLOCK,
                    mask_id=MASK,
                    confidence_threshold=0.35,
                )
                if decode.margin >= MARGIN:
                    assert sequences.tolist() == [decode.tokens] and steps == decode.steps
                    compared, tokens, passes = compared + 1, tokens + LENGTH, passes + steps
            ids = torch.tensor([prompts(seed)[0]])
            same: dict[str, Any] = {"block_length": BLOCK, "mask_id": MASK, "steps": 8}
            without, steps = model.mmu_generate_confidence_threshold(
                ids, gen_length=LENGTH, confidence_threshold=None, **same
            )
            assert torch.equal(without, model.mmu_generate(ids, max_new_tokens=LENGTH, **same)) and steps == 8
        assert not hasattr(model, "mmu_generate_confidence_threshold")
    assert compared >= 30 and tokens / passes >= 1.5


def test_batches_and_padding() -> None:
    """(B, P) and (B, P + G) masks mean the same; each row is what it is alone."""
    model = build()
    rows = [[5, 6, 7, 8, 9, 10], [11, 12, 13]]
    ids = torch.tensor([rows[0], [0, 0, 0, *rows[1]]])
    mask = torch.tensor([[1] * 6, [0, 0, 0, 1, 1, 1]])
    settings = {"max_new_tokens": 16, "steps": 8, "block_length": 8, "mask_id": MASK}
    with wino.patch(model):
        alone = [model.mmu_generate(torch.tensor([row]), **settings)[0, -16:].tolist() for row in rows]
        for given in (mask, torch.cat((mask, torch.ones(2, 16, dtype=mask.dtype)), dim=1)):
            together = model.mmu_generate(ids, attention_mask=given, **settings)
            assert together[:, -16:].tolist() == alone
        sequences, steps = model.mmu_generate_wino(ids[:1].repeat(2, 1), gen_length=16, block_length=8, mask_id=MASK)
        assert sequences.shape == (2, 22) and isinstance(steps, int)
        assert torch.equal(sequences[0], sequences[1])


def test_random_draws_follow_torch() -> None:
    model, ids = build(), torch.tensor([[5, 6, 7]])
    settings: dict[str, Any] = {"max_new_tokens": 16, "steps": 16, "block_length": 16, "mask_id": MASK}
    with wino.patch(model):
        for sampling in ({"temperature": 1.0}, {"remasking": "random"}):
            results = []
            for seed in (1, 1, 2):
                torch.manual_seed(seed)
                results.append(model.mmu_generate(ids, **settings, **sampling).tolist())
            assert results[0] == results[1] != results[2]
        before = torch.random.get_rng_state()
        model.mmu_generate(ids, **settings)
        assert torch.equal(torch.random.get_rng_state(), before)


def test_guidance() -> None:
    model, ids = build(), torch.tensor([[5, 6, 7]])
    settings: dict[str, Any] = {"max_new_tokens": 16, "steps": 8, "block_length": 16, "mask_id": MASK}
    with wino.patch(model):
        plain = model.mmu_generate(ids, **settings)
        assert not torch.equal(model.mmu_generate(ids, cfg_scale=3.0, **settings), plain)


@pytest.mark.parametrize(
    ("method", "arguments", "match"),
    [
        ("mmu_generate", {"mask_id": 126336}, r"mmu_generate: mask_id: the model's mask token is 1, got 126336"),
        ("mmu_generate_wino", {"mask_id": 3}, "mmu_generate_wino: mask_id: the model's mask token is 1, got 3"),
        ("mmu_generate", {"top_k": 3}, "mmu_generate: top_k: changes nothing in the authors' method, got 3"),
        ("mmu_generate", {"eot_token": 7}, "mmu_generate: eot_token: changes nothing in the authors' method, got 7"),
        ("mmu_generate", {"attention_mask": torch.ones(1, 6)}, "expected 3 columns, or 16 more, got 6"),
        ("mmu_generate", {"input_embeddings": 1}, "input_embeddings is not supported"),
        ("mmu_generate", {"attention_mask": torch.tensor([[1] * 18 + [0]])}, "hides a part of the generation region"),
        ("mmu_generate", {"steps": 3, "block_length": 8}, "steps: must be a multiple of the 2 blocks, got 3"),
        ("mmu_generate_wino", {"prompt": torch.tensor([[5, MASK]])}, "the mask token"),
        ("mmu_generate_wino", {"threshold": 0.0}, "threshold: expected in"),
        ("mmu_generate_confidence_threshold", {"mask_id": 3}, "mask_id: the model's mask token is 1, got 3"),
        ("mmu_generate_confidence_threshold", {"steps": 3, "block_length": 8}, "steps: must be a multiple of the 2"),
        ("mmu_generate_confidence_threshold", {"confidence_threshold": 2.0}, "threshold: expected in"),
        ("mmu_generate_confidence_threshold", {"remasking": "random"}, "remasking: only 'low_confidence' has a"),
    ],
)
def test_calls_that_do_not_fit(method: str, arguments: dict[str, Any], match: str) -> None:
    model = build()
    prompt, length = ("idx", "max_new_tokens") if method == "mmu_generate" else ("prompt", "gen_length")
    call = {prompt: torch.tensor([[5, 6, 7]]), length: 16, "block_length": 16, "mask_id": MASK, **arguments}
    with wino.patch(model), pytest.raises(ValueError, match=match):
        getattr(model, method)(**call)


def test_a_prompt_is_needed() -> None:
    model = build()
    with wino.patch(model), pytest.raises(TypeError, match=r"mmu_generate: needs token ids \(B, P\), got None"):
        model.mmu_generate(mask_id=MASK)


def test_unpatch_refuses_to_drop_a_later_method() -> None:
    model = build()
    handle = wino.patch(model)
    model.mmu_generate = lambda *args: None
    with pytest.raises(RuntimeError, match=r"the model's mmu_generate was replaced after wino\.patch"):
        handle.unpatch()
    assert handle.active


def test_a_llada_gets_no_method_of_mmada() -> None:
    model = authors_layout.build()
    with wino.patch(model):
        assert not hasattr(model, "mmu_generate")
