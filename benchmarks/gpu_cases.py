"""The calls that gpu_suite.py checks and times: each with its float64 check, its contenders and its work."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import roofline
import torch
import torch.nn.functional as F
from published import MASK_ID, Published, Step, argmax_and_softmax, masked_trunk, max_index_and_exp_sum, published
from torch import Tensor

import wino_kernels.eager as eager_operators
from wino_kernels.eager.accept import accept_
from wino_kernels.eager.accept_remask import accept_remask_
from wino_kernels.eager.philox import gumbel_noise
from wino_kernels.eager.shadow_attention import shadow_attention, visibility
from wino_kernels.eager.trajectory_loss import trajectory_loss, trajectory_loss_backward
from wino_kernels.resources import GENERATION, LLADA, MMADA, PROMPT, Model

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "kernels"))
import oracle

DRAFT = -1
EPS = 1e-5
ROWS_AT_ONCE = 32  # of float64 logits


class Sizes(NamedTuple):
    """What a run is made of: the models' sizes on a GPU, a few elements where kernels are interpreted."""

    models: tuple[Model, ...]
    dtypes: tuple[torch.dtype, ...]
    batches: tuple[int, ...]
    block: int
    outside: int  # positions that are neither block nor shadow block
    head_rows: tuple[int, ...]
    loss_rows: int


FULL = Sizes((LLADA, MMADA), (torch.bfloat16, torch.float32), (1, 16), 128, PROMPT + GENERATION, (32, 128, 1024), 256)
TINY = Sizes((Model("tiny", 1000, 64, 2, 64),), (torch.bfloat16, torch.float32), (2,), 8, 21, (5,), 6)


class Contender(NamedTuple):
    """Another way to the same result."""

    call: Callable[[], object]
    compiled: bool = False  # by torch.compile, before it is timed
    graph: bool = True  # False: waits for the device, so it cannot be captured
    before: Callable[[], object] = lambda: None  # not timed


class Case:
    """One operator at one shape: tensors that stay where they are, filled again by ``vary``."""

    operator: ClassVar[str]

    def __init__(self, label: str, work: roofline.Work, state: Sequence[Tensor] = ()) -> None:
        self.label, self.work = label, work
        self.state = tuple(state)  # what the operator changes in place
        self.initial = tuple(tensor.clone() for tensor in state)
        self.vary(0)

    def vary(self, seed: int) -> None:
        """Other values in the same memory: inputs, thresholds and seeds alike."""
        raise NotImplementedError

    def call(self) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def error(self, results: tuple[Tensor, ...]) -> str:
        """What is wrong with ``results`` and the state after a call; empty if nothing is."""
        raise NotImplementedError

    def contenders(self) -> dict[str, Contender]:
        raise NotImplementedError

    def restore(self) -> None:
        for tensor, initial in zip(self.state, self.initial, strict=True):
            tensor.copy_(initial)


