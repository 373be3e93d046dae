"""The loop: blocks x steps. Every decoder and every model goes through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers.utils import ModelOutput

from .batch import Batch, Passes
from .config import GenerationConfig
from .decoders import DECODERS, Decoder
from .models.backbone import Backbone, backbone_of
from .models.ends import end_token_ids
from .settings import known_settings
from .step import Runner
from .trace import StepRecord, record_step


@dataclass
class GenerationOutput(ModelOutput):
    """Result of :func:`generate`.

    Attributes:
        sequences: (B, P + G) int64, prompt and generated tokens.
        steps: (B,) int64, forward passes each sequence took.
        accepted_at: (B, G) int64, the forward pass (from 0) at which each final token was accepted; -1 for given
            tokens, and for those behind an early end (docs/spec.md section 5).
        trace: one list of :class:`wino.StepRecord` per sequence, if asked for.
    """

    # ModelOutput wants a default for every field but the first; these are always set.
    sequences: Tensor = None  # type: ignore[assignment]
    steps: Tensor = None  # type: ignore[assignment]
    accepted_at: Tensor = None  # type: ignore[assignment]
    trace: list[list[StepRecord]] | None = None


@torch.no_grad()
def generate(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    *,
    generation_ids: Tensor | None = None,
    unconditional_ids: Tensor | None = None,
    unconditional_mask: Tensor | None = None,
    streamer: Any = None,
    tokenizer: Any = None,
    **overrides: Any,
) -> GenerationOutput:
    """Decode a batch of prompts with a masked diffusion language model.

    Args:
        model: a :class:`wino.models.LLaDAModelLM`, or a model after ``wino.patch(model)``; adapters, hooks and other
            modules in its parts' places count as in its own forward, at the speed of calling them.
        input_ids: (B, P) int64 prompts, padded on the left.
        attention_mask: (B, P) of 0 and 1 or bool, 1 or True where ``input_ids`` holds a real token; None: everywhere.
        generation_config: the settings; None: the defaults of :class:`GenerationConfig`.
        generation_ids: (B, G) int64 initial tokens of the generation region: the mask id where to fill; other tokens
            are fixed.
        unconditional_ids: (B, U) int64, U <= P, padded on the left: what classifier-free guidance's second copy sees in
            the prompt's place; None: masks. unconditional_mask: as ``attention_mask``, of these.
        streamer: a transformers streamer. ``put(input_ids)`` first, ``put_draft((B, G) tokens)`` after each step if
            it has that method, ``put_step(step, (B, G) tokens, records)`` if it has that one, ``put((B, G) tokens)``
            and ``end()`` at the end.
        tokenizer: the model's. ``stop_strings`` needs it; with ``stop_at_eos`` its end tokens count beside the model's.
        **overrides: single settings that replace those of ``generation_config``.

    Returns:
        :class:`GenerationOutput`; with ``num_return_sequences`` n, the n rows of a prompt beside each other. A
        sequence's result does not depend on the others in its batch, up to the rounding of matrix products: tokens are
        equal where confidences stay 1e-4 away from thresholds and ties (docs/spec.md section 6).

    Raises:
        ValueError, TypeError: a bad argument, named, before the first forward pass.
        FloatingPointError: the model's logits were NaN; names sequence and position.
    """
    config = _with_length(_resolve_config(generation_config, overrides), input_ids)
    backbone = backbone_of(model)
    _check_watchers(config, streamer, tokenizer)
    inputs = _check_inputs(backbone, config, input_ids, attention_mask, generation_ids)
    watched = backbone.put_on() if config.cuda_graph or config.compile_step else []
    if config.cuda_graph and watched:
        raise ValueError(
            f"cuda_graph: {watched[0][0]} has a hook or a forward of its own, which a replayed graph would not call; "
            "remove it, or decode without cuda_graph"
        )
    guide = _check_guide(backbone, config, unconditional_ids, unconditional_mask, inputs[0])
    ends = backbone.end_token_ids if tokenizer is None else end_token_ids(model, tokenizer)
    ending = _find_ending(backbone, config, ends, tokenizer, given=inputs[2] != backbone.mask_token_id)
    copies = config.num_return_sequences or 1
    if copies > 1:
        config, repeat = (
            _copied(config, copies, len(inputs[0])),
            partial(torch.repeat_interleave, repeats=copies, dim=0),
        )
        inputs = repeat(inputs[0]), repeat(inputs[1]), repeat(inputs[2])
        guide = None if guide is None else (repeat(guide[0]), repeat(guide[1]))
    if not config.compile_step:  # torch.compile finds them itself
        backbone.hold_weights(packed=config.cache == "none")
    run = _Run(backbone, config, *inputs, guide, watched, ending, streamer=streamer)
    if streamer is not None:
        streamer.put(inputs[0].cpu())
    while run.running:
        run.step()
    if streamer is not None:
        streamer.put(run.generated.cpu())
        streamer.end()
    return GenerationOutput(
        sequences=run.sequences,
        steps=run.steps,
        accepted_at=run.accepted_at,
        trace=run.trace if config.return_trace else None,
    )


def _resolve_config(config: GenerationConfig | None, overrides: dict[str, Any]) -> GenerationConfig:
    base = GenerationConfig() if config is None else config
    if not isinstance(base, GenerationConfig):
        hint = ""
        if isinstance(base, transformers.GenerationConfig):
            hint = "; take wino.GenerationConfig(**config.to_diff_dict()), which checks every setting"
        raise TypeError(f"generation_config: expected a wino.GenerationConfig, got {_kind(base)}{hint}")
    if not overrides:
        base.validate()
        return base
    settings = base.to_dict()
    unknown = set(overrides) - set(settings) - known_settings()
    if unknown:
        raise TypeError(f"generate: unknown settings {sorted(unknown)}")
    for length, other in (("max_length", "max_new_tokens"), ("max_new_tokens", "max_length")):
        if overrides.get(length) is not None and other not in overrides:
            settings[other] = None
    return GenerationConfig(**{**settings, **overrides})


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _with_length(config: GenerationConfig, input_ids: Any) -> GenerationConfig:
    """``config`` with ``max_new_tokens``, where it has the length of prompt and generation together."""
    if config.max_length is None or not isinstance(input_ids, Tensor) or input_ids.dim() != 2:
        return config
    left = config.max_length - input_ids.shape[1]
    if left < 1:
        raise ValueError(f"max_length: the prompt alone has {input_ids.shape[1]} positions, got {config.max_length}")
    return GenerationConfig(**{**config.to_dict(), "max_length": None, "max_new_tokens": left})


def _copied(config: GenerationConfig, copies: int, batch: int) -> GenerationConfig:
    """``config`` for ``copies`` rows of each of ``batch`` sequences; the first draws what the sequence alone would."""
    rows: dict[str, Any] = {
        name: [each for each in value for _ in range(copies)]
        for name in ("threshold", "threshold_back", "temperature")
        if isinstance(value := getattr(config, name), Sequence)
    }
    seeds = config.seed if isinstance(config.seed, Sequence) else [config.seed] * batch
    return GenerationConfig(
        **{**config.to_dict(), **rows, "seed": [s + (c << 32) for s in seeds for c in range(copies)]}
    )


def _check_watchers(config: GenerationConfig, streamer: Any, tokenizer: Any) -> None:
    for name in ("put", "end") if streamer is not None else ():
        if not callable(getattr(streamer, name, None)):
            raise TypeError(f"streamer: expected put(value) and end(), {_kind(streamer)} has no {name}")
    if config.stops and not callable(getattr(tokenizer, "decode", None)):
        raise TypeError(f"tokenizer: stop_strings needs the model's tokenizer, got {_kind(tokenizer)}")


@dataclass(frozen=True)
class _Ending:
    """What ends a sequence early: tokens, or texts that ``tokenizer`` makes of them; and what stands behind."""

    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    tokenizer: Any
    filler: int


def _find_ending(
    backbone: Backbone, config: GenerationConfig, ends: tuple[int, ...], tokenizer: Any, given: Tensor
) -> _Ending:
    """``ends``: the model's own end tokens; ``given``: where the generation region is not to be filled."""
    if config.eos_token_id is not None:
        own = config.eos_token_id
        ends = tuple(own) if isinstance(own, list | tuple) else (own,)
    if config.stop_at_eos and not ends:
        raise ValueError("stop_at_eos: the model's configuration has no eos_token_id, and none is set")
    filler = config.pad_token_id if config.pad_token_id is not None or not ends else ends[0]
    if config.stops and filler is None:
        raise ValueError("stop_strings: the model has no eos_token_id; set pad_token_id, which is put behind the end")
    fills = filler is not None and (config.stop_at_eos or config.stops)
    if fills and (not 0 <= filler < backbone.vocab_size or filler == backbone.mask_token_id):
        raise ValueError(
            f"pad_token_id, else the first end token, is put behind an early end: expected a token of the model's "
            f"{backbone.vocab_size} that is not its mask, got {filler}"
        )
    if config.stops and bool(given.any()):
        raise ValueError("stop_strings: generation_ids gives tokens that an early end would drop; take one of them")
    return _Ending(ends, config.stops, tokenizer, -1 if filler is None else filler)


