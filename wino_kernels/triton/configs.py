"""Launch configurations: what a kernel is compiled with on which chip.

Looked up by (operator, chip, shape class). A chip that is not listed takes the entry of the nearest older chip of its
maker, and where there is none, the operator's default. ``python -m wino_kernels.triton.tune`` measures on the GPU at
hand and writes a table that is preferred to this one (``wino_kernels.tuned``).
"""

from __future__ import annotations

import functools
import re
from typing import Any

import torch

from wino_kernels import tuned as tuned_table
from wino_kernels.triton.launch import target_of

Config = dict[str, int]


def _entry(num_warps: int, num_stages: int, **blocks: int) -> Config:
    return {**blocks, "num_warps": num_warps, "num_stages": num_stages}


#: (operator, shape class) -> configuration of any chip.
DEFAULTS: dict[tuple[str, str], Config] = {
    ("score_tokens", "2 bytes"): _entry(8, 1, BLOCK=8192),
    ("score_tokens", "4 bytes"): _entry(4, 1, BLOCK=4096),
    ("accept_remask_", "K <= 128"): _entry(1, 1),
    ("accept_remask_", "K <= 512"): _entry(2, 1),
    ("accept_remask_", "K > 512"): _entry(4, 1),
    ("accept_", "K <= 128"): _entry(1, 1),
    ("accept_", "K <= 512"): _entry(2, 1),
    ("accept_", "K > 512"): _entry(4, 1),
    ("wino_step_", "K <= 128"): _entry(4, 1),
    ("wino_step_", "K <= 512"): _entry(8, 1),
    ("wino_step_", "K > 512"): _entry(16, 1),
    ("shadow_attention", "2 bytes, d <= 64"): _entry(8, 3, BLOCK_QUERIES=128, BLOCK_KEYS=64),
    ("shadow_attention", "2 bytes, d <= 128"): _entry(4, 3, BLOCK_QUERIES=64, BLOCK_KEYS=32),
    ("shadow_attention", "2 bytes, d <= 256"): _entry(8, 2, BLOCK_QUERIES=64, BLOCK_KEYS=32),
    ("shadow_attention", "2 bytes, wider"): _entry(4, 1, BLOCK_QUERIES=16, BLOCK_KEYS=16),
    ("shadow_attention", "4 bytes, d <= 96"): _entry(8, 1, BLOCK_QUERIES=64, BLOCK_KEYS=16),
    ("shadow_attention", "4 bytes, d <= 128"): _entry(8, 1, BLOCK_QUERIES=32, BLOCK_KEYS=16),
    ("shadow_attention", "4 bytes, wider"): _entry(4, 1, BLOCK_QUERIES=16, BLOCK_KEYS=16),
    ("shadow_attention", "8 bytes, wider"): _entry(8, 1, BLOCK_QUERIES=16, BLOCK_KEYS=16),
    ("trajectory_loss", "2 bytes"): _entry(8, 3, BLOCK_ROWS=128, BLOCK_V=128, BLOCK_K=64),
    ("trajectory_loss", "4 bytes"): _entry(4, 2, BLOCK_ROWS=64, BLOCK_V=64, BLOCK_K=16),
    ("trajectory_loss", "8 bytes"): _entry(4, 1, BLOCK_ROWS=32, BLOCK_V=16, BLOCK_K=8),
    ("trajectory_loss_backward", "2 bytes"): _entry(
        8, 3, BLOCK_ROWS=128, BLOCK_V=128, BLOCK_H=128, BLOCK_K=64, CHUNK=16384, SPLITS=4
    ),
    ("trajectory_loss_backward", "4 bytes"): _entry(
        8, 2, BLOCK_ROWS=64, BLOCK_V=64, BLOCK_H=64, BLOCK_K=16, CHUNK=16384, SPLITS=4
    ),
    ("trajectory_loss_backward", "8 bytes"): _entry(
        4, 1, BLOCK_ROWS=32, BLOCK_V=16, BLOCK_H=32, BLOCK_K=8, CHUNK=4096, SPLITS=2
    ),
    ("linear_score_tokens", "2 bytes, N <= 16"): _entry(4, 4, BLOCK_V=128, BLOCK_N=16, BLOCK_H=64),
    ("linear_score_tokens", "2 bytes, N <= 32"): _entry(4, 4, BLOCK_V=128, BLOCK_N=32, BLOCK_H=64),
    ("linear_score_tokens", "2 bytes, N <= 64"): _entry(4, 4, BLOCK_V=128, BLOCK_N=64, BLOCK_H=64),
    ("linear_score_tokens", "2 bytes, N <= 128"): _entry(8, 3, BLOCK_V=256, BLOCK_N=128, BLOCK_H=64),
    ("linear_score_tokens", "2 bytes, N > 128"): _entry(8, 3, BLOCK_V=256, BLOCK_N=128, BLOCK_H=64),
    ("linear_score_tokens", "4 bytes, N <= 16"): _entry(8, 3, BLOCK_V=128, BLOCK_N=16, BLOCK_H=32),
    ("linear_score_tokens", "4 bytes, N <= 32"): _entry(8, 3, BLOCK_V=128, BLOCK_N=32, BLOCK_H=32),
    ("linear_score_tokens", "4 bytes, N <= 64"): _entry(8, 3, BLOCK_V=128, BLOCK_N=64, BLOCK_H=16),
    ("linear_score_tokens", "4 bytes, N <= 128"): _entry(8, 3, BLOCK_V=128, BLOCK_N=128, BLOCK_H=16),
    ("linear_score_tokens", "4 bytes, N > 128"): _entry(8, 3, BLOCK_V=128, BLOCK_N=128, BLOCK_H=16),
}

