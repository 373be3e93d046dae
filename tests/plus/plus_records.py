"""Records to test with."""

from __future__ import annotations

import random
from typing import Any

from wino.plus.records import Trajectory


def make_record(number: int, *, block_length: int | None = 6, **changes: Any) -> Trajectory:
    """A record with a prompt of 3 to 7 tokens and an answer of 12, accepted in random order, block after block."""
    rng = random.Random(number)
    prompt = [rng.randrange(5, 20) for _ in range(3 + number % 5)]
    accepted = [rng.randrange(0, 3) for _ in range(6)] + [rng.randrange(3, 6) for _ in range(6)]
    fields: dict[str, Any] = {
        "unique_id": f"item:{number}",
        "source": "test",
        "prompt_ids": prompt,
        "prompt_length": len(prompt),
        "generated_ids": [rng.randrange(5, 20) for _ in range(12)],
        "trajectory_accepted": accepted,
        "trajectory_proposed": None,
        "correct": True,
        "generated_text": "",
        "decoding_steps": 6,
        "used_temperature": 0.0,
        "metadata": {} if block_length is None else {"block_length": block_length},
    }
    return Trajectory(**{**fields, **changes})