def _check_inputs(
    backbone: Backbone,
    config: GenerationConfig,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    generation_ids: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Validated prompt ids (B, P), prompt mask (B, P) bool, initial generation region (B, G), on the model's device."""
    input_ids, visible = _check_prompts("input_ids", input_ids, "attention_mask", attention_mask, backbone)
    batch = len(input_ids)
    _check_length("input_ids", visible, config, backbone)
    if (visible & (input_ids == backbone.mask_token_id)).any():
        raise ValueError(
            f"input_ids: the mask token ({backbone.mask_token_id}) is in the prompt; start the generation region at "
            "the first hole and pass the tokens behind it as generation_ids"
        )
    if not 0 <= backbone.mask_token_id < backbone.vocab_size:
        raise ValueError(
            f"mask_token_id of the model's configuration: expected an id in [0, {backbone.vocab_size}), got "
            f"{backbone.mask_token_id}"
        )
    wanted = (batch, config.max_new_tokens)
    if generation_ids is None:
        generation_ids = torch.full(wanted, backbone.mask_token_id, device=backbone.device)
    elif not isinstance(generation_ids, Tensor) or (generation_ids.dtype, generation_ids.shape) != (
        torch.int64,
        wanted,
    ):
        raise ValueError(f"generation_ids: expected an int64 tensor {wanted}, got {_describe(generation_ids)}")
    else:
        generation_ids = generation_ids.to(backbone.device)
        _check_ids("generation_ids", generation_ids, backbone.vocab_size)
    _check_drafts(backbone, config)
    _check_graph(config, backbone.device)
    for name in ("threshold", "threshold_back", "temperature", "seed"):
        value = getattr(config, name)
        if isinstance(value, Sequence) and len(value) != batch:
            raise ValueError(f"{name}: expected one value or one for each of the {batch} sequences, got {len(value)}")
    return input_ids, visible, generation_ids


def _check_drafts(backbone: Backbone, config: GenerationConfig) -> None:
    """Settings that name tokens name those of the model, and leave something to draft."""
    size = backbone.vocab_size
    if config.token_range is not None and config.token_range[1] > size:
        raise ValueError(f"token_range: the vocabulary ends at {size}, got {config.token_range}")
    ends, pad = config.eos_token_id, config.pad_token_id
    named = {
        "suppress_tokens": config.suppress_tokens,
        "begin_suppress_tokens": config.begin_suppress_tokens,
        "bad_words_ids": config.suppressed if config.bad_words_ids else None,
        "defer_tokens": config.defer_tokens,
        "eos_token_id": [ends] if isinstance(ends, int) else ends,
        "pad_token_id": None if pad is None else [pad],
    }
    for name, ids in named.items():
        if ids and max(ids) >= size:
            raise ValueError(f"{name}: token ids must lie in [0, {size}), got {max(ids)}")
    barred = {backbone.mask_token_id, *config.suppressed, *(config.defer_tokens or ())}
    barred |= {*(config.begin_suppress_tokens or ())}
    if barred.issuperset(range(*config.token_range or (0, size))):
        names = ("token_range", "suppress_tokens", "bad_words_ids", "begin_suppress_tokens", "defer_tokens")
        raise ValueError(
            f"{', '.join(name for name in names if getattr(config, name))}: expected some token that may be drafted, "
            "all of them are suppressed or deferred, or the mask's"
        )


def _check_prompts(
    name: str, ids: Tensor, mask_name: str, mask: Tensor | None, backbone: Backbone
) -> tuple[Tensor, Tensor]:
    """Validated ids, 0 at padding, and what is visible of them (bool), on the model's device."""
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.dtype != torch.int64:
        raise TypeError(f"{name}: expected an int64 tensor (B, P), got {_describe(ids)}")
    if 0 in ids.shape:
        raise ValueError(f"{name}: the prompt is empty, shape {tuple(ids.shape)}")
    mask = torch.ones_like(ids) if mask is None else mask
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        raise ValueError(f"{mask_name}: expected a tensor {tuple(ids.shape)}, got {_describe(mask)}")
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"{mask_name}: expected 0 (padding) and 1, got values in {mask.unique()[:4].tolist()}")
    ids, visible = ids.to(backbone.device), mask.to(backbone.device, torch.bool)
    if not visible.all():
        if not visible[:, -1].all():
            raise ValueError(f"{mask_name}: expected left padding, prompts not empty (a last token is hidden)")
        if (visible[:, :-1] & ~visible[:, 1:]).any():
            raise ValueError(f"{mask_name}: expected left padding, got a hole inside a prompt")
        ids = ids.masked_fill(~visible, 0)
    _check_ids(name, ids, backbone.vocab_size)
    return ids, visible