#: (operator, chip, shape class) -> configuration, where a chip wants another one.
CHIPS: dict[tuple[str, str, str], Config] = {
    ("shadow_attention", "sm_90", "2 bytes, d <= 128"): _entry(8, 3, BLOCK_QUERIES=128, BLOCK_KEYS=64),
    ("shadow_attention", "gfx90a", "2 bytes, d <= 64"): _entry(8, 3, BLOCK_QUERIES=128, BLOCK_KEYS=32),
    ("shadow_attention", "sm_80", "8 bytes, wider"): _entry(4, 1, BLOCK_QUERIES=4, BLOCK_KEYS=4),
    ("shadow_attention", "gfx90a", "8 bytes, wider"): _entry(4, 1, BLOCK_QUERIES=4, BLOCK_KEYS=4),
    ("shadow_attention", "sm_120", "2 bytes, d <= 64"): _entry(4, 2, BLOCK_QUERIES=64, BLOCK_KEYS=64),
    ("shadow_attention", "sm_120", "2 bytes, d <= 128"): _entry(4, 2, BLOCK_QUERIES=64, BLOCK_KEYS=32),
    # The interpreter's time goes by the number of tiles; its chunks are small, for tests to need several.
    ("trajectory_loss", "interpreter", "8 bytes"): _entry(4, 1, BLOCK_ROWS=64, BLOCK_V=64, BLOCK_K=8),
    ("trajectory_loss_backward", "interpreter", "8 bytes"): _entry(
        4, 1, BLOCK_ROWS=64, BLOCK_V=64, BLOCK_H=64, BLOCK_K=8, CHUNK=512, SPLITS=2
    ),
    # Measured on an H200: 588 us, where the default takes 643 (256 rows of LLaDA-8B).
    ("trajectory_loss", "sm_90", "2 bytes"): _entry(4, 3, BLOCK_ROWS=128, BLOCK_V=128, BLOCK_K=64),
    ("trajectory_loss", "sm_100", "2 bytes"): _entry(8, 3, BLOCK_ROWS=128, BLOCK_V=128, BLOCK_K=64),
    # A chunk is one tile of V for every multiprocessor: A100 108, B200 148, MI300X 304.
    ("trajectory_loss_backward", "sm_80", "2 bytes"): _entry(
        8, 3, BLOCK_ROWS=128, BLOCK_V=128, BLOCK_H=128, BLOCK_K=64, CHUNK=13824, SPLITS=3
    ),
    ("trajectory_loss_backward", "sm_90", "2 bytes"): _entry(
        8, 3, BLOCK_ROWS=128, BLOCK_V=128, BLOCK_H=128, BLOCK_K=64, CHUNK=16384, SPLITS=4
    ),
    ("trajectory_loss_backward", "sm_100", "2 bytes"): _entry(
        8, 3, BLOCK_ROWS=128, BLOCK_V=128, BLOCK_H=128, BLOCK_K=64, CHUNK=18944, SPLITS=4
    ),
    ("trajectory_loss", "gfx90a", "2 bytes"): _entry(8, 2, BLOCK_ROWS=128, BLOCK_V=128, BLOCK_K=64),
    ("trajectory_loss_backward", "gfx942", "2 bytes"): _entry(
        8, 2, BLOCK_ROWS=128, BLOCK_V=128, BLOCK_H=128, BLOCK_K=64, CHUNK=38912, SPLITS=8
    ),
    # 64 KiB of shared memory, on gfx942 too: one buffer of a tile, filled from registers.
    ("linear_score_tokens", "gfx90a", "2 bytes, N <= 16"): _entry(4, 2, BLOCK_V=128, BLOCK_N=16, BLOCK_H=64),
    ("linear_score_tokens", "gfx90a", "2 bytes, N <= 32"): _entry(4, 2, BLOCK_V=128, BLOCK_N=32, BLOCK_H=64),
    ("linear_score_tokens", "gfx90a", "2 bytes, N <= 64"): _entry(4, 2, BLOCK_V=128, BLOCK_N=64, BLOCK_H=64),
    ("linear_score_tokens", "gfx90a", "2 bytes, N <= 128"): _entry(8, 2, BLOCK_V=256, BLOCK_N=128, BLOCK_H=64),
    ("linear_score_tokens", "gfx90a", "2 bytes, N > 128"): _entry(8, 2, BLOCK_V=256, BLOCK_N=128, BLOCK_H=64),
}


