"""Whole decodes: the published loop beside ours in each mode, and what a step costs against V, K, prompt and batch.

pytest benchmarks/bench_decode.py

Models are random ones that decode like trained ones (:mod:`wino.benchmark.models`): 3 to 10 tokens a step, some taken
back, both asserted. Exact modes are timed only where their tokens are the published loop's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Table

import wino
from wino.benchmark import (
    PUBLISHED,
    Calibrated,
    Figures,
    Measured,
    Trunk,
    Workload,
    compare,
    measure,
    peaked_model,
    random_prompts,
)
from wino.benchmark.models import TOKENS_PER_FORWARD
from wino.tasks import TASKS
from wino.tasks.evaluation import encode_prompts
from wino.tasks.presets import decoder_configs, load_presets

LLADA, MMADA = 126464, 134656
SMALL, DEEP = Trunk(4, 256), Trunk(12, 512)
EXACT: dict[str, dict[str, Any]] = {"exact": {}}
CACHED: dict[str, dict[str, Any]] = EXACT | {"prefix": {"cache": "prefix"}, "dual": {"cache": "dual"}}
MARGIN = 1e-4  # docs/spec.md section 6: below it two right decodes in float32 may differ
PROMPTS = 5
PICTURE_PROMPT = 1100

pytestmark = pytest.mark.usefixtures("threads")


def settings(generation: int, block: int) -> wino.GenerationConfig:
    return wino.GenerationConfig(max_new_tokens=generation, block_length=block)


def peaked(trunk: Trunk, vocabulary: int, dtype: torch.dtype, prompt: int, config: wino.GenerationConfig) -> Calibrated:
    return peaked_model(trunk, vocabulary, prompts_of(1, prompt, vocabulary), config, dtype=dtype)


def prompts_of(batch: int, length: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    return random_prompts(batch, length, vocabulary, min(vocabulary - 1, 126336), seed)


def record(table: Table, workload: str, measured: Measured, **about: Any) -> None:
    for figures in measured.figures.values():
        table.add("decode", workload=workload, **about, **figures.row(), margin=measured.margin)


def assert_peaked(figures: Figures) -> None:
    low, high = TOKENS_PER_FORWARD
    assert low <= figures.accepted_per_forward <= high, f"{figures.name}: {figures.accepted_per_forward:.2f} a forward"
    assert figures.remasked is None or figures.remasked > 0, f"{figures.name}: nothing was taken back"


@pytest.mark.parametrize(("dtype", "bar"), [(torch.bfloat16, 10), (torch.float32, 6)], ids=["bfloat16", "float32"])
def test_published_and_exact(dtype: torch.dtype, bar: float, table: Table) -> None:
    config, name = settings(128, 64), str(dtype).removeprefix("torch.")
    model = peaked(SMALL, LLADA, dtype, 100, config).model
    for seed in range(PROMPTS):
        workload = Workload(model, prompts_of(1, 100, LLADA, seed), None, config)
        found = compare(workload)
        if found.agreement == 1.0 and torch.equal(found.published.steps, found.ours.steps):
            break
        near = dtype != torch.float32 or found.margin < MARGIN
        assert near, f"prompt {seed}: {found.agreement:.1%} of tokens equal, margin {found.margin}"
    measured = measure(workload, EXACT, rounds=table.rounds(6))
    exact = measured.figures["exact"]
    assert exact.agreement == 1.0, f"none of {PROMPTS} prompts keeps away from rounding"
    assert_peaked(exact)
    label = f"trunk {SMALL}, V={LLADA}, P=100, G=128, K=64, {name}"
    record(table, label, measured, group="published", dtype=name, prompt_seed=seed)
    note = f"{exact.accepted_per_forward:.1f} tokens a forward, tokens equal"
    faster = exact.times_faster_than(measured.figures[PUBLISHED])
    table.faster(f"{label}: published / exact", faster, bar, "decode", note)


@pytest.mark.parametrize(("batch", "bar"), [(1, 2), (16, 6)])
def test_bundled_model(batch: int, bar: float, table: Table) -> None:
    """Held-out sums; a single one is the first of which something is taken back."""
    model, tokenizer = wino.load("wino-tiny")
    task = TASKS["sum"]
    preset = decoder_configs(task, load_presets(Path(model.config.name_or_path)))["wino"]
    prompts = [item.prompt for item in islice(task.items("heldout"), 64)]
    input_ids, attention_mask = encode_prompts(tokenizer, prompts)
    trace = wino.generate(model, input_ids, attention_mask, preset, return_trace=True).trace
    first = next(i for i, steps in enumerate(trace or []) if any(step.remasked_positions for step in steps))
    chosen = slice(first, first + batch)
    workload = Workload(model, input_ids[chosen], attention_mask[chosen], preset)
    measured = measure(workload, EXACT, rounds=table.rounds(31 if batch == 1 else 9))
    exact = measured.figures["exact"]
    assert_peaked(exact)
    assert exact.agreement == 1.0, f"{exact.agreement:.1%} of tokens equal"
    label = f"wino-tiny, sums, batch {batch}"
    record(table, label, measured, group="bundled", batch=batch)
    note = f"{exact.accepted_per_forward:.1f} tokens a forward, tokens equal"
    faster = exact.times_faster_than(measured.figures[PUBLISHED])
    table.faster(f"{label}: published / exact, per sequence", faster, bar, "decode", note)


def test_cached_modes(table: Table) -> None:
    config = settings(128, 32)
    model = peaked(DEEP, LLADA, torch.bfloat16, 64, config).model  # a short prompt, to be quick
    workload = Workload(model, prompts_of(1, 1024, LLADA), None, config)
    measured = measure(workload, CACHED, rounds=table.rounds(6), published=False)
    exact = measured.figures["exact"]
    assert_peaked(exact)
    label = f"trunk {DEEP}, V={LLADA}, P=1024, G=128, K=32, bfloat16"
    record(table, label, measured, group="cached", dtype="bfloat16")
    for mode, bar in (("prefix", 1.5), ("dual", 3.0)):
        cached = measured.figures[mode]
        note = f"{cached.accepted_per_forward:.1f} tokens a forward, {cached.agreement:.1%} of tokens equal"
        table.faster(f"{label}: exact / {mode}", cached.times_faster_than(exact), bar, "decode", note)


def test_image_prompt(table: Table) -> None:
    """MMaDA's prompt: the 1024 codes of a picture and a question. A shallow trunk, then the cache on a deep one."""
    config = settings(64, 32)
    model = peaked(SMALL, MMADA, torch.bfloat16, 64, config).model
    for seed in range(PROMPTS):
        workload = Workload(model, picture_prompt(seed), None, config)
        measured = measure(workload, EXACT, rounds=table.rounds(4))
        exact = measured.figures["exact"]
        if exact.agreement == 1.0:
            break
    assert exact.agreement == 1.0, f"none of {PROMPTS} prompts keeps away from rounding"
    assert_peaked(exact)
    label = f"trunk {SMALL}, V={MMADA}, P={PICTURE_PROMPT}, G=64, K=32, bfloat16"
    record(table, label, measured, group="image prompt", dtype="bfloat16", prompt_seed=seed)
    note = f"{exact.accepted_per_forward:.1f} tokens a forward, tokens equal"
    table.faster(
        f"{label}: published / exact", exact.times_faster_than(measured.figures[PUBLISHED]), 12, "decode", note
    )

    deep = peaked(DEEP, MMADA, torch.bfloat16, 64, config).model
    workload = Workload(deep, picture_prompt(0), None, config)
    measured = measure(workload, CACHED, rounds=table.rounds(4), published=False)
    exact, dual = measured.figures["exact"], measured.figures["dual"]
    assert_peaked(exact)
    label = f"trunk {DEEP}, V={MMADA}, P={PICTURE_PROMPT}, G=64, K=32, bfloat16"
    record(table, label, measured, group="image prompt, cached", dtype="bfloat16")
    note = f"{dual.accepted_per_forward:.1f} tokens a forward, {dual.agreement:.1%} of tokens equal"
    table.faster(f"{label}: exact / dual", dual.times_faster_than(exact), 2, "decode", note)


