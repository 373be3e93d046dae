"""Many threads on one model decode what one thread does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pytest
import torch

import wino
from wino.tasks import TASKS
from wino.tasks.evaluation import encode_prompts

THREADS = 8


@pytest.mark.parametrize(
    "settings",
    [
        {"decoder": "wino", "threshold": 0.5, "threshold_back": 0.8},
        {"decoder": "wino", "threshold": 0.5, "threshold_back": 0.8, "cache": "dual", "block_length": 11},
        {"decoder": "confidence_threshold", "temperature": 0.7, "seed": 3},
        {"decoder": "low_confidence", "cfg_scale": 0.5, "steps": 4},
    ],
)
def test_many_threads_on_one_model(settings: dict[str, Any]) -> None:
    model, tokenizer = wino.load("wino-tiny", dtype=torch.float32)
    config = wino.GenerationConfig(max_new_tokens=44, **settings)
    prompts = [item.prompt for item in islice(TASKS["sum"].items("validation", 1), 12)]
    jobs = [prompts[i : i + 1 + i % 2] for i in range(len(prompts))]  # batches of one and two, all at once

    def decode(job: list[str]) -> tuple[list[list[int]], list[int], list[list[int]]]:
        out = wino.generate(model, *encode_prompts(tokenizer, job), config)
        return out.sequences.tolist(), out.steps.tolist(), out.accepted_at.tolist()

    alone = [decode(job) for job in jobs]
    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(decode, jobs)) == alone
