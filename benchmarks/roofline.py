"""What each operator has to move and compute, the least time that takes on a GPU, and what eager moves instead.

    python benchmarks/roofline.py            prints the tables
    python benchmarks/roofline.py --write    puts them between the markers of docs/kernels.md

Nothing here is measured: bytes and operations follow from shapes, times from the chips' data sheets, eager's traffic
from running its code on tensors without data.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from published import Published, make_step, published
from tables import replace, table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wino_kernels.eager.accept import accept_ as eager_accept
from wino_kernels.eager.norm_qkv_rope import norm_qkv_rope as eager_before
from wino_kernels.eager.out_norm_swiglu import out_norm_swiglu as eager_after
from wino_kernels.eager.trajectory_loss import trajectory_loss as eager_loss
from wino_kernels.eager.trajectory_loss import trajectory_loss_backward as eager_loss_backward
from wino_kernels.resources import GENERATION, LLADA, MMADA, PROMPT, Model

DOCUMENT = Path(__file__).parent.parent / "docs" / "kernels.md"
BF16, IDS, FLAG, FLOAT, INT32, CONFIDENCE = 2, 8, 1, 4, 4, 8  # bytes an element
BLOCKS, BATCHES = (32, 128), (1, 16)
INNER = 3  # columns between the two products of LLaDA's feed-forward part, over its width


class Chip(NamedTuple):
    """Peaks of a data sheet, per second: bytes of memory, dense bfloat16 and float32 operations."""

    name: str
    bandwidth: float
    matrix: float
    vector: float
    lanes: int  # float32 multiply-adds a clock and processor; the CUDA guide's table of arithmetic throughput

    @property
    def exponentials(self) -> float:
        """16 results a clock and processor, where ``lanes`` multiply-adds (two operations each) make ``vector``."""
        return self.vector / (2 * self.lanes) * 16


CHIPS = (
    # "NVIDIA A100 Tensor Core GPU" data sheet, A100 80GB SXM
    Chip("A100-80GB-SXM", 2039e9, 312e12, 19.5e12, 64),
    # "NVIDIA H100 Tensor Core GPU" data sheet, H100 SXM; tensor peaks there are with sparsity, halved here
    Chip("H100-SXM", 3.35e12, 989.5e12, 67e12, 128),
    # "NVIDIA HGX B200" specifications, an eighth of the eight-GPU board; tensor peaks with sparsity, halved here
    Chip("B200", 8e12, 2.25e15, 75e12, 128),
)


# "NVIDIA H200 Tensor Core GPU" data sheet; not in the tables, but its peaks are compared with where it is measured
H200 = Chip("H200-SXM", 4.8e12, 989.5e12, 67e12, 128)


class Work(NamedTuple):
    """One call: bytes that must cross the memory bus once, and operations by the unit that does them."""

    read: int
    written: int
    matrix: int = 0
    vector: int = 0
    exponentials: int = 0

    @property
    def moved(self) -> int:
        return self.read + self.written

    def times(self, chip: Chip) -> dict[str, float]:
        """Seconds that each resource of ``chip`` needs at its peak."""
        return {
            "memory": self.moved / chip.bandwidth,
            "tensor cores": self.matrix / chip.matrix,
            "float32": self.vector / chip.vector,
            "exponentials": self.exponentials / chip.exponentials,
        }

    def roofline(self, chip: Chip) -> tuple[float, str]:
        """The least seconds a call can take, and the resource that decides."""
        times = self.times(chip)
        limit = max(times, key=lambda name: times[name])
        return times[limit], limit


# A logit is compared with the maximum so far, shifted by it, scaled to base 2 and, exponentiated, added up.
SCORING = 4


def score_tokens(rows: int, vocabulary: int, itemsize: int = BF16) -> Work:
    logits = rows * vocabulary
    return Work(
        read=logits * itemsize + rows * IDS,
        written=rows * (IDS + CONFIDENCE),
        vector=SCORING * logits,
        exponentials=logits,
    )


def linear_score_tokens(rows: int, hidden: int, vocabulary: int, itemsize: int = BF16) -> Work:
    logits = rows * vocabulary
    return Work(
        read=(rows + vocabulary) * hidden * itemsize + rows * IDS,
        written=rows * (IDS + CONFIDENCE),
        matrix=2 * logits * hidden,
        vector=SCORING * logits,
        exponentials=logits,
    )


def head(rows: int, hidden: int, vocabulary: int, itemsize: int = BF16) -> Work:
    """The LM head alone, as a matrix library computes it: every logit is written."""
    logits = rows * vocabulary
    return Work(read=(rows + vocabulary) * hidden * itemsize, written=logits * itemsize, matrix=2 * logits * hidden)


def accept_remask_(batch: int, block: int) -> Work:
    state = batch * (block * (IDS + 2 * FLAG) + INT32)  # tokens, masked, revocable; last_accepted
    draft = batch * block * (IDS + CONFIDENCE)
    # A rank counts, among the block, who goes before: compared and added, once to accept and once to re-mask.
    return Work(read=state + draft, written=state + 3 * batch * INT32, vector=2 * 2 * batch * block * block)


def accept_(batch: int, block: int) -> Work:
    state = batch * block * (IDS + FLAG)
    draft = batch * block * (IDS + CONFIDENCE)
    return Work(read=state + draft, written=state + 2 * batch * INT32, vector=2 * batch * block * block)


def wino_step_(batch: int, block: int, vocabulary: int, itemsize: int = BF16) -> Work:
    """Scores go from one half to the other inside the launch: neither candidates nor drafts are in memory."""
    scored = score_tokens(batch * block, vocabulary, itemsize)
    step, draft = accept_remask_(batch, block), batch * block * (IDS + CONFIDENCE)
    return Work(
        read=scored.read - batch * block * IDS + step.read - draft,
        written=step.written,
        vector=scored.vector + step.vector,
        exponentials=scored.exponentials,
    )


def visible_pairs(queries: int, keys: int, shadow: int) -> int:
    """Query-key pairs of docs/spec.md section 2: real queries see real keys, shadow queries all keys but one."""
    return (queries - shadow) * (keys - shadow) + shadow * (keys - 1 if shadow else keys)


def shadow_attention(
    batch: int, heads: int, queries: int, keys: int, shadow: int, width: int, itemsize: int = BF16
) -> Work:
    pairs = batch * heads * visible_pairs(queries, keys, shadow)
    side = batch * heads * width * itemsize
    return Work(
        read=side * (queries + 2 * keys) + batch * IDS,
        written=side * queries,
        matrix=4 * width * pairs,  # two products, a multiplication and an addition each
        vector=SCORING * pairs,
        exponentials=pairs,
    )


def norm_qkv_rope(tokens: int, hidden: int, projected: int, itemsize: int = BF16) -> Work:
    """``projected``: columns of queries, keys and values together."""
    read, written = (tokens + projected) * hidden * itemsize, tokens * projected * itemsize
    return Work(read=read, written=written, matrix=2 * tokens * hidden * projected)


def out_norm_swiglu(tokens: int, hidden: int, attended: int, inner: int, itemsize: int = BF16) -> Work:
    weights = hidden * (attended + 3 * inner)
    return Work(
        read=(tokens * (hidden + attended) + weights) * itemsize,
        written=tokens * hidden * itemsize,
        matrix=2 * tokens * weights,
    )


# Beside the score of a row: the entropy's term p * log p.
ENTROPY = 2
STATISTICS = 3 * FLOAT  # of a row, for backward


def trajectory_loss(rows: int, hidden: int, vocabulary: int, itemsize: int = BF16) -> Work:
    logits = rows * vocabulary
    return Work(
        read=(rows + vocabulary) * hidden * itemsize + rows * (IDS + 2 * FLAG),
        written=3 * (FLOAT + IDS) + rows * STATISTICS,
        matrix=2 * logits * hidden,
        vector=(SCORING + ENTROPY) * logits,
        exponentials=logits,
    )


def trajectory_loss_backward(
    rows: int, hidden: int, vocabulary: int, itemsize: int = BF16, weight_gradient: bool = True
) -> Work:
    """The logits are computed again, then multiplied into the gradient of hidden and, if asked for, of weight."""
    forward = trajectory_loss(rows, hidden, vocabulary, itemsize)
    gradient = (rows + (vocabulary if weight_gradient else 0)) * hidden * itemsize
    return Work(
        read=(rows + vocabulary) * hidden * itemsize + rows * (IDS + STATISTICS) + 3 * FLOAT,
        written=gradient,
        matrix=(3 if weight_gradient else 2) * forward.matrix,
        vector=forward.vector,
        exponentials=forward.exponentials,
    )


_aten = torch.ops.aten


class Traffic(NamedTuple):
    """What the kernels of eager code read and write, how many there are, and how often the host waits for one."""

    kernels: int
    read: int
    written: int
    host_reads: int

    @property
    def moved(self) -> int:
        return self.read + self.written

    def __add__(self, other: Traffic) -> Traffic:  # type: ignore[override]
        return Traffic(*(own + its for own, its in zip(self, other, strict=True)))


class _Counting(TorchDispatchMode):
    """Every operator that makes or changes a tensor is one kernel that reads its arguments and writes its results."""

    # Rows that do not fit into shared memory are read for the maximum, for the sum and for the result
    # (PyTorch: aten/src/ATen/native/cuda/SoftMax.cu, cunn_SoftMaxForward).
    ROW_READS = 3
    SHARED = 227 << 10

    def __init__(self) -> None:
        super().__init__()
        self.counted = Traffic(0, 0, 0, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is _aten._local_scalar_dense.default:
            self.counted += Traffic(0, 0, 0, 1)
        elif not func.is_view and func is not _aten.empty.memory_format:
            inputs = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
            written = sum(_bytes(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
            self.counted += Traffic(1, self._read(func, inputs, written), written, _positions_wanted(func, args))
        return result

    def _read(self, func: Any, inputs: list[Tensor], written: int) -> int:
        if func in (_aten.gather.default, _aten.index.Tensor):
            return written + sum(map(_bytes, inputs[1:]))  # of the first argument only what is picked
        row = inputs[0].shape[-1] * inputs[0].itemsize if inputs and inputs[0].dim() else 0
        again = func in (_aten._softmax.default, _aten._log_softmax.default) and row > self.SHARED
        return (self.ROW_READS if again else 1) * sum(map(_bytes, inputs))


def _positions_wanted(func: Any, args: Any) -> int:
    """A mask as an index makes the host wait for the number of its positions, except to fill them with one value."""
    picks = func is _aten.index.Tensor or (func is _aten.index_put_.default and args[2].numel() != 1)
    return int(picks and any(index is not None and index.dtype == torch.bool for index in args[1]))


def _bytes(tensor: Tensor) -> int:
    """What a kernel touches of a tensor: no more than there is behind an expanded one."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


