"""Measure decodes of one workload: the published loop and ours in several modes, in interleaved rounds."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import GenerationConfig
from ..generation import generate
from ..models.backbone import Backbone, backbone_of
from ..models.ends import end_token_ids
from ..models.head import Head
from ..tasks.evaluation import answer_lengths
from .memory import peak_extra
from .published import PublishedBlock, decode
from .timing import PHASES, Clock, Ratio, interleaved, ratio

PUBLISHED = "published"
_SKIP = -2


class Workload(NamedTuple):
    """What every contender decodes: prompts (B, P) int64, padded on the left, with settings."""

    model: Any
    input_ids: Tensor
    attention_mask: Tensor | None
    config: GenerationConfig

    def at_the_model(self) -> Workload:
        """The same with its prompts on the model's device, which the published loop and the clock expect."""
        device, mask = backbone_of(self.model).device, self.attention_mask
        return self._replace(
            input_ids=self.input_ids.to(device), attention_mask=None if mask is None else mask.to(device)
        )


class Decoded(NamedTuple):
    """What one call produced: (N, G) int64 generated tokens and (N,) forward passes of its N sequences."""

    tokens: Tensor
    steps: Tensor


@dataclass(frozen=True)
class Figures:
    """One contender on one workload.

    Attributes:
        name: of the mode, or ``"published"``.
        sequences: decoded in one call.
        seconds: of each round's call, per sequence.
        steps: forward passes a sequence, mean.
        tokens: a sequence's tokens up to and including its first end token, mean (docs/spec.md section 3).
        tokens_per_forward: mean over the sequences of their tokens / forward passes.
        accepted_per_forward: generated tokens, padding included, over forward passes.
        remasked: tokens taken back a sequence; None where the mode keeps no record.
        forwards: forward passes of a call: those of the longest sequence of a batch.
        milliseconds: phase -> per forward pass, of the round with the median time, so that they add up to it;
            ``"step"`` alone where a mode runs the step as one.
        peak_bytes: per sequence, beyond the model; None if not measured.
        agreement: share of generated tokens equal to the first contender's.
    """

    name: str
    sequences: int
    seconds: list[float]
    steps: float
    tokens: float
    tokens_per_forward: float
    accepted_per_forward: float
    remasked: float | None
    forwards: int
    milliseconds: dict[str, float]
    peak_bytes: int | None
    agreement: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / statistics.median(self.seconds)

    @property
    def milliseconds_per_step(self) -> float:
        return sum(self.milliseconds.values())

    def times_faster_than(self, other: Figures) -> Ratio:
        """Per sequence, round by round."""
        return ratio(other.seconds, self.seconds)

    def row(self) -> dict[str, Any]:
        """The figures as one flat record."""
        return asdict(self) | {"tokens_per_second": self.tokens_per_second}