def _check_guide(
    backbone: Backbone, config: GenerationConfig, ids: Tensor | None, mask: Tensor | None, prompt: Tensor
) -> tuple[Tensor, Tensor] | None:
    """What guidance's second copy sees in the prompt's place, and of what length it is: both (B, P)."""
    if ids is None:
        if mask is not None:
            raise ValueError("unconditional_mask: needs unconditional_ids")
        return None
    if config.cfg_scale == 0:
        raise ValueError("unconditional_ids: needs cfg_scale > 0")
    ids, visible = _check_prompts("unconditional_ids", ids, "unconditional_mask", mask, backbone)
    batch, length = prompt.shape
    if ids.shape[0] != batch or ids.shape[1] > length:
        raise ValueError(f"unconditional_ids: expected shape ({batch}, U) with U <= {length}, got {tuple(ids.shape)}")
    _check_length("unconditional_ids", visible, config, backbone)
    on_the_left = (length - ids.shape[1], 0)
    return F.pad(ids, on_the_left), F.pad(visible, on_the_left)


def _check_graph(config: GenerationConfig, device: torch.device) -> None:
    if config.cuda_graph and device.type != "cuda":
        raise ValueError(f"cuda_graph: expected a model on a CUDA device, it is on {device}")


def _check_length(name: str, visible: Tensor, config: GenerationConfig, backbone: Backbone) -> None:
    longest = int(visible.sum(1).max()) + config.max_new_tokens
    if longest > backbone.max_length:
        raise ValueError(
            f"{name}: with the generation they need {longest} positions, the model's limit is {backbone.max_length}"
        )


