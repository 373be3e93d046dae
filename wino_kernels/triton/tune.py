"""Measure on the GPU at hand and keep what is fastest: ``python -m wino_kernels.triton.tune``.

Writes the table of ``wino_kernels.tuned``: Triton's launch configurations, which ``configs.config`` then prefers, and,
where the CUDA kernels are built, which backend serves an operator faster, which ``auto`` then takes. Configurations of
in-place operators are not tuned, and of ``score_tokens`` only what leaves its chunks alone: a row keeps its bits in any
batch.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from wino_kernels import ops, tuned
from wino_kernels.backends import use_backend, why_not
from wino_kernels.resources import BLOCK, GENERATION, LLADA, PROMPT
from wino_kernels.triton import configs
from wino_kernels.triton.configs import Config
from wino_kernels.triton.launch import INTERPRETED, target_of
from wino_kernels.triton.linear_score_tokens import MOST_FUSED

#: What is tried of each parameter; a block is tried at half, once and twice its size.
NUM_WARPS = (2, 4, 8, 16)
NUM_STAGES = (1, 2, 3, 4)
VARIED: dict[str, tuple[str, ...]] = {
    "score_tokens": ("num_warps",),
    "linear_score_tokens": ("BLOCK_V", "BLOCK_H", "num_warps", "num_stages"),
    "shadow_attention": ("BLOCK_QUERIES", "BLOCK_KEYS", "num_warps", "num_stages"),
    "trajectory_loss": ("BLOCK_V", "BLOCK_K", "num_warps", "num_stages"),
    "trajectory_loss_backward": ("BLOCK_K", "num_warps", "num_stages"),
}
_BATCH = 16  # of attention
#: A configuration must be this much faster than the one in use to replace it: less is noise.
GAIN = 1.03

Call = Callable[[], Any]


class Task(NamedTuple):
    """One entry of the table: what is called to measure it."""

    operator: str
    shape_class: str
    make: Callable[[torch.device], Call]


def tasks() -> list[Task]:
    found = [
        Task("score_tokens", "2 bytes", lambda device: _scored(torch.bfloat16, device)),
        Task("score_tokens", "4 bytes", lambda device: _scored(torch.float32, device)),
        Task("shadow_attention", "2 bytes, d <= 64", lambda device: _attended(64, device)),
        Task("shadow_attention", "2 bytes, d <= 128", lambda device: _attended(128, device)),
        Task("trajectory_loss", "2 bytes", _loss),
        Task("trajectory_loss_backward", "2 bytes", _loss_backward),
    ]
    sizes = [(f"N <= {rows}", rows) for rows in (16, 32, 64, 128)] + [("N > 128", 1024)]
    return found + [Task("linear_score_tokens", f"2 bytes, {name}", _headed(rows)) for name, rows in sizes]


def _randn(*shape: int, device: torch.device, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device).normal_(0, scale)


def _drafts(rows: int, device: torch.device) -> Tensor:
    return torch.full((rows,), -1, device=device)


def _scored(dtype: torch.dtype, device: torch.device) -> Call:
    logits = _randn(BLOCK, LLADA.vocabulary, device=device, dtype=dtype, scale=3.0)
    ids = _drafts(BLOCK, device)
    return lambda: ops.score_tokens(logits, ids)


def _head(rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    weight = _randn(LLADA.vocabulary, LLADA.hidden, device=device, scale=3 / math.sqrt(LLADA.hidden))
    return _randn(rows, LLADA.hidden, device=device), weight


def _headed(rows: int) -> Callable[[torch.device], Call]:
    def make(device: torch.device) -> Call:
        hidden, weight = _head(rows, device)
        ids = _drafts(rows, device)
        # With many rows the tile serves only logits that are not rounded.
        round_to = torch.float32 if rows > MOST_FUSED else None
        return lambda: ops.linear_score_tokens(hidden, weight, ids, round_to=round_to)

    return make


def _attended(width: int, device: torch.device) -> Call:
    # A batch so large that no tile is halved: what is written down must be what was run.
    query, key, value = _randn(3, _BATCH, LLADA.heads, PROMPT + GENERATION + BLOCK, width, device=device)
    start = torch.full((_BATCH,), PROMPT, device=device)
    return lambda: ops.shadow_attention(query, key, value, num_shadow=BLOCK, block_start=start)


def _loss_inputs(device: torch.device) -> tuple[Tensor, ...]:
    hidden, weight = _head(2 * BLOCK, device)
    target = torch.arange(len(hidden), device=device) % 2 == 0
    labels = torch.randint(LLADA.vocabulary, (len(hidden),), device=device)
    return hidden, weight, labels, target, ~target, torch.tensor(0.6), torch.tensor(0.9)


def _loss(device: torch.device) -> Call:
    inputs = _loss_inputs(device)
    return lambda: ops.trajectory_loss(*inputs)


def _loss_backward(device: torch.device) -> Call:
    inputs, sums = _loss_inputs(device), torch.ones(3, device=device)
    statistics = ops.trajectory_loss(*inputs)[2]
    return lambda: torch.ops.wino.trajectory_loss_backward(sums, *inputs[:3], statistics, True)


def _stepped(operator: str, device: torch.device) -> Call:
    """A call of an in-place operator on a block in the middle of its decoding, which is put back before every call."""
    kind = torch.arange(BLOCK, device=device)[None] % 2
    start = {
        "tokens": torch.where(kind == 0, 0, 1),
        "masked": kind == 0,
        "revocable": kind == 1,
        "last_accepted": torch.full((1,), 9, dtype=torch.int32, device=device),
    }
    state = {name: value.clone() for name, value in start.items()}
    confidence = torch.linspace(0, 1, BLOCK, dtype=torch.float64, device=device)[None]
    rule = {"mask_id": 0, "threshold": torch.tensor(0.6), "threshold_back": torch.tensor(0.9)}
    logits = _randn(1, BLOCK, LLADA.vocabulary, device=device, scale=3.0)
    calls: dict[str, Call] = {
        "accept_": lambda: ops.accept_(
            state["tokens"], state["masked"], kind, confidence, threshold=rule["threshold"], count=None
        ),
        "accept_remask_": lambda: ops.accept_remask_(
            state["tokens"], state["masked"], state["revocable"], kind, confidence, state["last_accepted"], **rule
        ),
        "wino_step_": lambda: ops.wino_step_(logits, *state.values(), **rule),
    }

    def call() -> Any:
        for name, value in start.items():
            state[name].copy_(value)
        return calls[operator]()

    return call


#: Operators that two backends of the GPU have.
COMPARED: dict[str, Callable[[torch.device], Call]] = {
    "score_tokens": lambda device: _scored(torch.bfloat16, device),
    **{name: functools.partial(_stepped, name) for name in ("accept_", "accept_remask_", "wino_step_")},
}


OPERATORS = tuple(sorted({*VARIED, *COMPARED}))


def candidates(operator: str, current: Config) -> Iterator[Config]:
    """``current`` first, then every combination of what is varied of it."""
    yield current
    values = [_values(name, current[name]) for name in VARIED[operator]]
    for combination in itertools.product(*values):
        changed = current | dict(zip(VARIED[operator], combination, strict=True))
        if changed != current:
            yield changed


def _values(name: str, current: int) -> tuple[int, ...]:
    if name == "num_warps":
        return NUM_WARPS
    if name == "num_stages":
        return NUM_STAGES
    return tuple(size for size in (current // 2, current, 2 * current) if size >= 16)


def fastest(current: Config, others: Iterator[Config], measure: Callable[[Config], float | None]) -> Config:
    """``current``, or the fastest of ``others`` if it is clearly faster. ``measure``: seconds; None: does not run."""
    base = measure(current)
    timed = [(seconds, config) for config in others if (seconds := measure(config)) is not None]
    best = min(timed, key=lambda entry: entry[0], default=None)
    if best is None or (base is not None and best[0] * GAIN > base):
        return current
    return best[1]


def tune(task: Task, chip: str, device: torch.device) -> Config:
    """The configuration to use for ``task``; one whose results differ from the first one's is left out."""
    call = task.make(device)
    current = configs.config(task.operator, task.shape_class, device)
    expected: list[Any] = []  # of the first configuration that runs: on a new chip the current one may not

    def measure(config: Config) -> float | None:
        _use(task, chip, config)
        try:
            result = call()
            expected[:] = expected or [result]
            _assert_same(result, expected[0])
            seconds = float(triton.testing.do_bench(call, return_mode="median")) * 1e-3
        except Exception as error:  # too much shared memory, too many registers, a wrong result: not a candidate
            print(f"  {config}: left out, {' '.join(str(error).split())[:120]}", file=sys.stderr)
            return None
        print(f"  {config}: {seconds * 1e6:.1f} us", file=sys.stderr)
        return seconds

    _, *others = candidates(task.operator, current)
    best = fastest(current, iter(others), measure)
    _use(task, chip, best)
    return best