def picture_prompt(seed: int) -> torch.Tensor:
    """Codes, which are the vocabulary's last 8192 tokens, then text."""
    prompt = prompts_of(1, PICTURE_PROMPT, MMADA, seed)
    codes = torch.randint(MMADA - 8192, MMADA, (1, 1024), generator=torch.Generator().manual_seed(seed))
    prompt[:, 2:1026] = codes
    return prompt


def sweep(
    table: Table,
    axis: str,
    value: int,
    *,
    vocabulary: int = 32768,
    prompt: int = 128,
    block: int = 64,
    batch: int = 1,
    modes: dict[str, dict[str, Any]] = CACHED,
    published: bool = False,
) -> Measured:
    config = settings(128, block)
    model = peaked(SMALL, vocabulary, torch.bfloat16, prompt, config).model
    workload = Workload(model, prompts_of(batch, prompt, vocabulary), None, config)
    measured = measure(
        workload, modes, rounds=table.rounds(2), published=published, published_sequences=1, memory=False
    )
    assert_peaked(measured.figures["exact"])
    label = f"trunk {SMALL}, V={vocabulary}, P={prompt}, K={block}, batch {batch}"
    record(table, label, measured, group="sweep", axis=axis, value=value, dtype="bfloat16")
    return measured


def fit(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Least squares line y = intercept + slope x, and the share of the variance it explains."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
    intercept = mean_y - slope * mean_x
    left = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    spread = sum((b - mean_y) ** 2 for b in y)
    return {"slope": slope, "intercept": intercept, "r2": 1 - left / spread if spread else math.nan}


def test_against_vocabulary(table: Table) -> None:
    sizes = (1024, 16384, 65536, LLADA, MMADA)
    steps = []
    for vocabulary in sizes:
        # Beyond that the published loop alone would take a minute.
        with_published = vocabulary <= 65536
        measured = sweep(table, "V", vocabulary, vocabulary=vocabulary, modes=EXACT, published=with_published)
        steps.append(measured.figures["exact"].milliseconds_per_step)
    table.add("fit", axis="V", what="exact, step against V", **fit(sizes, steps))


def test_against_block(table: Table) -> None:
    sizes = (32, 64, 128)
    steps = [sweep(table, "K", k, block=k).figures["exact"].milliseconds_per_step for k in sizes]
    table.add("fit", axis="K", what="exact, step against K", **fit(sizes, steps))


@pytest.mark.parametrize("prompt", [64, 512, 2048])
def test_against_prompt(prompt: int, table: Table) -> None:
    sweep(table, "P", prompt, prompt=prompt)


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_against_batch(batch: int, table: Table) -> None:
    sweep(table, "B", batch, batch=batch)