def _check_ids(name: str, ids: Tensor, vocab_size: int) -> None:
    low, high = torch.stack(ids.aminmax()).tolist()
    if low < 0 or high >= vocab_size:
        raise ValueError(f"{name}: token ids must lie in [0, {vocab_size}), got {low if low < 0 else high}")


def _describe(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


@dataclass
class _Sequence:
    """One sequence of a decode, on the host.

    Attributes:
        number: its row in the caller's batch.
        given, open: for each block, whether it has given tokens, and whether it has something to fill.
        block: the block it is in; block_steps: forward passes spent on it; last_accepted: by the last of them.
        end: where in the generation region it ended, if it did before its last token.
    """

    number: int
    given: list[bool]
    open: list[bool]
    block: int = -1
    block_steps: int = 0
    last_accepted: int = 0
    end: int | None = None

    def next_block(self) -> int | None:
        return next((block for block in range(self.block + 1, len(self.open)) if self.open[block]), None)

    def may_stop(self) -> bool:
        """Whether something is left to fill, and nothing given."""
        return self.next_block() is not None and not any(self.given[self.block + 1 :])


class _Run:
    """One decode: which sequence is in which block, who is finished, who watches."""

    def __init__(
        self,
        backbone: Backbone,
        config: GenerationConfig,
        prompt: Tensor,
        visible: Tensor,
        generation_ids: Tensor,
        guide: tuple[Tensor, Tensor] | None,
        watched: list[tuple[str, Any]],
        ending: _Ending,
        *,
        streamer: Any,
    ) -> None:
        self.backbone, self.config, self.streamer, self.ending = backbone, config, streamer, ending
        batch, self.prompt_length = prompt.shape
        self.sequences = torch.cat((prompt, generation_ids), dim=1)
        self.accepted_at = torch.full_like(generation_ids, -1)
        self.steps_taken = [0] * batch
        self.step_number = 0
        self.trace: list[list[StepRecord]] = [[] for _ in range(batch)]
        self.decoder: Decoder = DECODERS[config.decoder](config, backbone.mask_token_id, batch, backbone.device)
        self.runner = Runner(self.decoder, config, watched)
        self.batch = Batch(
            backbone, config, prompt, visible, generation_ids, self.decoder.uses_shadow, guide, ending.tokens
        )
        masked = (generation_ids == backbone.mask_token_id).unflatten(1, (-1, config.block_size))
        blocks = torch.stack(((~masked).any(-1), masked.any(-1)), dim=1).tolist()
        self.rows: list[_Sequence | None] = [
            _Sequence(number, given, to_fill) for number, (given, to_fill) in enumerate(blocks)
        ]
        self._advance(list(range(batch)))

    @property
    def running(self) -> bool:
        return any(sequence is not None for sequence in self.rows)

    @property
    def generated(self) -> Tensor:
        return self.sequences[:, self.prompt_length :]

    @property
    def steps(self) -> Tensor:
        return torch.tensor(self.steps_taken, dtype=torch.int64, device=self.sequences.device)

    def step(self) -> None:
        """One forward pass and one update of every sequence that is not finished."""
        watch = self._watcher()
        self.runner.take(self.batch, self._passes())
        statuses, accepted, ended = self.batch.report.tolist()
        if 2 in statuses:
            self._raise_nan(statuses)
        for sequence, last_accepted in zip(self.rows, accepted, strict=True):
            if sequence is not None:
                sequence.block_steps += 1
                sequence.last_accepted = last_accepted
                self.steps_taken[sequence.number] += 1
        if watch is not None:
            watch()
        self.step_number += 1
        finished = []
        for row, sequence in enumerate(self.rows):
            if sequence is not None and statuses[row] == 1:
                if ended[row] and sequence.may_stop():
                    sequence.end = (sequence.block + 1) * self.config.block_size
                finished.append(row)
        if finished:
            self._advance(finished)

    def _passes(self) -> Passes:
        """What the next step needs; exact, for re-masking takes fewer than ``last``, of tokens written in the block."""
        live = [(row, sequence) for row, sequence in enumerate(self.rows) if sequence is not None]
        verify = self.decoder.uses_shadow and any(
            sequence.block_steps > 0 and sequence.last_accepted > 1 for _, sequence in live
        )
        if self.config.cache == "none":
            return Passes(True, verify)
        every = self.config.cache_refresh or self.config.max_new_tokens
        refreshed = [row for row, sequence in live if sequence.block_steps % every == 0]
        if len(refreshed) == len(live):
            return Passes(True, verify)
        return Passes(False, verify, torch.tensor(refreshed, device=self.sequences.device) if refreshed else None)

    def _advance(self, finished: list[int]) -> None:
        """Each of the rows ``finished`` goes to its next block that has something to fill, or leaves."""
        self.batch.settle()
        entering, leaving = [], []
        for row in finished:
            sequence = self.rows[row]
            assert sequence is not None
            if self.ending.texts and sequence.block >= 0 and sequence.end is None:
                sequence.end = self._end_of_text(row, sequence)
            block = None if sequence.end is not None else sequence.next_block()
            if block is None:
                leaving.append(row)
            else:
                sequence.block, sequence.block_steps = block, 0
                entering.append(sequence)
        self._leave(leaving)
        self._compact()
        # What leaves takes its rows along; only the cached modes' parts have to be chosen anew.
        is_placed = not entering and None not in self.rows and self.config.cache == "none"
        if is_placed or not self.running:
            return
        starting = [any(sequence is other for other in entering) for sequence in self.rows]
        if self.batch.enter([None if sequence is None else sequence.block for sequence in self.rows], starting):
            self.runner.forget()
        self.decoder.start_blocks(self.batch.state, torch.tensor(starting, device=self.sequences.device))

    def _leave(self, rows: list[int]) -> None:
        """Their sequences are done."""
        if not rows:
            return
        self._publish(rows)
        for row in rows:
            sequence = self.rows[row]
            assert sequence is not None
            self._fill_up(sequence)
            self.rows[row] = None

    def _compact(self) -> None:
        """Finished sequences leave the batch: at once, or when they are half of it if another shape is expensive."""
        live = [row for row, sequence in enumerate(self.rows) if sequence is not None]
        fixed = self.config.cuda_graph or self.config.compile_step
        if not live or len(live) == len(self.rows) or (fixed and 2 * len(live) > len(self.rows)):
            return
        kept = torch.tensor(live, device=self.sequences.device)
        self.batch.keep(kept)
        self.decoder.keep(kept)
        self.runner.forget()
        self.rows = [self.rows[row] for row in live]

    def _publish(self, rows: list[int]) -> None:
        """Copy what the batch, settled, has of ``rows`` into the results."""
        device = self.sequences.device
        numbers = torch.tensor([sequence.number for row in rows if (sequence := self.rows[row])], device=device)
        source = torch.tensor(rows, device=device)
        self.sequences.index_copy_(0, numbers, self.batch.tokens.index_select(0, source))
        self.accepted_at.index_copy_(0, numbers, self.batch.accepted_at.index_select(0, source))

    def _end_of_text(self, row: int, sequence: _Sequence) -> int | None:
        """Behind the token that completes a stop string in the blocks so far, where in the generation region."""
        before, behind = (number * self.config.block_size for number in (sequence.block, sequence.block + 1))
        ids = self.batch.tokens[row, self.prompt_length : self.prompt_length + behind].tolist()

        def has_stop(length: int) -> bool:
            text = self.ending.tokenizer.decode(ids[:length], skip_special_tokens=False)
            return any(stop in text for stop in self.ending.texts)

        if not has_stop(behind):
            return None
        return next((length for length in range(before + 1, behind) if has_stop(length)), behind)

    def _fill_up(self, sequence: _Sequence) -> None:
        if sequence.end is not None:
            self.generated[sequence.number, sequence.end :] = self.ending.filler
            self.accepted_at[sequence.number, sequence.end :] = -1

    def _watcher(self) -> Callable[[], None] | None:
        """Before a step: what to call after it, if somebody wants to see it."""
        wants_draft, wants_step = (hasattr(self.streamer, name) for name in ("put_draft", "put_step"))
        if not (wants_draft or wants_step or self.config.return_trace):
            return None
        state = self.batch.state
        tokens, masked = state.tokens.clone(), state.masked.clone()

        def watch() -> None:
            self.batch.settle()
            self._publish([row for row, sequence in enumerate(self.rows) if sequence is not None])
            if wants_step or self.config.return_trace:
                records = self._records(tokens, masked)
                if wants_step:
                    self.streamer.put_step(self.step_number, self.generated.cpu(), records)
            if wants_draft:
                self.streamer.put_draft(self.generated.cpu())

        return watch

    def _records(self, tokens_before: Tensor, masked_before: Tensor) -> list[StepRecord | None]:
        """The step's record for each sequence of the caller's batch, None for finished ones; kept in ``trace``."""
        state = self.batch.state
        records: list[StepRecord | None] = [None] * len(self.trace)
        for row, sequence in enumerate(self.rows):
            if sequence is None:
                continue
            record = record_step(
                step=self.step_number,
                block=sequence.block,
                block_length=self.config.block_size,
                tokens_before=tokens_before[row],
                tokens_after=state.tokens[row],
                masked_before=masked_before[row],
                masked_after=state.masked[row],
                confidence=self.batch.confidence[row],
            )
            records[sequence.number] = record
            self.trace[sequence.number].append(record)
        return records

    def _raise_nan(self, statuses: list[int]) -> None:
        row = statuses.index(2)
        sequence, state = self.rows[row], self.batch.state
        assert sequence is not None
        nan = self.batch.confidence[row].isnan()
        drafted = nan & state.masked[row]
        wrong = (drafted if drafted.any() else nan & state.revocable[row]).nonzero()[0]
        raise FloatingPointError(
            f"the model's logits are NaN or infinite for sequence {sequence.number}, generated position "
            f"{sequence.block * self.config.block_size + int(wrong)}, step {self.step_number}"
        )