def config(operator: str, shape_class: str, device: torch.device) -> Config:
    """The configuration of ``operator`` on ``device`` (or on the target of ``recording``).

    ``shape_class`` is the operator's own name for the shapes that share a configuration; where the batch must not
    change a row's bits it says nothing about the number of rows.
    """
    return _config(operator, shape_class, target_of(device))


@functools.cache
def _config(operator: str, shape_class: str, chip: str) -> Config:
    table = CHIPS | tuned()
    known = {listed: entry for (op, listed, shape), entry in table.items() if (op, shape) == (operator, shape_class)}
    if (nearest := nearest_chip(chip, known)) is not None:
        return known[nearest]
    return DEFAULTS[operator, shape_class]


def nearest_chip(chip: str, listed: dict[str, Config]) -> str | None:
    """``chip`` itself, else the newest older one of the same maker among ``listed``."""
    maker, generation = _generation(chip)
    older = [name for name in listed if _generation(name)[0] == maker and _generation(name)[1] <= generation]
    return max(older, key=lambda name: _generation(name)[1], default=None)


def _generation(chip: str) -> tuple[str, int]:
    match = re.fullmatch(r"(sm_|gfx)([0-9a-f]+)", chip)
    if match is None:
        return chip, 0
    return match[1], int(match[2], 16 if match[1] == "gfx" else 10)


@functools.cache
def tuned() -> dict[tuple[str, str, str], Config]:
    """The tuner's configurations; empty if it was never run.

    Raises:
        ValueError: the table is broken; the message names the file and what is wrong.
    """
    measured = [row for row in tuned_table.rows() if "config" in row]
    try:
        return {(row["operator"], row["chip"], row["shape_class"]): _checked(row) for row in measured}
    except (ValueError, KeyError, TypeError) as error:
        message = f"{tuned_table.path()}: not a table of measurements ({type(error).__name__}: {error})"
        raise ValueError(message) from error


def _checked(row: dict[str, Any]) -> Config:
    """A configuration of the parameters that the operator has."""
    default = DEFAULTS[row["operator"], row["shape_class"]]
    if set(row["config"]) != set(default):
        raise ValueError(f"{row['operator']}, {row['shape_class']}: config must hold {', '.join(default)}")
    return {name: int(row["config"][name]) for name in default}