def generator(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def compiled_too(functions: dict[str, Callable[[], object]]) -> dict[str, Contender]:
    """Each as eager code and under torch.compile."""
    plain = {name: Contender(function) for name, function in functions.items()}
    return plain | {
        f"torch.compile, {name}": Contender(function, compiled=True) for name, function in functions.items()
    }


def scores_error(
    rows: Callable[[slice], Tensor], ids: Tensor, results: tuple[Tensor, ...], noise: Sequence[Tensor] = ()
) -> str:
    """docs/spec.md section 6: exact ids, confidence within 2e-6 p + 1e-12 of p in float64.

    ``rows``: logits of a slice.
    """
    token_ids, confidence = (result.flatten() for result in results)
    for start in range(0, len(ids), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        logits, given, chosen = rows(part), ids[part], token_ids[part]
        if not torch.equal(chosen[given != DRAFT], given[given != DRAFT]):
            return "a given token was not returned"
        drafted = _draft_error(logits, chosen, [tensor.flatten()[part] for tensor in noise])
        if (drafted & (given == DRAFT)).any():
            return f"{int((drafted & (given == DRAFT)).sum())} wrong drafts in rows {start} to {start + len(given) - 1}"
        p = torch.softmax(logits.double(), -1).gather(-1, chosen[:, None])[:, 0]
        excess = ((confidence[part].double() - p).abs() / (2e-6 * p + 1e-12)).amax()
        if not excess <= 1:
            return f"confidence off by {float(excess):.3g} times the tolerance"
    return ""


def _draft_error(logits: Tensor, chosen: Tensor, noise: Sequence[Tensor]) -> Tensor:
    """Rows whose chosen id is not the lowest of the largest; with noise: not within float32 rounding of the largest."""
    if not noise:
        position = torch.arange(logits.shape[-1], device=logits.device)
        largest = logits == logits.amax(-1, keepdim=True)
        return torch.where(largest, position, logits.shape[-1]).amin(-1) != chosen
    temperature, seed = noise
    perturbed = logits.double() + temperature[:, None].double() * gumbel_noise(seed, logits.shape[-1]).double()
    largest, own = perturbed.amax(-1), perturbed.gather(-1, chosen[:, None])[:, 0]
    return own < largest - 4 * torch.finfo(torch.float32).eps * largest.abs().clamp(min=1)


def some_given(ids: Tensor, vocabulary: int, source: torch.Generator) -> None:
    """Half drafts, half tokens to verify."""
    ids.random_(0, vocabulary, generator=source)
    ids.view(-1)[::2] = DRAFT


class ScoreTokens(Case):
    operator = "score_tokens"

    def __init__(
        self, model: Model, batch: int, block: int, dtype: torch.dtype, device: torch.device, noise: bool = False
    ) -> None:
        rows = batch * block
        self.logits = torch.empty(rows, model.vocabulary, dtype=dtype, device=device)
        self.ids = torch.empty(rows, dtype=torch.int64, device=device)
        self.noise = (torch.empty(rows, device=device), torch.empty_like(self.ids)) if noise else ()
        name = str(dtype).removeprefix("torch.")
        label = f"{model.name} B={batch} K={block} {name}" + " noise" * noise
        super().__init__(label, roofline.score_tokens(rows, model.vocabulary, dtype.itemsize))

    def vary(self, seed: int) -> None:
        source = generator(self.logits.device, seed)
        self.logits.normal_(0, 3, generator=source)
        some_given(self.ids, self.logits.shape[-1], source)
        if self.noise:
            self.noise[0].uniform_(0.1, 1.0, generator=source)
            self.noise[1].random_(generator=source)

    def call(self) -> tuple[Tensor, ...]:
        temperature, seed = self.noise or (None, None)
        return torch.ops.wino.score_tokens(self.logits, self.ids, temperature=temperature, seed=seed)

    def error(self, results: tuple[Tensor, ...]) -> str:
        return scores_error(lambda part: self.logits[part], self.ids, results, self.noise)

    def contenders(self) -> dict[str, Contender]:
        return {
            "published": Contender(lambda: published(self.logits)),
            "eager float32": Contender(lambda: roofline.float32_softmax(self.logits)),
            "torch.compile, max and sum": Contender(lambda: max_index_and_exp_sum(self.logits), compiled=True),
            "torch.compile, softmax": Contender(lambda: argmax_and_softmax(self.logits), compiled=True),
        }


class LinearScoreTokens(Case):
    operator = "linear_score_tokens"

    def __init__(self, model: Model, rows: int, device: torch.device) -> None:
        self.hidden = torch.empty(rows, model.hidden, dtype=torch.bfloat16, device=device)
        self.weight = torch.empty(model.vocabulary, model.hidden, dtype=torch.bfloat16, device=device)
        self.weight.normal_(0, 3 / math.sqrt(model.hidden), generator=generator(device, 0))
        self.ids = torch.empty(rows, dtype=torch.int64, device=device)
        super().__init__(
            f"{model.name} N={rows} bfloat16", roofline.linear_score_tokens(rows, model.hidden, model.vocabulary)
        )

    def vary(self, seed: int) -> None:
        source = generator(self.hidden.device, seed)
        self.hidden.normal_(generator=source)
        some_given(self.ids, len(self.weight), source)

    def call(self) -> tuple[Tensor, ...]:
        return torch.ops.wino.linear_score_tokens(self.hidden, self.weight, self.ids)

    def error(self, results: tuple[Tensor, ...]) -> str:
        """No worse than the unfused head in the same dtype, plus 2e-6."""
        token_ids, confidence = results
        weight, ours, theirs = self.weight.double(), 0.0, 0.0
        for start in range(0, len(self.ids), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            exact, unfused = self.hidden[part].double() @ weight.T, F.linear(self.hidden[part], self.weight)
            chosen = token_ids[part, None]
            if ((self.ids[part] != DRAFT) & (token_ids[part] != self.ids[part])).any():
                return "a given token was not returned"
            rounding = torch.finfo(unfused.dtype).eps * unfused.abs().amax(-1).double()
            short = unfused.gather(-1, chosen)[:, 0].double() < unfused.amax(-1).double() - 2 * rounding
            if (short & (self.ids[part] == DRAFT)).any():
                return "a draft is not the largest logit"
            p = torch.softmax(exact, -1).gather(-1, chosen)[:, 0]
            of_unfused = torch.softmax(unfused.double(), -1).gather(-1, chosen)[:, 0]
            ours = max(ours, float((confidence[part].double() - p).abs().nan_to_num(math.inf).amax()))
            theirs = max(theirs, float((of_unfused - p).abs().amax()))
        return "" if ours <= theirs + 2e-6 else f"confidence off by {ours:.3g}, an unfused head by {theirs:.3g}"

    def contenders(self) -> dict[str, Contender]:
        def logits() -> Tensor:
            return F.linear(self.hidden, self.weight)

        return {
            "published": Contender(lambda: published(logits())),
            "eager float32": Contender(lambda: roofline.float32_softmax(logits())),
            "torch.compile, max and sum": Contender(lambda: max_index_and_exp_sum(logits()), compiled=True),
        }


class Rule:
    """A block in the middle of a decode, a draft for it, and one pair of thresholds a sequence."""

    def __init__(self, batch: int, block: int, device: torch.device) -> None:
        self.tokens = torch.empty(batch, block, dtype=torch.int64, device=device)
        self.masked = torch.empty(batch, block, dtype=torch.bool, device=device)
        self.revocable, self.token_ids = torch.empty_like(self.masked), torch.empty_like(self.tokens)
        self.confidence = torch.empty(batch, block, dtype=torch.float64, device=device)
        self.last = torch.empty(batch, dtype=torch.int32, device=device)
        self.threshold, self.threshold_back = torch.empty(batch, device=device), torch.empty(batch, device=device)

    def fill(self, initial: Sequence[Tensor], seed: int, vocabulary: int) -> None:
        """``initial``: tokens, masked, revocable, last_accepted, as ``Case.initial`` keeps them."""
        source = generator(self.tokens.device, seed)
        tokens, masked, revocable, last = initial
        masked.copy_(torch.rand(masked.shape, generator=source, device=masked.device) < 0.6)
        revocable.copy_(~masked)
        self.token_ids.random_(0, vocabulary, generator=source)
        tokens.copy_(torch.where(masked, MASK_ID, self.token_ids))
        last.random_(2, 20, generator=source)
        self.confidence.random_(0, 64, generator=source).div_(63)  # with ties
        self.threshold.uniform_(0.4, 0.8, generator=source)
        self.threshold_back.uniform_(0.6, 0.95, generator=source)

    @property
    def state(self) -> tuple[Tensor, ...]:
        return self.tokens, self.masked, self.revocable, self.last


def expected_step(initial: Sequence[Tensor], rule: Rule, token_ids: Tensor, confidence: Tensor) -> list[list[Any]]:
    """tokens, masked, revocable, last, accepted, re-masked, status after one step, by the oracle of the tests."""
    tokens, masked, revocable, last = (tensor.tolist() for tensor in initial)
    ids, scores = token_ids.tolist(), confidence.tolist()
    thresholds, back = rule.threshold.tolist(), rule.threshold_back.tolist()
    found = []
    for row in range(len(tokens)):
        places = [{i for i, flag in enumerate(flags[row]) if flag} for flags in (masked, revocable)]
        block = oracle.Block(list(tokens[row]), *places, last[row])
        counts = oracle.wino_step(block, ids[row], scores[row], MASK_ID, thresholds[row], back[row])
        flags = [[i in chosen for i in range(len(block.tokens))] for chosen in (block.masked, block.revocable)]
        found.append([block.tokens, *flags, block.last, *counts])
    return [list(column) for column in zip(*found, strict=True)]


def differing(names: str, have: Sequence[Tensor], want: Sequence[Any]) -> str:
    wrong = [name for name, h, w in zip(names.split(), have, want, strict=True) if h.tolist() != w]
    return f"{', '.join(wrong)} differ from the oracle" if wrong else ""


STEP = "tokens masked revocable last_accepted num_accepted num_remasked status"


class AcceptRemask(Case):
    operator = "accept_remask_"

    def __init__(self, batch: int, block: int, device: torch.device) -> None:
        self.rule = Rule(batch, block, device)
        super().__init__(f"B={batch} K={block}", roofline.accept_remask_(batch, block), self.rule.state)

    def vary(self, seed: int) -> None:
        self.rule.fill(self.initial, seed, 1000)

    def _given(self) -> dict[str, Any]:
        return {"mask_id": MASK_ID, "threshold": self.rule.threshold, "threshold_back": self.rule.threshold_back}

    def call(self) -> tuple[Tensor, ...]:
        r = self.rule
        block = r.tokens, r.masked, r.revocable
        return torch.ops.wino.accept_remask_(*block, r.token_ids, r.confidence, r.last, **self._given())

    def error(self, results: tuple[Tensor, ...]) -> str:
        want = expected_step(self.initial, self.rule, self.rule.token_ids, self.rule.confidence)
        return differing(STEP, (*self.state, *results), want)

    def contenders(self) -> dict[str, Contender]:
        r = self.rule

        def eager() -> object:
            block = r.tokens, r.masked, r.revocable
            return accept_remask_(*block, r.token_ids, r.confidence, r.last, **self._given())

        return {"published": published_steps(r, self.initial)} | compiled_too({"eager float32": eager})


def published_steps(rule: Rule, initial: Sequence[Tensor], before: Callable[[], object] | None = None) -> Contender:
    """The published loop's step, one sequence after the other, with its state made anew before each call."""
    sequences: list[Published] = []

    def make() -> None:
        tokens, masked, revocable, last = initial
        step = Step(tokens, masked, revocable, last, rule.token_ids, rule.confidence)
        with rule.tokens.device:
            sequences[:] = [Published(step, row) for row in range(len(tokens))]

    def run() -> None:
        if before is not None:
            before()
        with rule.tokens.device:
            for sequence in sequences:
                sequence.step()

    return Contender(run, graph=False, before=make)


class Accept(Case):
    operator = "accept_"

    def __init__(self, batch: int, block: int, device: torch.device) -> None:
        self.rule = Rule(batch, block, device)
        super().__init__(f"B={batch} K={block}", roofline.accept_(batch, block), self.rule.state)

    def vary(self, seed: int) -> None:
        self.rule.fill(self.initial, seed, 1000)

    def call(self) -> tuple[Tensor, ...]:
        r = self.rule
        return torch.ops.wino.accept_(r.tokens, r.masked, r.token_ids, r.confidence, threshold=r.threshold)

    def error(self, results: tuple[Tensor, ...]) -> str:
        tokens, masked = (tensor.tolist() for tensor in self.initial[:2])
        ids, scores = self.rule.token_ids.tolist(), self.rule.confidence.tolist()
        found = []
        for row, threshold in enumerate(self.rule.threshold.tolist()):
            open_places = {i for i, flag in enumerate(masked[row]) if flag}
            counts = oracle.accept(tokens[row], open_places, ids[row], scores[row], threshold=threshold)
            found.append([tokens[row], [i in open_places for i in range(len(tokens[row]))], *counts])
        want = [list(column) for column in zip(*found, strict=True)]
        return differing("tokens masked num_accepted status", (*self.state[:2], *results), want)

    def contenders(self) -> dict[str, Contender]:
        r = self.rule
        given = r.tokens, r.masked, r.token_ids, r.confidence, r.threshold
        return compiled_too({"eager float32": lambda: accept_(*given)})


class WinoStep(Case):
    operator = "wino_step_"

    def __init__(self, model: Model, batch: int, block: int, device: torch.device) -> None:
        self.rule = Rule(batch, block, device)
        self.logits = torch.empty(batch, block, model.vocabulary, dtype=torch.bfloat16, device=device)
        work = roofline.wino_step_(batch, block, model.vocabulary)
        super().__init__(f"{model.name} B={batch} K={block} bfloat16", work, self.rule.state)

    def vary(self, seed: int) -> None:
        self.logits.normal_(0, 3, generator=generator(self.logits.device, seed))
        self.rule.fill(self.initial, seed, self.logits.shape[-1])
        self.rule.threshold.mul_(0.1)  # of 10^5 tokens none is likely
        self.rule.threshold_back.mul_(0.01)

    def _given(self) -> dict[str, Any]:
        return {"mask_id": MASK_ID, "threshold": self.rule.threshold, "threshold_back": self.rule.threshold_back}

    def call(self) -> tuple[Tensor, ...]:
        return torch.ops.wino.wino_step_(self.logits, *self.state, **self._given())

    def error(self, results: tuple[Tensor, ...]) -> str:
        """Bit for bit what the backend's own scores lead to; the scores are within their tolerance."""
        tokens, masked, _, _ = self.initial
        ids = torch.where(masked, DRAFT, tokens)
        scored = torch.ops.wino.score_tokens(self.logits, ids)
        flat = self.logits.flatten(0, 1)
        if wrong := scores_error(lambda part: flat[part], ids.flatten(), scored):
            return wrong
        return differing(STEP, (*self.state, *results), expected_step(self.initial, self.rule, *scored))

    def contenders(self) -> dict[str, Contender]:
        flat = self.logits.flatten(0, 1)
        r, shape = self.rule, self.rule.tokens.shape

        def step_of(score: Callable[[Tensor], tuple[Tensor, Tensor]]) -> object:
            token_ids, confidence = (scores.view(shape) for scores in score(flat))
            block = r.tokens, r.masked, r.revocable
            return accept_remask_(*block, token_ids, confidence, r.last, **self._given())

        return {
            "published": published_steps(r, self.initial, before=lambda: published(flat)),
            "eager float32": Contender(lambda: step_of(roofline.float32_softmax)),
            "torch.compile, max and sum": Contender(lambda: step_of(max_index_and_exp_sum), compiled=True),
        }


class ShadowAttention(Case):
    operator = "shadow_attention"

    def __init__(self, model: Model, batch: int, block: int, outside: int, device: torch.device) -> None:
        self.block, length = block, outside + block
        shape = (3, batch, model.heads, length, model.width)
        self.qkv = torch.empty(shape, dtype=torch.bfloat16, device=device)
        self.start = torch.empty(batch, dtype=torch.int64, device=device)
        self.bias = torch.empty(batch, 1, length, length, dtype=torch.bfloat16, device=device)
        work = roofline.shadow_attention(batch, model.heads, length, length, block, model.width)
        super().__init__(f"{model.name} B={batch} L={length} K={block} bfloat16", work)

    def vary(self, seed: int) -> None:
        source = generator(self.qkv.device, seed)
        self.qkv.normal_(generator=source)
        length = self.qkv.shape[-2]
        self.start.random_(0, length - 2 * self.block + 1, generator=source)
        visible = visibility(length, length, self.block, self.start)
        self.bias.copy_(torch.zeros_like(self.bias).masked_fill(~visible[:, None], -math.inf))

    def call(self) -> tuple[Tensor, ...]:
        output = torch.ops.wino.shadow_attention(*self.qkv, num_shadow=self.block, block_start=self.start)
        return (output,)

    def error(self, results: tuple[Tensor, ...]) -> str:
        tolerance = 2.0**-8  # of bfloat16, relative and absolute
        for row in range(self.qkv.shape[1]):
            exact = shadow_attention(*self.qkv[:, row : row + 1].double(), self.block, self.start[row, None])
            off = (results[0][row].double() - exact[0]).abs() / (tolerance * (1 + exact[0].abs()))
            if not off.amax() <= 1:
                return f"output off by {float(off.amax()):.3g} times the tolerance"
        return ""

    def contenders(self) -> dict[str, Contender]:
        query, key, value = self.qkv
        return {
            "published": Contender(lambda: F.scaled_dot_product_attention(query, key, value, attn_mask=self.bias)),
            "eager float32": Contender(lambda: roofline.dense_attention(*self.qkv.float(), self.bias)),
            "torch.compile, dense": Contender(
                lambda: roofline.dense_attention(query, key, value, self.bias), compiled=True
            ),
        }


class Layers(Case):
    """Operators of transformer layers of LLaDA's proportions: the products are the library's, what lies between ours.

    Attributes:
        number: of layers; 0: one, of which only a part is called.
    """

    number: ClassVar[int] = 0

    def __init__(self, model: Model, batch: int, block: int, outside: int, device: torch.device) -> None:
        self.block, length, inner = block, outside + block, roofline.INNER * model.hidden
        queries = model.heads * model.width
        self.x = torch.empty(batch, length, model.hidden, dtype=torch.bfloat16, device=device)
        self.attended = torch.empty(batch, model.heads, length, model.width, dtype=torch.bfloat16, device=device)
        self.rows = torch.empty(batch, block, dtype=torch.int64, device=device)
        self.start = torch.empty(batch, dtype=torch.int64, device=device)
        angles = torch.rand(1, 1, length, model.width, device=device, generator=generator(device, 0)) * 2 * math.pi
        self.tables = angles.cos(), angles.sin()
        sizes = [(queries, model.hidden)] * 3 + [(model.hidden, queries)]
        sizes += [(inner, model.hidden)] * 2 + [(model.hidden, inner)]
        self.weights: list[Tensor] = []
        source = generator(device, 0)
        for _ in range(max(1, self.number)):
            norms = torch.ones(2, model.hidden, dtype=torch.bfloat16, device=device)
            linears = [self.x.new_empty(size).normal_(0, size[1] ** -0.5, generator=source) for size in sizes]
            self.weights += [norms[0], *linears[:4], norms[1], *linears[4:]]
        label = f"{model.name} B={batch} L={length} bfloat16"
        super().__init__(label, self.work_of(model, batch, length, queries, inner))

    def vary(self, seed: int) -> None:
        source, length = generator(self.x.device, seed), self.x.shape[1]
        self.x.normal_(generator=source)
        self.attended.normal_(generator=source)
        self.rows.random_(0, length, generator=source)
        self.start.random_(0, length - 2 * self.block + 1, generator=source)

    def work_of(self, model: Model, batch: int, length: int, queries: int, inner: int) -> roofline.Work:
        raise NotImplementedError

    def by(self, functions: Any, wide: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Any:
        """The operator of ``functions``, on inputs made ``wide``."""
        raise NotImplementedError

    def call(self) -> tuple[Tensor, ...]:
        result = self.by(torch.ops.wino)
        return result if isinstance(result, tuple) else (result,)

    def error(self, results: tuple[Tensor, ...]) -> str:
        """In the norm about as near to float64 as separate operations in the same dtype."""
        exact, plain = self.by(eager_operators, Tensor.double), self.by(eager_operators)
        exact, plain = (each if isinstance(each, tuple) else (each,) for each in (exact, plain))
        for ours, theirs, truth in zip(results, plain, exact, strict=True):
            off, allowed = (float((each.double() - truth).norm() / truth.norm()) for each in (ours, theirs))
            if not off <= 1.3 * allowed + 1e-4 or not (ours - truth).abs().amax() <= 0.1 * truth.abs().amax():
                return f"off by {off:.3g}, separate operations by {allowed:.3g}"
        return ""

    def contenders(self) -> dict[str, Contender]:
        return compiled_too({"separate operations": lambda: self.by(eager_operators)})


class NormQkvRope(Layers):
    operator = "norm_qkv_rope"

    def work_of(self, model: Model, batch: int, length: int, queries: int, inner: int) -> roofline.Work:
        return roofline.norm_qkv_rope(batch * length, model.hidden, 3 * queries)

    def by(self, functions: Any, wide: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Any:
        return functions.norm_qkv_rope(*map(wide, (self.x, *self.weights[:4])), *self.tables, eps=EPS)


class OutNormSwiglu(Layers):
    operator = "out_norm_swiglu"

    def work_of(self, model: Model, batch: int, length: int, queries: int, inner: int) -> roofline.Work:
        return roofline.out_norm_swiglu(batch * length, model.hidden, queries, inner)

    def by(self, functions: Any, wide: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Any:
        return functions.out_norm_swiglu(*map(wide, (self.x, self.attended, *self.weights[4:9])), eps=EPS)


class ShadowTrunk(Layers):
    """Two layers; of the last only the block's rows leave."""

    operator, number = "shadow_trunk", 2

    def work_of(self, model: Model, batch: int, length: int, queries: int, inner: int) -> roofline.Work:
        """In the last layer the block's rows and the shadow block ask."""
        asking = 2 * self.block
        before = roofline.norm_qkv_rope(batch * length, model.hidden, 3 * queries)
        after = [roofline.out_norm_swiglu(batch * rows, model.hidden, queries, inner) for rows in (length, self.block)]
        attention = [
            roofline.shadow_attention(batch, model.heads, rows, length, self.block, model.width)
            for rows in (length, asking)
        ]
        spared = 2 * batch * (length - asking) * model.hidden * queries
        weights, between = before.read + after[1].read, batch * length * model.hidden * self.x.itemsize
        matrix = 2 * before.matrix - spared + sum(work.matrix for work in (*after, *attention))
        return roofline.Work(read=2 * weights, written=between, matrix=matrix)

    def by(self, functions: Any, wide: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Any:
        weights = list(map(wide, self.weights))
        shadow = {"num_shadow": self.block, "block_start": self.start}
        given = wide(self.x), weights, [], *self.tables, self.rows
        return functions.shadow_trunk(*given, **shadow, eps=EPS, norm_weight=weights[0])

    def contenders(self) -> dict[str, Contender]:
        """Around the library's attention with a mask, as published; the definition's has its scores in memory."""
        trunk = masked_trunk(self.x.shape[1], self.block, self.start)
        given = self.x, self.weights, [], *self.tables, self.rows, self.block, self.start, EPS, None, self.weights[0]
        return compiled_too({"separate operations": lambda: trunk(*given)})


class TrajectoryLoss(Case):
    operator = "trajectory_loss"

    def __init__(self, model: Model, rows: int, device: torch.device) -> None:
        self.hidden = torch.empty(rows, model.hidden, dtype=torch.bfloat16, device=device)
        self.weight = torch.empty(model.vocabulary, model.hidden, dtype=torch.bfloat16, device=device)
        self.weight.normal_(0, 4 / math.sqrt(model.hidden), generator=generator(device, 0))
        self.labels = torch.empty(rows, dtype=torch.int64, device=device)
        self.target = torch.arange(rows, device=device) % 2 == 0
        self.candidate = ~self.target
        self.thresholds = torch.empty((), device=device), torch.empty((), device=device)
        super().__init__(f"{model.name} N={rows} bfloat16", self.work_of(rows, model.hidden, model.vocabulary))

    work_of = staticmethod(roofline.trajectory_loss)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.hidden, self.weight, self.labels, self.target, self.candidate, *self.thresholds

    @property
    def exact_inputs(self) -> tuple[Tensor, ...]:
        return self.hidden.double(), self.weight.double(), *self.inputs[2:]

    def vary(self, seed: int) -> None:
        source = generator(self.hidden.device, seed)
        self.hidden.normal_(generator=source)
        self.labels.copy_(F.linear(self.hidden, self.weight).argmax(-1))
        self.labels[::4].random_(0, len(self.weight), generator=source)
        for threshold, low, high in zip(self.thresholds, (0.01, 0.2), (0.1, 0.9), strict=True):
            threshold.uniform_(low, high, generator=source)

    def call(self) -> tuple[Tensor, ...]:
        return torch.ops.wino.trajectory_loss(*self.inputs)

    def error(self, results: tuple[Tensor, ...]) -> str:
        """As far from float64 as rounding each logit allows, but for rows whose selection it may turn."""
        sums, counts, statistics = results
        exact, exact_counts, wanted = trajectory_loss(*self.exact_inputs)
        logits = self.hidden.double() @ self.weight.double().T
        rounding = 2.0**-8 * float(logits.abs().amax())  # of a logit and of the sum it is compared with, in bfloat16
        unclear = self._unclear_rows(logits, rounding)
        number = int(unclear.sum())
        if (counts - exact_counts).abs().max() > number:
            return f"counts {counts.tolist()}, in float64 {exact_counts.tolist()}, {number} rows are unclear"
        # An entropy changes with its logits by no more than twice its own size.
        allowed = rounding * (exact_counts + 2 * exact) + number * math.log(len(self.weight))
        off = (sums.double() - exact).abs()
        if not (off <= allowed).all():
            return f"sums {sums.tolist()}, in float64 {exact.tolist()}"
        if not ((statistics[2] - wanted[2]).abs() <= 4 * unclear).all():  # one of the entropies more or less
            return f"parts {statistics[2].tolist()}, in float64 {wanted[2].tolist()}"
        chosen = (statistics[2] != 0) & (wanted[2] != 0)
        off, allowed = (statistics - wanted)[:2, chosen].abs(), rounding * (1 + 2 * wanted[1, chosen])
        return "" if (off <= allowed).all() else f"log-sum-exp or entropy off by {float(off.amax()):.3g}"

    def _unclear_rows(self, logits: Tensor, rounding: float) -> Tensor:
        """Rows where rounding may change the largest logit, or on which side of a threshold its probability is."""
        first, second = logits.topk(2, dim=-1).values.unbind(-1)
        p = torch.softmax(logits, -1).amax(-1)
        near = [(p - threshold).abs() < 2 * rounding * p for threshold in self.thresholds]
        return (first - second < 2 * rounding) | near[0] | near[1]

    def contenders(self) -> dict[str, Contender]:
        return compiled_too({"eager float32": lambda: trajectory_loss(*self.inputs)})


class TrajectoryLossBackward(TrajectoryLoss):
    operator = "trajectory_loss_backward"
    work_of = staticmethod(roofline.trajectory_loss_backward)

    def __init__(self, model: Model, rows: int, device: torch.device) -> None:
        self.statistics = torch.empty(3, rows, device=device)
        super().__init__(model, rows, device)

    def vary(self, seed: int) -> None:
        super().vary(seed)
        self.statistics.copy_(torch.ops.wino.trajectory_loss(*self.inputs)[2])

    def call(self) -> tuple[Tensor, ...]:
        return torch.ops.wino.trajectory_loss_backward(self._sums(), *self._of(self.inputs, self.statistics))

    @staticmethod
    def _of(inputs: tuple[Tensor, ...], statistics: Tensor) -> tuple[Any, ...]:
        return *inputs[:3], statistics, True

    def _sums(self) -> Tensor:
        return torch.full((3,), 1 / len(self.hidden), device=self.hidden.device)

    def error(self, results: tuple[Tensor, ...]) -> str:
        """In the norm no further from float64 than eager in the same dtype, twice, and a hundredth."""
        exact_inputs = self._of(self.exact_inputs, trajectory_loss(*self.exact_inputs)[2])
        exact = trajectory_loss_backward(self._sums().double(), *exact_inputs)
        eager = trajectory_loss_backward(self._sums(), *self._of(self.inputs, trajectory_loss(*self.inputs)[2]))
        for name, ours, theirs, want in zip(("hidden", "weight"), results, eager, exact, strict=True):
            off, allowed = (float((part.double() - want).norm() / want.norm()) for part in (ours, theirs))
            if not off <= 2 * allowed + 1e-2:
                return f"gradient of {name} off by {off:.3g}, eager by {allowed:.3g}"
        return ""

    def contenders(self) -> dict[str, Contender]:
        inputs = self._of(self.inputs, self.statistics)
        return compiled_too({"eager float32": lambda: trajectory_loss_backward(self._sums(), *inputs)})


def cases(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    """One after the other: the weights of one are gone before the next one's are made."""
    block = sizes.block
    for model in sizes.models:
        for batch in sizes.batches:
            for dtype in sizes.dtypes:
                yield ScoreTokens(model, batch, block, dtype, device)
            yield ScoreTokens(model, batch, block, torch.bfloat16, device, noise=True)
            yield WinoStep(model, batch, block, device)
        for rows in sizes.head_rows:
            yield LinearScoreTokens(model, rows, device)
    model = sizes.models[0]
    for batch in sizes.batches:
        yield AcceptRemask(batch, block, device)
        yield Accept(batch, block, device)
        yield ShadowAttention(model, batch, block, sizes.outside, device)
        for part in (NormQkvRope, OutNormSwiglu, ShadowTrunk):
            yield part(model, batch, block, sizes.outside, device)
    yield TrajectoryLoss(model, sizes.loss_rows, device)
    yield TrajectoryLossBackward(model, sizes.loss_rows, device)
