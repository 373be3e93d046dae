"""Random calls of every operator on every instruction set, for a build with sanitizers (``make sanitize``).

    python tests/native/fuzz_calls.py --calls 5000 --seed 1

Sizes, strides, dtypes and values are random; one call in six has an argument that is wrong and must be refused with
``TypeError`` or ``ValueError``. What the sanitizers watch is that nothing outside the arguments is touched; right
results are the other tests' matter.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import layers

import wino_kernels
from wino_kernels import backends

LOGITS = (torch.float32, torch.bfloat16, torch.float16)
Call = tuple[Callable[..., Any], dict[str, Any]]


class Draw:
    """Random sizes and tensors of one call."""

    def __init__(self, seed: str) -> None:
        self.rng = random.Random(seed)
        torch.manual_seed(self.rng.getrandbits(32))

    def size(self, most: int) -> int:
        """Mostly small, often next to a multiple of a vector's length."""
        around = self.rng.choice((1, 2, 8, 16, 32, 64, 128, 256, 1024))
        return max(1, min(most, around + self.rng.randint(-2, 2)))

    def placed(self, tensor: Tensor) -> Tensor:
        """The same values, sometimes in rows that are further apart, beginning at an odd number."""
        if self.rng.random() < 0.6 or not tensor.is_floating_point():
            return tensor
        gap = self.rng.randint(1, 5)
        store = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] + gap + 1), math.nan)
        return store[..., 1 : 1 + tensor.shape[-1]].copy_(tensor)

    def numbers(self, *shape: int, dtype: torch.dtype) -> Tensor:
        numbers = torch.randn(shape) * self.rng.choice((0.1, 3.0, 30.0))
        if self.rng.random() < 0.15:
            bad = self.rng.choice((-math.inf, math.inf, math.nan, 3e38))
            numbers[torch.rand(shape) < self.rng.choice((0.001, 0.3))] = bad
        return self.placed(numbers.to(dtype))

    def per_row(self, values: tuple[float, ...], rows: int) -> Any:
        if self.rng.random() < 0.5:
            return self.rng.choice(values)
        return torch.tensor([self.rng.choice(values) for _ in range(rows)])

    def candidates(self, shape: tuple[int, ...], vocabulary: int) -> Tensor:
        kinds = torch.randint(-3, vocabulary + 2, shape)
        return torch.where(torch.rand(shape) < 0.4, -1, torch.where(torch.rand(shape) < 0.2, -2, kinds))

    def noise(self, rows: int) -> dict[str, Any]:
        if self.rng.random() < 0.6:
            return {}
        return {"temperature": self.rng.choice((0.3, 1.0)), "seed": self.rng.randint(-(2**63), 2**63 - 1)}


def score_tokens(draw: Draw) -> Call:
    rows, vocabulary = draw.size(9), draw.size(5000)
    logits = draw.numbers(rows, vocabulary, dtype=draw.rng.choice(LOGITS))
    given = {"logits": logits, "candidate_ids": draw.candidates((rows,), vocabulary), **draw.noise(rows)}
    return wino_kernels.score_tokens, given


def linear_score_tokens(draw: Draw) -> Call:
    rows, vocabulary, width, dtype = draw.size(70), draw.size(1100), draw.size(130), draw.rng.choice(LOGITS)
    given: dict[str, Any] = {
        "hidden": draw.numbers(rows, width, dtype=dtype),
        "weight": draw.placed(layers.random_weight(vocabulary, width, dtype)),
        "candidate_ids": draw.candidates((rows,), vocabulary),
        **draw.noise(rows),
    }
    if draw.rng.random() < 0.4:
        given["bias"] = torch.randn(vocabulary).to(dtype)
    return wino_kernels.linear_score_tokens, given


def _block(draw: Draw) -> tuple[int, int, Tensor, Tensor]:
    batch, block = draw.size(5), draw.size(300)
    masked = torch.rand(batch, block) < draw.rng.choice((0.1, 0.5, 1.0))
    return batch, block, masked, ~masked & (torch.rand(batch, block) < 0.7)