def faster_backend(operator: str, device: torch.device) -> str:
    """``"cuda"`` if it is clearly faster than ``"triton"`` here and returns the same, else ``"triton"``."""
    call, seconds, results = COMPARED[operator](device), {}, {}
    for backend in ("triton", "cuda"):
        with use_backend(backend):
            results[backend] = call()
            seconds[backend] = float(triton.testing.do_bench(call, return_mode="median")) * 1e-3
        print(f"  {backend}: {seconds[backend] * 1e6:.1f} us", file=sys.stderr)
    _assert_same(results["cuda"], results["triton"])
    return "cuda" if seconds["cuda"] * GAIN <= seconds["triton"] else "triton"


def _use(task: Task, chip: str, config: Config) -> None:
    configs.tuned()[task.operator, chip, task.shape_class] = config
    configs._config.cache_clear()


def _assert_same(results: Any, expected: Any) -> None:
    """As far as another order of summation lets two results of one operator agree."""
    for one, other in zip(*(item if isinstance(item, tuple) else (item,) for item in (results, expected)), strict=True):
        tolerance = 1e-2 if one.dtype in (torch.bfloat16, torch.float16) else 1e-3
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def write(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """All of the table or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8", delete=False) as file:
        json.dump(rows, file, indent=1)
        file.write("\n")
    os.replace(file.name, path)


def table(backends: dict[tuple[str, str], str]) -> list[dict[str, Any]]:
    """What is tuned so far, as the file holds it. ``backends``: the fastest of (operator, chip)."""
    configurations = [
        {"operator": operator, "chip": chip, "shape_class": shape_class, "config": config}
        for (operator, chip, shape_class), config in sorted(configs.tuned().items())
    ]
    return configurations + [
        {"operator": operator, "chip": chip, "backend": backend}
        for (operator, chip), backend in sorted(backends.items())
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m wino_kernels.triton.tune", description=__doc__.split("\n\n")[0])
    parser.add_argument("--operator", action="append", choices=OPERATORS, help="default: all; may be repeated")
    chosen = parser.parse_args(arguments).operator or OPERATORS
    if INTERPRETED:
        print("error: Triton is interpreted: unset TRITON_INTERPRET", file=sys.stderr)
        return 1
    if not torch.cuda.is_available():
        print("error: no GPU here: run it on the machine whose GPU is to be tuned, with its driver", file=sys.stderr)
        return 1
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        configs.tuned()
    except ValueError as error:
        print(f"error: {error}; remove the file to start anew", file=sys.stderr)
        return 1
    _tune_all(chosen, device)
    print(tuned.path())
    return 0


def _tune_all(chosen: Sequence[str], device: torch.device) -> None:
    """Every measurement is on the disk before the next one starts."""
    chip = target_of(device)
    backends = {(row["operator"], row["chip"]): row["backend"] for row in tuned.rows() if "backend" in row}
    with use_backend("triton"):
        for task in tasks():
            if task.operator in chosen:
                print(f"{task.operator}, {task.shape_class}", file=sys.stderr)
                tune(task, chip, device)
                write(table(backends), tuned.path())
    if (reason := why_not("cuda")) is not None:
        print(f"triton and cuda are not compared: {reason}", file=sys.stderr)
        return
    for operator in COMPARED:
        if operator in chosen:
            print(f"{operator}, triton or cuda", file=sys.stderr)
            backends[operator, chip] = faster_backend(operator, device)
            write(table(backends), tuned.path())


if __name__ == "__main__":
    sys.exit(main())
