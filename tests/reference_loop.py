"""docs/spec.md sections 3, 3a and 4 once more, as plain Python over one sequence: the judge of the decoders.

It shares nothing with the package: the shadow block is a dense boolean mask, every position's logits are computed,
confidences are float64 softmaxes, sets are Python sets. Besides the result it reports how often each branch of the rule
ran, and how far the decode stayed from every tie and threshold, since nearer than rounding two correct implementations
may differ.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch


@dataclass
class ReferenceDecode:
    """``accepted_at``: step at which each generated position got its final token, -1 if given. ``margin``: as above.

    ``value_margin`` leaves ranks out; ``rank_margin`` is theirs, relative to what confidences lack to 1 or 0, in which
    saturated ones differ. A gap that a float64 near 1 hardly holds counts as none.
    """

    tokens: list[int]
    accepted_at: list[int]
    steps: int = 0
    branches: Counter[str] = field(default_factory=Counter)
    margin: float = math.inf
    value_margin: float = math.inf
    rank_margin: float = math.inf

    def note_margin(self, *distances: float) -> None:
        self.margin = min(self.margin, *distances, math.inf)
        self.value_margin = min(self.value_margin, *distances, math.inf)

    def note_rank_gap(self, values: list[float], count: int) -> None:
        """The choice of the first ``count`` of ``values`` (best first) hangs on the gap behind the last of them."""
        if 0 < count < len(values):
            last, next_one = values[count - 1 : count + 1]
            gap = abs(last - next_one)
            self.margin = min(self.margin, gap)
            scale = max(min(last, 1 - last), min(next_one, 1 - next_one))
            held = gap > (1e-15 if next_one > 0.5 else 0)
            self.rank_margin = min(self.rank_margin, gap / scale if held else 0.0)


def visibility(num_real: int, block_start: int, num_shadow: int) -> torch.Tensor:
    """The table of docs/spec.md section 2 as a (1, 1, L, L) mask."""
    length = num_real + num_shadow
    sees = torch.zeros(length, length, dtype=torch.bool)
    for query in range(length):
        for key in range(length):
            hidden = key >= num_real if query < num_real else key == block_start + query - num_real
            sees[query, key] = not hidden
    return sees[None, None]


def wino(
    model: Any,
    prompt: list[int],
    generation: list[int],
    *,
    mask_id: int,
    block_length: int,
    threshold: float,
    threshold_back: float,
    accept_fraction: Fraction = Fraction(7, 10),
    min_accept: int = 5,
    max_accept: int = 20,
    verify_last: bool = False,
) -> ReferenceDecode:
    """docs/spec.md section 3, and 3a with ``verify_last``.

    ``model(ids, attention_mask=..., position_ids=...).logits`` is all it calls.
    """
    out = ReferenceDecode([*prompt, *generation], [-1] * len(generation))
    x, num_real, first = out.tokens, len(prompt) + len(generation), len(prompt)
    for start in range(first, num_real, block_length):
        block = range(start, start + block_length)
        masked, revocable, last = {i for i in block if x[i] == mask_id}, set[int](), 30
        sees = visibility(num_real, start, block_length)
        while masked or (verify_last and revocable and last > 1):
            logits = _logits(model, [*x, *[mask_id] * block_length], sees, [*range(num_real), *block])
            verify = {j: _probability(logits[num_real + j - start], x[j]) for j in revocable}
            if not masked:
                out.branches["verify pass"] += 1
                doubted = _doubted(out, verify, threshold_back, last)
                last = last - len(doubted) if doubted else 0
            else:
                accepted = _accept(out, logits, x, masked, threshold, accept_fraction, min_accept, max_accept)
                doubted = _doubted(out, verify, threshold_back, last) if len(accepted) > 1 else set()
                out.branches["one accepted"] += len(accepted) == 1
                out.branches["accepted tokens"] += len(accepted)
                masked -= accepted
                revocable |= accepted
                last = len(accepted)
                for i in accepted:
                    out.accepted_at[i - first] = out.steps
            for j in doubted:
                x[j], out.accepted_at[j - first] = mask_id, -1
            out.branches["re-masked tokens"] += len(doubted)
            masked |= doubted
            revocable -= doubted
            out.steps += 1
    return out


def _accept(
    out: ReferenceDecode,
    logits: torch.Tensor,
    x: list[int],
    masked: set[int],
    threshold: float,
    accept_fraction: Fraction,
    min_accept: int,
    max_accept: int,
) -> set[int]:
    limit = min(max(math.floor(accept_fraction * len(masked)), min_accept), max_accept)
    token = {i: int(logits[i].argmax()) for i in masked}
    confidence = {i: _probability(logits[i], token[i]) for i in masked}
    best_first = sorted(masked, key=lambda i: (-confidence[i], i))
    chosen = {i for i in masked if confidence[i] > threshold}
    out.note_margin(*(abs(confidence[i] - threshold) for i in masked))
    out.branches["saturated"] += sum(value > 1 - 1e-7 for value in confidence.values()) > 30
    if len(chosen) > limit:
        out.branches["capped"] += 1
        chosen = set(best_first[:limit])
        out.note_rank_gap([confidence[i] for i in best_first], limit)
    elif not chosen:
        out.branches["none above threshold"] += 1
        chosen = set(best_first[:1])
        out.note_rank_gap([confidence[i] for i in best_first], 1)
    for i in chosen:
        top, second = logits[i].topk(2).values.tolist()
        out.note_margin(top - second)
        x[i] = token[i]
    return chosen


def _doubted(out: ReferenceDecode, verify: dict[int, float], threshold_back: float, last: int) -> set[int]:
    doubted = {j for j, value in verify.items() if value < threshold_back}
    out.note_margin(*(abs(value - threshold_back) for value in verify.values()))
    if len(doubted) < last:
        out.branches["all doubted re-masked"] += bool(doubted)
    else:
        out.branches["cut to last - 1"] += 1
        worst_first = sorted(verify, key=lambda j: (verify[j], j))
        doubted = set(worst_first[: last - 1])
        out.note_rank_gap([verify[j] for j in worst_first], last - 1)
    return doubted


def low_confidence(
    model: Any, prompt: list[int], generation: list[int], *, mask_id: int, block_length: int, steps: int
) -> ReferenceDecode:
    """LLaDA's own decoder (docs/spec.md section 4): a block's masks split evenly over its steps, surest first."""

    def counts(masks: int) -> list[int]:
        each, remainder = divmod(masks, steps * block_length // len(generation))
        return [each + (i < remainder) for i in range(steps * block_length // len(generation))]

    return _without_shadow(
        model, prompt, generation, mask_id, block_length, lambda step, masks, confidence: counts(masks)[step]
    )


def prophet(
    model: Any,
    prompt: list[int],
    generation: list[int],
    *,
    mask_id: int,
    block_length: int,
    steps: int,
    answer_start: int | None,
) -> ReferenceDecode:
    """Early commit (docs/spec.md section 4): low_confidence until the mean top-two gap is wide enough.

    The branches name the gap that ended the decode, or "never committed".
    """
    out = ReferenceDecode([*prompt, *generation], [-1] * len(generation))
    x, first = out.tokens, len(prompt)
    each_block = steps * block_length // len(generation)
    for number, start in enumerate(range(first, len(x), block_length)):
        masked = {i for i in range(start, start + block_length) if x[i] == mask_id}
        each, remainder = divmod(len(masked), each_block)
        step = 0
        while masked:
            logits = _logits(model, x, None, list(range(len(x))))
            everywhere = [i for i in range(first, len(x)) if x[i] == mask_id]
            looked_at = everywhere if answer_start is None else range(first + answer_start, first + answer_start + 5)
            gaps = [logits[i].topk(2).values.tolist() for i in looked_at]
            gap = sum(a - b for a, b in gaps) / len(gaps)
            progress = (number * each_block + step + 1) / steps
            needed = 7.5 if progress < 0.33 else 5.0 if progress < 0.67 else 2.5
            out.note_margin(abs(gap - needed))
            confidence = {i: _probability(logits[i], int(logits[i].argmax())) for i in masked}
            count = each + (step < remainder)
            best_first = sorted(masked, key=lambda i: (-confidence[i], i))
            filled = everywhere if gap >= needed else best_first[:count]
            if gap < needed:
                out.note_rank_gap([confidence[i] for i in best_first], count)
            for i in filled:
                top, second = logits[i].topk(2).values.tolist()
                out.note_margin(top - second)
                x[i], out.accepted_at[i - first] = int(logits[i].argmax()), out.steps
            out.steps += 1
            if gap >= needed:
                out.branches[f"committed at {needed}"] += 1
                return out
            masked -= set(filled)
            step += 1
    out.branches["never committed"] += 1
    return out


def maskgit(
    model: Any,
    prompt: list[int],
    generation: list[int],
    *,
    mask_id: int,
    block_length: int,
    steps: int,
    token_range: tuple[int, int],
    draw: Callable[[int, int, torch.Tensor], int],
    noise: Callable[[int, int], float],
    choice_temperature: float,
    guide: tuple[float, list[int]] | None = None,
) -> ReferenceDecode:
    """MaskGIT as MMaDA runs it: every masked token drawn each step, the surest kept, on a cosine schedule.

    ``draw(step, position, logits of the range)`` chooses a token of the range, ``noise(step, position)`` is Gumbel
    noise on its log probability; ``guide`` is classifier-free guidance's scale and the prompt of its second copy.
    """
    first, behind = token_range
    out = ReferenceDecode([*prompt, *generation], [-1] * len(generation))
    x, start_of = out.tokens, len(prompt)
    each = steps * block_length // len(generation)
    for start in range(start_of, len(x), block_length):
        masked = {i for i in range(start, start + block_length) if x[i] == mask_id}
        number, temperature = len(masked), choice_temperature
        for step in range(each if masked else 0):
            logits = _logits(model, x, None, list(range(len(x))))
            if guide is not None:
                scale, other = guide
                behind_prompt = [*other, *x[start_of:]]
                unguided = _logits(model, behind_prompt, None, list(range(len(behind_prompt))))[len(other) :]
                logits = logits.clone()
                logits[start_of:] = (1 + scale) * logits[start_of:] - scale * unguided
            temperature *= 1 - (step + 1) / each
            left = math.floor(number * torch.cos(torch.tensor((step + 1) / each) * math.pi * 0.5))
            left = 0 if step == each - 1 else max(1, min(len(masked) - 1, left))
            own = {i: logits[i, first:behind] for i in masked}
            token = {i: draw(out.steps, i, own[i]) for i in masked}
            surety = {
                i: math.log(max(_probability(own[i], token[i]), 1e-20)) + temperature * noise(out.steps, i)
                for i in masked
            }
            best_first = sorted(masked, key=lambda i: (-surety[i], i))
            kept = best_first[: len(masked) - left]
            out.note_rank_gap([surety[i] for i in best_first], len(kept))
            for i in kept:
                x[i], out.accepted_at[i - start_of] = first + token[i], out.steps
            masked -= set(kept)
            out.steps += 1
            if not masked:
                break
    return out


def confidence_threshold(
    model: Any, prompt: list[int], generation: list[int], *, mask_id: int, block_length: int, threshold: float
) -> ReferenceDecode:
    """Fast-dLLM's rule (docs/spec.md section 4): all masked positions with c >= ``threshold``, at least the best."""
    return _without_shadow(
        model,
        prompt,
        generation,
        mask_id,
        block_length,
        lambda step, masks, confidence: max(1, sum(value >= threshold for value in confidence)),
        threshold,
    )


