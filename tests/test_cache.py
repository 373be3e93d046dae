"""Cached modes: a pass over part of the tokens is what a dense pass with frozen keys and values gives."""

from __future__ import annotations

from typing import Any

import pytest
import reference_loop
import torch
import torch.nn.functional as F
from test_generation import MASK, PROMPT, config, peaked_model, prompts
from torch import Tensor

import wino
from wino.batch import Batch, Passes
from wino.models import LLaDAModelLM, backbone_of
from wino.models.forward import rotary_table
from wino_kernels.eager.norm_qkv_rope import rotate

Layers = list[tuple[Tensor, Tensor]]


def dense(
    model: Any, tokens: Tensor, positions: Tensor, sees: Tensor, frozen: Layers, is_frozen: Tensor
) -> tuple[Tensor, Layers]:
    """Hidden rows [L, H] of one sequence, every row computed, and each layer's keys and values; where ``is_frozen``
    (L,) those of ``frozen`` stand in for them."""
    transformer, cfg = model.model.transformer, model.config
    x, rotary, layers = transformer.wte(tokens)[None], rotary_table(cfg, positions), []

    def heads(y: Tensor) -> Tensor:
        return y.view(1, len(tokens), -1, cfg.d_model // cfg.n_heads).transpose(1, 2)

    for number, block in enumerate(transformer.blocks):
        normed = block.attn_norm(x)
        query, key = (rotate(heads(project(normed)), *rotary, True) for project in (block.q_proj, block.k_proj))
        value = heads(block.v_proj(normed))
        layers.append((key, value))
        if frozen:
            key, value = (
                torch.where(is_frozen[:, None], old, new) for old, new in zip(frozen[number], (key, value), strict=True)
            )
        scores = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).masked_fill(~sees, -torch.inf)
        x = x + block.attn_out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
        normed = block.ff_norm(x)
        x = x + block.ff_out(F.silu(block.ff_proj(normed)) * block.up_proj(normed))
    return transformer.ln_f(x)[0], layers


@pytest.fixture(scope="module")
def model() -> LLaDAModelLM:
    return peaked_model()