class Contender:
    """One way to decode a workload; remembers how each call's time was split."""

    def __init__(self, name: str, workload: Workload) -> None:
        self.name, self.workload = name, workload
        self.splits: list[dict[str, float]] = []  # seconds by phase, one a call

    def run(self, clock: Clock, *, record: bool = False) -> tuple[Decoded, float | None]:
        """Decode once; with ``record`` also how many tokens were taken back a sequence, where that is known."""
        raise NotImplementedError

    def timed(self) -> None:
        clock = Clock(self.workload.input_ids.device)
        self.run(clock)
        self.splits.append(clock.seconds())

    def head_seconds(self, rounds: int) -> float:
        """Of one call: the matrix products of the LM head, where only their sum with the scoring was timed."""
        return 0.0

    def milliseconds(self, rounds: int, forwards: int) -> dict[str, float]:
        middle = sorted(self.splits, key=lambda split: sum(split.values()))[(len(self.splits) - 1) // 2]
        found = {phase: 1e3 * middle[phase] / forwards for phase in (*PHASES, "step") if phase in middle}
        if "scoring" in found and "head" not in found:
            head = min(1e3 * self.head_seconds(rounds) / forwards, found["scoring"])
            found = {"trunk": found["trunk"], "head": head} | found | {"scoring": found["scoring"] - head}
        return found


class PublishedLoop(Contender):
    """The published loop: one sequence after the other, the first ``sequences`` of the workload."""

    def __init__(self, workload: Workload, sequences: int | None = None) -> None:
        super().__init__(PUBLISHED, workload)
        self.sequences = len(workload.input_ids) if sequences is None else min(sequences, len(workload.input_ids))
        self.margin = Margin()

    def run(self, clock: Clock, *, record: bool = False) -> tuple[Decoded, float | None]:
        model, input_ids, attention_mask, config = self.workload
        results = []
        with _lap_after_final_norm(model, clock):
            for row in range(self.sequences):
                prompt = input_ids[row : row + 1]
                if attention_mask is not None:
                    prompt = prompt[:, attention_mask[row].bool()]
                watch = {"watch": self.margin} if record else {}
                results.append(
                    decode(
                        model,
                        prompt,
                        max_new_tokens=config.max_new_tokens,
                        block_length=config.block_size,
                        mask_id=model.config.mask_token_id,
                        threshold=float(config.threshold),  # type: ignore[arg-type]
                        threshold_back=float(config.threshold_back),  # type: ignore[arg-type]
                        clock=clock,
                        **watch,
                    )
                )
        tokens = torch.cat([result.sequences[:, -config.max_new_tokens :] for result in results])
        return Decoded(tokens, torch.tensor([result.steps for result in results])), None


class Mode(Contender):
    """Our loop with a mode's settings over the workload's."""

    def __init__(self, name: str, workload: Workload, settings: Mapping[str, Any]) -> None:
        super().__init__(name, workload)
        self.config = GenerationConfig(**workload.config.to_dict() | dict(settings))
        self.sequences = len(workload.input_ids)
        self.as_one = bool(self.config.to_dict().get("compile_step") or self.config.to_dict().get("cuda_graph"))
        self._head_rows: Counter[int] = Counter()  # rows scored -> calls, of the last decode

    def run(self, clock: Clock, *, record: bool = False) -> tuple[Decoded, float | None]:
        config = self.config
        if record and not self.as_one:
            config = GenerationConfig(**config.to_dict() | {"return_trace": True})
        given = self.workload.model, self.workload.input_ids, self.workload.attention_mask, config
        if self.as_one:
            out = generate(*given)
            clock.lap("step")
        else:
            with _laps_in_our_loop(clock) as scored:
                out = generate(*given)
            clock.lap("bookkeeping")
            self._head_rows = Counter(int((ids != _SKIP).sum()) for ids in scored)
        decoded = Decoded(out.sequences[:, -config.max_new_tokens :], out.steps.cpu())
        if out.trace is None:
            return decoded, None
        return decoded, sum(len(step.remasked_positions) for steps in out.trace for step in steps) / self.sequences

    def head_seconds(self, rounds: int) -> float:
        backbone = backbone_of(self.workload.model)
        head, width = backbone.head(), self.workload.model.config.d_model
        calls: dict[str, Callable[[], object]] = {}
        for rows in filter(None, self._head_rows):
            hidden = torch.randn(rows, width, device=backbone.device).to(backbone.dtype)
            calls[str(rows)] = lambda hidden=hidden: _finished(head.logits(hidden))  # type: ignore[misc]
        with torch.no_grad():
            seconds = interleaved(calls, rounds)
        return sum(statistics.median(seconds[str(rows)]) * count for rows, count in self._head_rows.items() if rows)


def _finished(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


@contextmanager
def _lap_after_final_norm(model: Any, clock: Clock) -> Iterator[None]:
    hook = model.model.transformer.ln_f.register_forward_hook(lambda *_: clock.lap("trunk"))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _laps_in_our_loop(clock: Clock) -> Iterator[list[Tensor]]:
    """Laps around the trunk and around the scoring; yields each scoring's candidates (B, K).

    Nothing is hooked to the model: parts that are watched would not be fused.
    """
    scored: list[Tensor] = []
    score, trunk = Head.score, Backbone.trunk

    def timed(self: Head, hidden: Tensor, candidate_ids: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        clock.lap("bookkeeping")
        scores = score(self, hidden, candidate_ids, *given)
        clock.lap("scoring")
        scored.append(candidate_ids)
        return scores

    def timed_trunk(self: Backbone, *given: Any, **options: Any) -> Tensor:
        clock.lap("bookkeeping")
        hidden = trunk(self, *given, **options)
        clock.lap("trunk")
        return hidden

    Head.score, Backbone.trunk = timed, timed_trunk  # type: ignore[method-assign, assignment]
    try:
        yield scored
    finally:
        Head.score, Backbone.trunk = score, trunk  # type: ignore[method-assign]


class Margin:
    """How near a published decode came to a tie or a threshold: nearer than rounding, two right decoders may differ.

    Attributes:
        smallest: of all distances seen, in probabilities and, between the two best tokens, in logits.
    """

    def __init__(self) -> None:
        self.smallest = float("inf")

    def __call__(self, block: PublishedBlock, logits: Tensor, probability: Tensor) -> None:
        confidence = probability[block.masked].sort(descending=True).values
        most = min(max(len(confidence) * 7 // 10, 5), 20)
        above = int((confidence > block.threshold).sum())
        self._note((confidence - block.threshold).abs())
        self._note_rank(confidence, most if above > most else int(above == 0))
        candidates = (probability >= confidence[min(most, max(above, 1)) - 1]) & block.masked
        best = logits[candidates].topk(2).values.double()
        self._note(best[:, 0] - best[:, 1])
        verified = probability[block.filled].sort().values
        self._note((verified - block.threshold_back).abs())
        if int((verified < block.threshold_back).sum()) >= int(block.last):
            self._note_rank(verified, int(block.last) - 1)

    def _note_rank(self, ordered: Tensor, count: int) -> None:
        if 0 < count < len(ordered):
            self._note((ordered[count - 1] - ordered[count]).abs())

    def _note(self, distances: Tensor) -> None:
        if distances.numel():
            self.smallest = min(self.smallest, float(distances.min()))


class Comparison(NamedTuple):
    """The published decode of a workload beside ours: share of equal generated tokens, and the former's margin."""

    published: Decoded
    ours: Decoded
    agreement: float
    margin: float


def compare(workload: Workload, settings: Mapping[str, Any] | None = None) -> Comparison:
    """Decode once each way, untimed; ``settings``: a mode's, over the workload's."""
    workload = workload.at_the_model()
    loop = PublishedLoop(workload)
    published, _ = loop.run(Clock(), record=True)
    ours, _ = Mode("ours", workload, settings or {}).run(Clock())
    return Comparison(published, ours, _agreement(ours, published), loop.margin.smallest)


def _agreement(ours: Decoded, reference: Decoded) -> float:
    both = min(len(ours.tokens), len(reference.tokens))
    return float((ours.tokens[:both] == reference.tokens[:both]).double().mean())


class Measured(NamedTuple):
    """Name -> figures, and the published decode's margin (None if it was not measured)."""

    figures: dict[str, Figures]
    margin: float | None


def measure(
    workload: Workload,
    modes: Mapping[str, Mapping[str, Any]],
    *,
    rounds: int,
    published: bool = True,
    published_sequences: int | None = None,
    memory: bool = True,
    on_call: Callable[[], object] = lambda: None,
) -> Measured:
    """Decode ``workload`` in turn by the published loop (unless not ``published``) and by ours in each mode.

    Args:
        modes: name -> settings of :class:`wino.GenerationConfig` over the workload's.
        rounds: timed calls of each contender; before them each decodes once, untimed.
        published_sequences: the published loop decodes only as many sequences of the batch; its figures are per
            sequence.
        memory: measure peaks too (one more call each).
        on_call: told after every decode; :func:`calls` of them in all.
    """
    workload = workload.at_the_model()
    contenders: list[Any] = [PublishedLoop(workload, published_sequences)] if published else []
    contenders += [Mode(name, workload, settings) for name, settings in modes.items()]
    first: dict[str, tuple[Decoded, float | None]] = {}
    peaks: dict[str, int | None] = {}
    for contender in contenders:
        first[contender.name], peaks[contender.name] = _first_calls(contender, memory, on_call)
    seconds = interleaved({c.name: c.timed for c in contenders}, rounds, untimed=0, on_call=on_call)
    reference = first[contenders[0].name][0]
    figures = {
        c.name: _figures(c, *first[c.name], reference, seconds[c.name], peaks[c.name], rounds) for c in contenders
    }
    return Measured(figures, contenders[0].margin.smallest if published else None)


def calls(modes: int, rounds: int, published: bool = True, memory: bool = True) -> int:
    """Decodes that :func:`measure` makes."""
    return modes * (rounds + 1 + memory) + published * (rounds + 1)


def _first_calls(
    contender: Any, memory: bool, on_call: Callable[[], object]
) -> tuple[tuple[Decoded, float | None], int | None]:
    """What the first decode gave, and peak memory per sequence.

    The published loop is slow and decodes one sequence at a time, so its first decode serves for both: beside its
    logits, what is made once in a process does not count. Our modes decode a second time.
    """
    device, found = contender.workload.input_ids.device, []
    if isinstance(contender, PublishedLoop) and memory:
        peak = peak_extra(lambda: found.append(contender.run(Clock(), record=True)), device)
        on_call()
        return found[0], peak
    first, peak = contender.run(Clock(), record=True), None
    on_call()
    if memory and isinstance(contender, Mode):
        peak = peak_extra(lambda: contender.run(Clock()), device)
        on_call()
    return first, None if peak is None else peak // contender.sequences


def _figures(
    contender: Any,
    decoded: Decoded,
    remasked: float | None,
    reference: Decoded,
    seconds: list[float],
    peak: int | None,
    rounds: int,
) -> Figures:
    steps, model = decoded.steps.double(), contender.workload.model
    lengths = answer_lengths(decoded.tokens.cpu(), end_token_ids(model)).double()
    forwards = int(steps.sum() if isinstance(contender, PublishedLoop) else steps.max())
    return Figures(
        name=contender.name,
        sequences=contender.sequences,
        seconds=[value / contender.sequences for value in seconds],
        steps=float(steps.mean()),
        tokens=float(lengths.mean()),
        tokens_per_forward=float((lengths / steps).mean()),
        accepted_per_forward=decoded.tokens.numel() / float(steps.sum()),
        remasked=remasked,
        forwards=forwards,
        milliseconds=contender.milliseconds(rounds, forwards),
        peak_bytes=peak,
        agreement=_agreement(decoded, reference),
    )