def _without_shadow(
    model: Any,
    prompt: list[int],
    generation: list[int],
    mask_id: int,
    block_length: int,
    how_many: Any,
    *thresholds: float,
) -> ReferenceDecode:
    out = ReferenceDecode([*prompt, *generation], [-1] * len(generation))
    x, first = out.tokens, len(prompt)
    for start in range(first, len(x), block_length):
        masked = {i for i in range(start, start + block_length) if x[i] == mask_id}
        masks, step = len(masked), 0
        while masked:
            logits = _logits(model, x, None, list(range(len(x))))
            token = {i: int(logits[i].argmax()) for i in masked}
            confidence = {i: _probability(logits[i], token[i]) for i in masked}
            best_first = sorted(masked, key=lambda i: (-confidence[i], i))
            ranked = [confidence[i] for i in best_first]
            count = how_many(step, masks, ranked)
            out.note_rank_gap(ranked, count)
            out.note_margin(*(abs(value - threshold) for value in ranked for threshold in thresholds))
            for i in best_first[:count]:
                top, second = logits[i].topk(2).values.tolist()
                out.note_margin(top - second)
                x[i], out.accepted_at[i - first] = token[i], out.steps
            masked -= set(best_first[:count])
            step += 1
            out.steps += 1
    return out


def _logits(model: Any, tokens: list[int], sees: torch.Tensor | None, positions: list[int]) -> torch.Tensor:
    """(L, V) float64."""
    with torch.no_grad():
        output = model(torch.tensor([tokens]), attention_mask=sees, position_ids=torch.tensor(positions))
    return output.logits[0].double()


def _probability(logits: torch.Tensor, token: int) -> float:
    return float(torch.softmax(logits, dim=-1)[token])