def accept_remask_(draw: Draw) -> Call:
    batch, block, masked, revocable = _block(draw)
    confidence = torch.rand(batch, block, dtype=draw.rng.choice((torch.float32, torch.float64)))
    confidence = confidence.round(decimals=draw.rng.choice((1, 6)))
    if draw.rng.random() < 0.1:
        confidence[torch.rand(batch, block) < 0.05] = math.nan
    return wino_kernels.accept_remask_, {
        "tokens": torch.randint(0, 99, (batch, block)),
        "masked": masked,
        "revocable": revocable,
        "token_ids": torch.randint(0, 99, (batch, block)),
        "confidence": confidence,
        "last_accepted": torch.randint(0, 31, (batch,), dtype=torch.int32),
        "mask_id": 98,
        "threshold": draw.per_row((0.1, 0.5, 0.9), batch),
        "threshold_back": draw.per_row((0.1, 0.5, 0.9), batch),
        "min_accept": draw.rng.choice((1, 5, 400)),
        "max_accept": draw.rng.choice((1, 20, 400)),
        "verify_last": draw.rng.random() < 0.5,
    }


def accept_(draw: Draw) -> Call:
    batch, block, masked, _ = _block(draw)
    given: dict[str, Any] = {
        "tokens": torch.randint(0, 99, (batch, block)),
        "masked": masked,
        "token_ids": torch.randint(0, 99, (batch, block)),
        "confidence": torch.rand(batch, block, dtype=draw.rng.choice((torch.float32, torch.float64))),
    }
    if draw.rng.random() < 0.5:
        given["threshold"] = draw.per_row((0.1, 0.9), batch)
    else:
        given["count"] = torch.randint(0, block + 3, (batch,), dtype=torch.int32)
    return wino_kernels.accept_, given


def wino_step_(draw: Draw) -> Call:
    batch, block, vocabulary = draw.size(3), draw.size(40), draw.size(1100)
    masked = torch.rand(batch, block) < 0.5
    return wino_kernels.wino_step_, {
        "logits": draw.numbers(batch, block, vocabulary, dtype=draw.rng.choice(LOGITS)),
        "tokens": torch.randint(0, vocabulary, (batch, block)),
        "masked": masked,
        "revocable": ~masked,
        "last_accepted": torch.randint(0, 31, (batch,), dtype=torch.int32),
        "mask_id": vocabulary - 1,
        "threshold": 0.5,
        "threshold_back": 0.9,
        **draw.noise(batch),
    }


def shadow_attention(draw: Draw) -> Call:
    batch, keys, width = draw.size(3), draw.size(150), draw.rng.choice((3, 8, 16, 22, 64, 128))
    shadow = draw.rng.randint(0, keys - 1)
    queries = draw.rng.randint(max(1, shadow), keys)
    per_key, key_heads, dtype = draw.rng.choice((1, 2, 3)), draw.rng.choice((1, 2)), draw.rng.choice(LOGITS)
    start = torch.randint(0, max(1, keys - 2 * shadow), (batch,)) if 2 * shadow <= keys else torch.zeros(batch)
    given: dict[str, Any] = {
        "query": draw.numbers(batch, key_heads * per_key, queries, width, dtype=dtype),
        "key": draw.numbers(batch, key_heads, keys, width, dtype=dtype),
        "value": draw.numbers(batch, key_heads, keys, width, dtype=dtype),
        "num_shadow": shadow,
        "block_start": start.to(torch.int64),
    }
    if draw.rng.random() < 0.4:
        given["key_padding_mask"] = torch.rand(batch, keys) < 0.8
    return wino_kernels.shadow_attention, given


def _shape(draw: Draw) -> tuple[int, ...]:
    heads, key_heads = draw.rng.choice(((1, 1), (2, 1), (3, 1), (4, 2)))
    width, inner = draw.size(130), draw.size(130)
    return draw.size(3), draw.size(90), width, heads, key_heads, 2 * draw.size(24), inner


def norm_qkv_rope(draw: Draw) -> Call:
    given = layers.before_attention(_shape(draw), draw.rng.choice(LOGITS), draw.rng.random() < 0.4)
    if draw.rng.random() < 0.4:
        batch, length = given["x"].shape[:2]
        given["query_rows"] = torch.randint(0, length, (batch, draw.size(length)))
    return wino_kernels.norm_qkv_rope, given