def traffic(function: Callable[[], object]) -> Traffic:
    with _Counting() as counting:
        function()
    return counting.counted


def _meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def float32_softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The published formulation with its softmax in float32."""
    token_ids = torch.argmax(logits, dim=-1)
    return token_ids, torch.gather(F.softmax(logits.float(), dim=-1), -1, token_ids[:, None])[:, 0]


def dense_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention with an (L, L) bias and the scores in memory."""
    scores = (query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5
    return F.softmax(scores + mask, dim=-1) @ value


class Row(NamedTuple):
    """One operator at one shape, and what eager does instead, by name."""

    operator: str
    model: str
    shape: str
    work: Work
    instead: dict[str, Traffic]


EVERY_POSITION = "published: float64 softmax of every position"
BLOCK_ROWS = "float32 softmax of the block's rows"


def positions(batch: int, block: int) -> int:
    """Rows of logits in the published loop: prompt, generation and shadow block."""
    return batch * (PROMPT + GENERATION + block)


def rows() -> list[Row]:
    shapes = [(batch, block) for block in BLOCKS for batch in BATCHES]
    found = [row for model in (LLADA, MMADA) for shape in shapes for row in _model_rows(model, *shape)]
    found += [row for shape in shapes for row in _common_rows(*shape)]
    operators = list(dict.fromkeys(row.operator for row in found))
    return sorted(found, key=lambda row: operators.index(row.operator))


def _model_rows(model: Model, batch: int, block: int) -> Iterator[Row]:
    """Operators that see the vocabulary."""
    vocabulary, hidden, number = model.vocabulary, model.hidden, batch * block
    label = model.name, f"B={batch} K={block}"
    everywhere = _meta(positions(batch, block), vocabulary)
    states, weight = _meta(positions(batch, block), hidden), _meta(vocabulary, hidden)
    scoring = traffic(lambda: published(everywhere))
    instead = {EVERY_POSITION: scoring, BLOCK_ROWS: traffic(lambda: float32_softmax(everywhere[:number]))}
    yield Row("score_tokens", *label, score_tokens(number, vocabulary), instead)

    instead = {
        f"head; {EVERY_POSITION}": traffic(lambda: published(F.linear(states, weight))),
        f"head; {BLOCK_ROWS}": traffic(lambda: float32_softmax(F.linear(states[:number], weight))),
    }
    yield Row("linear_score_tokens", *label, linear_score_tokens(number, hidden, vocabulary), instead)

    instead = {"published: scoring, then the step": scoring + published_step(batch, block)}
    yield Row("wino_step_", *label, wino_step_(batch, block, vocabulary), instead)

    mask = _meta(number, dtype=torch.bool)
    labels, thresholds = _meta(number, dtype=torch.int64), (torch.tensor(0.6), torch.tensor(0.9))
    given = states[:number], weight, labels, mask, mask, *thresholds
    instead = {"logits in memory, float32": traffic(lambda: eager_loss(*given))}
    yield Row("trajectory_loss", *label, trajectory_loss(number, hidden, vocabulary), instead)
    sums = _meta(3, dtype=torch.float32)
    statistics = _meta(3, number, dtype=torch.float32)
    backward = sums, *given[:3], statistics, True
    instead = {"logits in memory, float32": traffic(lambda: eager_loss_backward(*backward))}
    yield Row("trajectory_loss_backward", *label, trajectory_loss_backward(number, hidden, vocabulary), instead)


def _common_rows(batch: int, block: int) -> Iterator[Row]:
    """Operators that are the same for both models."""
    label = f"{LLADA.name}, {MMADA.name}", f"B={batch} K={block}"
    instead = {"published, one sequence at a time": published_step(batch, block)}
    yield Row("accept_remask_", *label, accept_remask_(batch, block), instead)

    tokens, masked = _meta(batch, block, dtype=torch.int64), _meta(batch, block, dtype=torch.bool)
    confidence, threshold = _meta(batch, block, dtype=torch.float64), torch.tensor(0.9)
    ranks = traffic(lambda: eager_accept(tokens, masked, tokens, confidence, threshold))
    yield Row("accept_", *label, accept_(batch, block), {"ranks as a (K, K) tensor": ranks})

    length = PROMPT + GENERATION + block
    query, bias = _meta(batch, LLADA.heads, length, LLADA.width), _meta(1, 1, length, length)
    dense = traffic(lambda: dense_attention(query, query, query, bias))
    work = shadow_attention(batch, LLADA.heads, length, length, block, LLADA.width)
    yield Row("shadow_attention", *label, work, {"dense (L, L) bias, scores in memory": dense})
    yield from _layer_rows(batch, length, label)


def _layer_rows(batch: int, length: int, label: tuple[str, str]) -> Iterator[Row]:
    """The two halves of a layer; ``shadow_trunk`` is as many of them as there are layers, attention in between."""
    hidden, queries, inner = LLADA.hidden, LLADA.heads * LLADA.width, INNER * LLADA.hidden
    x, attended = _meta(batch, length, hidden), _meta(batch, LLADA.heads, length, LLADA.width)
    angles, norm = _meta(1, 1, length, LLADA.width, dtype=torch.float32), _meta(hidden)
    square, wide, tall = _meta(queries, hidden), _meta(inner, hidden), _meta(hidden, inner)
    before = traffic(lambda: eager_before(x, norm, square, square, square, angles, angles, 1e-5))
    work = norm_qkv_rope(batch * length, hidden, 3 * queries)
    yield Row("norm_qkv_rope", *label, work, {"separate operations": before})
    after = traffic(lambda: eager_after(x, attended, square.T, norm, wide, wide, tall, 1e-5))
    work = out_norm_swiglu(batch * length, hidden, queries, inner)
    yield Row("out_norm_swiglu", *label, work, {"separate operations": after})


def published_step(batch: int, block: int) -> Traffic:
    sequences = [Published(make_step(batch, block), row) for row in range(batch)]
    return traffic(lambda: [sequence.step() for sequence in sequences])


def size(number: float) -> str:
    power = min(4, (len(str(int(number))) - 1) // 3)
    return f"{number / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def microseconds(seconds: float) -> str:
    value = seconds * 1e6
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value < 1 else f"{value:.3g}"


def operations(work: Work) -> str:
    """The unit with the most to do."""
    if work.matrix:
        return f"{work.matrix / 1e9:,.0f} G matrix"
    return f"{_millions(work.vector)} M float32" + (f", {_millions(work.exponentials)} M exp" * bool(work.exponentials))


def _millions(number: int) -> str:
    return f"{number / 1e6:,.0f}" if number >= 10**8 else f"{number / 1e6:.2g}"


def work_table(found: list[Row]) -> str:
    """Bytes, operations and roofline times of each operator and shape."""
    body = []
    for operator, model, shape, work, _ in found:
        times = [work.roofline(chip) for chip in CHIPS]
        limits = ", ".join(dict.fromkeys(limit for _, limit in times))
        numbers = [size(work.moved), operations(work), *(microseconds(seconds) for seconds, _ in times)]
        body.append([f"`{operator}`", model, shape, *numbers, limits])
    columns = ["operator", "model", "shape", "bytes", "operations", *(f"{chip.name} µs" for chip in CHIPS), "bound by"]
    return table(columns, body)


def head_table() -> str:
    """The head fused with its scoring, against the head of a matrix library and then score_tokens."""
    body = []
    for rows in (32, 128, 512, 1024, 2048):
        sizes = rows, LLADA.hidden, LLADA.vocabulary
        fused, parts = linear_score_tokens(*sizes), (head(*sizes), score_tokens(rows, LLADA.vocabulary))
        line = [str(rows), size(fused.moved), size(sum(part.moved for part in parts))]
        for chip in CHIPS:
            own, both = fused.roofline(chip)[0], sum(part.roofline(chip)[0] for part in parts)
            line.append(f"{microseconds(own)} / {microseconds(both)} ({both / own - 1:+.0%})")
        body.append(line)
    times = [f"{chip.name} µs, fused / in two" for chip in CHIPS]
    return table(["rows", "bytes, fused", "bytes, in two", *times], body)


def eager_table(found: list[Row]) -> str:
    """What eager moves for the same result, at one sequence with K = 128."""
    body = []
    for operator, model, shape, work, instead in found:
        if shape != "B=1 K=128":
            continue
        for name, counted in instead.items():
            ratio = f"{counted.moved / work.moved:.3g}x"
            numbers = [size(counted.moved), ratio, str(counted.kernels), str(counted.host_reads)]
            body.append([f"`{operator}`", model, name, *numbers])
    return table(["operator", "model", "eager", "bytes", "of ours", "kernels", "host waits"], body)


def sections_of(found: list[Row]) -> dict[str, str]:
    """What stands between the markers of docs/kernels.md."""
    return {"roofline": work_table(found), "eager": eager_table(found), "head": head_table()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="fill the marked sections of docs/kernels.md")
    write = parser.parse_args().write
    found = rows()
    sections = sections_of(found)
    if not write:
        print("\n\n".join(sections.values()))
        return
    document = DOCUMENT.read_text(encoding="utf-8")
    for name, text in sections.items():
        document = replace(document, name, text)
    DOCUMENT.write_text(document, encoding="utf-8")


if __name__ == "__main__":
    main()