@pytest.mark.parametrize("decoder", ["wino", "confidence_threshold"])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
@torch.no_grad()
def test_a_part_is_a_dense_pass_with_frozen_keys(model: LLaDAModelLM, decoder: str, cache: str) -> None:
    blocks, settings = [0, 2, 1], config(decoder, cache=cache)
    size, length = settings.block_size, PROMPT + settings.max_new_tokens
    visible = torch.ones(3, PROMPT, dtype=torch.bool)
    visible[1, :2] = False
    region = torch.full((3, settings.max_new_tokens), MASK)
    region[1, : 2 * size], region[2, :size] = 5, 6
    batch = Batch(backbone_of(model), settings, prompts(3), visible, region, decoder == "wino")
    batch.settle()
    batch.enter(blocks, [True] * 3)

    def expected(row: int, frozen: Layers) -> tuple[Tensor, Layers]:
        start, shadow = PROMPT + blocks[row] * size, batch.num_shadow
        own = torch.arange(start, start + size)
        tokens = batch.tokens[row].clone()
        tokens[own] = batch.state.tokens[row]
        positions = batch.positions[row]
        sees = torch.ones(length, length, dtype=torch.bool)[None, None]
        if shadow:
            tokens, positions = F.pad(tokens, (0, shadow), value=MASK), torch.cat((positions, positions[own]))
            sees = reference_loop.visibility(length, start, shadow)
        sees = sees & F.pad(visible[row], (0, len(tokens) - PROMPT), value=True)
        here = torch.arange(len(tokens))
        is_frozen = (here < start) | ((here >= start + size) & (here < length) & (cache == "dual"))
        hidden, layers = dense(model, tokens, positions, sees, frozen, is_frozen)
        filled = length + torch.arange(size) if shadow else own
        return hidden[torch.where(batch.state.masked[row], own, filled)], layers

    def compare(hidden: Tensor, frozen: list[Layers]) -> list[Layers]:
        kept = []
        for row in range(3):
            rows, layers = expected(row, frozen[row])
            torch.testing.assert_close(hidden[row], rows, atol=1e-4, rtol=1e-4)
            kept.append(layers)
        return kept

    first = compare(batch.hidden_rows(Passes(True, True)), [[]] * 3)
    for column in (1, 4, 6):  # two steps beside what the first one kept
        batch.state.tokens[:, column], batch.state.masked[:, column] = 9 + column, False
        compare(batch.hidden_rows(Passes(False, True)), first)
    batch.state.tokens[:, 0], batch.state.masked[:, 0] = 20, False
    mixed = batch.hidden_rows(Passes(False, True, torch.tensor([1])))
    torch.testing.assert_close(mixed[1], expected(1, [])[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mixed[2], expected(2, first[2])[0], atol=1e-4, rtol=1e-4)
    first[1] = expected(1, [])[1]
    batch.state.tokens[:, 2], batch.state.masked[:, 2] = 21, False
    compare(batch.hidden_rows(Passes(False, True)), first)


@pytest.mark.parametrize("decoder", ["wino", "low_confidence", "confidence_threshold"])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_refreshed_in_every_step_it_is_the_exact_mode(
    model: LLaDAModelLM, decoder: str, cache: str, guidance: float
) -> None:
    exact = wino.generate(model, prompts(3), generation_config=config(decoder, cfg_scale=guidance))
    refreshed = config(decoder, cfg_scale=guidance, cache=cache, cache_refresh=1)
    out = wino.generate(model, prompts(3), generation_config=refreshed)
    assert torch.equal(out.sequences, exact.sequences) and torch.equal(out.accepted_at, exact.accepted_at)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("refresh", [None, 3])
@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_company_changes_nothing(cache: str, refresh: int | None, guidance: float) -> None:
    """Sequences that are refreshed at different steps, in different blocks, and finish one after the other."""
    settings = config(cache=cache, cache_refresh=refresh, cfg_scale=guidance)
    lengths = (2, 6, 4, 9)
    ids, mask = torch.zeros(4, 9, dtype=torch.long), torch.zeros(4, 9, dtype=torch.long)
    for row, n in enumerate(lengths):
        ids[row, 9 - n :], mask[row, 9 - n :] = prompts(1, n, seed=n)[0], 1
    for seed in range(3):
        model = peaked_model(seed)
        together = wino.generate(model, ids, mask, settings)
        assert len(set(together.steps.tolist())) > 1
        for row, n in enumerate(lengths):
            alone = wino.generate(model, prompts(1, n, seed=n), None, settings)
            assert torch.equal(together.sequences[row, 9:], alone.sequences[0, n:])
            assert torch.equal(together.accepted_at[row], alone.accepted_at[0])


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("seed", [0, 3])
def test_only_what_a_step_needs_runs_through_the_layers(cache: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token in a block's first step; then, with a cache, the block, with "prefix" also what lies behind.

    The shadow block only where a token could be taken back: fewer are than the step before accepted.
    """
    lengths, trunk = [], wino.models.Backbone.trunk

    def counted(self: Any, embedded: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        lengths.append(embedded.shape[1])
        return trunk(self, embedded, *args, **kwargs)

    monkeypatch.setattr(wino.models.Backbone, "trunk", counted)
    settings = config(cache=cache, threshold=0.7, return_trace=True)
    out = wino.generate(peaked_model(seed), prompts(1), generation_config=settings)
    size, generated = settings.block_size, settings.max_new_tokens
    expected, last, block = [], 0, None
    for record in out.trace[0]:
        starts = record.block != block
        part = size if cache == "dual" else generated - record.block * size
        shadow = size if not starts and last > 1 else 0
        expected.append(shadow + (PROMPT + generated if starts or cache == "none" else part))
        block, last = record.block, len(record.accepted_positions)
    assert lengths == expected and len(set(lengths)) >= 2
    assert any(len(record.remasked_positions) for record in out.trace[0])