def out_norm_swiglu(draw: Draw) -> Call:
    given = layers.after_attention(_shape(draw), draw.rng.choice(LOGITS), draw.rng.random() < 0.4)
    return wino_kernels.out_norm_swiglu, given


def shadow_trunk(draw: Draw) -> Call:
    shape = list(_shape(draw))
    shape[1] += 3
    shadow = draw.rng.randint(1, max(1, shape[1] // 2 - 1))
    given = layers.trunk(
        shape,
        draw.rng.choice(LOGITS),
        draw.rng.choice((1, 2)),
        biases=draw.rng.random() < 0.4,
        padded=draw.rng.random() < 0.4,
        shadow=shadow,
    )
    if draw.rng.random() < 0.5:
        given["packed"] = wino_kernels.pack_trunk(given["weights"])
    return wino_kernels.shadow_trunk, given


def trajectory_loss(draw: Draw) -> Call:
    rows, vocabulary, width, dtype = draw.size(40), draw.size(600), draw.size(70), draw.rng.choice(LOGITS)
    target = torch.rand(rows) < 0.5

    def with_gradients(**given: Any) -> Any:
        with torch.enable_grad():
            wino_kernels.trajectory_loss(**given).loss.backward()

    return with_gradients, {
        "hidden": draw.numbers(rows, width, dtype=dtype).requires_grad_(),
        "weight": layers.random_weight(vocabulary, width, dtype).requires_grad_(draw.rng.random() < 0.5),
        "labels": torch.randint(0, vocabulary, (rows,)),
        "target_mask": target,
        "candidate_mask": ~target & (torch.rand(rows) < 0.5),
        "threshold": 0.2,
        "threshold_back": 0.7,
    }


OPERATORS = (
    *(score_tokens, linear_score_tokens, accept_remask_, accept_, wino_step_, shadow_attention),
    *(norm_qkv_rope, out_norm_swiglu, shadow_trunk, trajectory_loss),
)


def spoil(draw: Draw, given: dict[str, Any]) -> None:
    """Make one argument wrong: its shape, dtype, strides, or an index in it."""
    name = draw.rng.choice([name for name, value in given.items() if isinstance(value, Tensor)])
    value = given[name].detach()
    wrong = [
        value.to(torch.int16) if value.dtype != torch.int16 else value.double(),
        value[..., :-1] if value.dim() else value[None],
        value[None],
        value.to("meta"),
        value.expand(2, *value.shape) if value.dim() else value,
        value[:0] if value.dim() else value,
    ]
    if value.dtype == torch.int64 and value.numel():
        wrong += [torch.full_like(value, 2**40), torch.full_like(value, -(2**40))]
    given[name] = draw.rng.choice(wrong)


def run(isa: str, calls: int, seed: int) -> Counter[str]:
    """How often each operator was called, and how often a call was refused."""
    counted: Counter[str] = Counter()
    with backends.use_backend("cpu"), backends.use_cpu_isa(isa), torch.no_grad():
        for number in range(calls):
            name = f"{seed}/{isa}/{number}"
            draw = Draw(name)
            torch.set_num_threads(draw.rng.choice((1, 2, 3)))
            operator, given = draw.rng.choice(OPERATORS)(draw)
            is_spoilt = draw.rng.random() < 1 / 6
            if is_spoilt:
                spoil(draw, given)
            try:
                operator(**given)
            except (TypeError, ValueError):
                if not is_spoilt:
                    raise AssertionError(f"call {name}: {operator} refused arguments that are right") from None
                counted["refused"] += 1
            except Exception as error:
                raise AssertionError(f"call {name}: {operator} raised {type(error).__name__}") from error
            counted[getattr(operator, "__name__", "call")] += 1
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description="Random calls of every operator on every instruction set.")
    parser.add_argument("--calls", type=int, default=5000, help="on each instruction set")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    for isa in backends.CPU_ISAS:
        if backends.why_not_cpu_isa(isa) is None:
            counted = run(isa, arguments.calls, arguments.seed)
            print(f"{isa}: {arguments.calls} calls, {counted.pop('refused', 0)} refused; {dict(counted)}", flush=True)


if __name__ == "__main__":
    main()
