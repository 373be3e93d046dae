"""The loop: blocks x steps. Every decoder and every model goes through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

import wino_kernels

from .config import GenerationConfig
from .decoders import DECODERS, BlockState, Decoder
from .decoders.base import per_request
from .models.backbone import Backbone, backbone_of
from .trace import StepRecord, record_step

_LAST_ACCEPTED_AT_START = 30


@dataclass
class GenerationOutput(ModelOutput):
    """Result of :func:`generate`.

    Attributes:
        sequences: (B, P + G) int64, prompt and generated tokens.
        steps: (B,) int64, forward passes each sequence took.
        accepted_at: (B, G) int64, the forward pass (from 0) at which each final token was accepted; -1 for given
            tokens (SPEC section 5).
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
    streamer: Any = None,
    **overrides: Any,
) -> GenerationOutput:
    """Decode a batch of prompts with a masked diffusion language model.

    Args:
        model: a :class:`wino.models.LLaDAModelLM`, or a model after ``wino.patch(model)``.
        input_ids: (B, P) int64 prompts, padded on the left.
        attention_mask: (B, P), 1 or True where ``input_ids`` holds a real token; None: everywhere.
        generation_config: the settings; None: the defaults of :class:`GenerationConfig`.
        generation_ids: (B, G) int64 initial tokens of the generation region: the mask id where to fill; other tokens
            are fixed.
        streamer: a transformers streamer. ``put(input_ids)`` first, ``put_draft((B, G) tokens)`` after each step if
            it has that method, ``put_step(step, (B, G) tokens, records)`` if it has that one, ``put((B, G) tokens)``
            and ``end()`` at the end.
        **overrides: single settings that replace those of ``generation_config``.

    Returns:
        :class:`GenerationOutput`. A sequence's result does not depend on the others in its batch, up to the rounding of
        matrix products: tokens are equal where confidences stay 1e-4 away from thresholds and ties (SPEC section 6).

    Raises:
        ValueError, TypeError: a bad argument, named, before the first forward pass.
        FloatingPointError: the model's logits were NaN; names sequence and position.
    """
    config = _resolve_config(generation_config, overrides)
    backbone = backbone_of(model)
    run = _Run(
        backbone, config, *_check_inputs(backbone, config, input_ids, attention_mask, generation_ids), streamer=streamer
    )
    if streamer is not None:
        streamer.put(input_ids.cpu())
    while run.active.any():
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
        raise TypeError(f"generation_config: expected a wino.GenerationConfig, got {type(base).__name__}")
    settings = {**base.to_dict(), **overrides} if overrides else None
    unknown = set(overrides) - set(base.to_dict())
    if unknown:
        raise TypeError(f"generate: unknown settings {sorted(unknown)}")
    if settings is None:
        base.validate()
        return base
    return GenerationConfig(**settings)


def _check_inputs(
    backbone: Backbone,
    config: GenerationConfig,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    generation_ids: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Validated prompt ids (B, P), prompt mask (B, P) bool, initial generation region (B, G), on the model's device."""
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2 or input_ids.dtype != torch.int64:
        raise TypeError(f"input_ids: expected an int64 tensor (B, P), got {_describe(input_ids)}")
    batch, prompt_length = input_ids.shape
    if batch == 0 or prompt_length == 0:
        raise ValueError(f"input_ids: the prompt is empty, shape {tuple(input_ids.shape)}")
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    if not isinstance(attention_mask, Tensor) or attention_mask.shape != input_ids.shape:
        raise ValueError(f"attention_mask: expected a tensor {(batch, prompt_length)}, got {_describe(attention_mask)}")
    visible = attention_mask.to(backbone.device, torch.bool)
    input_ids = input_ids.to(backbone.device)
    if not visible[:, -1].all():
        raise ValueError("attention_mask: expected left padding, prompts not empty (a last token is hidden)")
    if (visible[:, :-1] & ~visible[:, 1:]).any():
        raise ValueError("attention_mask: expected left padding, got a hole inside a prompt")
    length = prompt_length + config.max_new_tokens
    longest = int(visible.sum(1).max()) + config.max_new_tokens
    if longest > backbone.max_length:
        raise ValueError(
            f"input_ids: prompt and generation need {longest} positions, the model's limit is {backbone.max_length}"
        )
    _check_ids("input_ids", input_ids[visible], backbone.vocab_size)
    if (input_ids[visible] == backbone.mask_token_id).any():
        raise ValueError(
            f"input_ids: the mask token ({backbone.mask_token_id}) is in the prompt; start the generation region at "
            "the first hole and pass the tokens behind it as generation_ids"
        )
    if generation_ids is None:
        generation_ids = torch.full((batch, length - prompt_length), backbone.mask_token_id, device=backbone.device)
    wanted = (batch, config.max_new_tokens)
    if not isinstance(generation_ids, Tensor) or generation_ids.dtype != torch.int64 or generation_ids.shape != wanted:
        raise ValueError(f"generation_ids: expected an int64 tensor {wanted}, got {_describe(generation_ids)}")
    generation_ids = generation_ids.to(backbone.device)
    _check_ids("generation_ids", generation_ids, backbone.vocab_size)
    for name in ("threshold", "threshold_back", "temperature", "seed"):
        value = getattr(config, name)
        if isinstance(value, Sequence) and len(value) != batch:
            raise ValueError(f"{name}: expected one value or one for each of the {batch} sequences, got {len(value)}")
    return input_ids.masked_fill(~visible, 0), visible, generation_ids


def _check_ids(name: str, ids: Tensor, vocab_size: int) -> None:
    wrong = ids[(ids < 0) | (ids >= vocab_size)]
    if wrong.numel():
        raise ValueError(f"{name}: token ids must lie in [0, {vocab_size}), got {int(wrong[0])}")


def _describe(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


class _Run:
    """One decode: the sequences, the block each is in, and the layout the model sees."""

    def __init__(
        self,
        backbone: Backbone,
        config: GenerationConfig,
        prompt: Tensor,
        visible: Tensor,
        generation_ids: Tensor,
        *,
        streamer: Any,
    ) -> None:
        self.backbone, self.config, self.streamer = backbone, config, streamer
        batch, self.prompt_length = prompt.shape
        device, size = backbone.device, config.block_size
        self.decoder: Decoder = DECODERS[config.decoder](config, backbone.mask_token_id, batch, device)
        self.num_shadow = size if self.decoder.uses_shadow else 0
        self.num_real = self.prompt_length + config.max_new_tokens
        # [B, P + G + shadow]; the shadow tokens are always [MASK]
        self.tokens = torch.cat(
            (prompt, generation_ids, generation_ids.new_full((batch, self.num_shadow), backbone.mask_token_id)), dim=1
        )
        self.visible = torch.cat((visible, visible.new_ones(batch, self.tokens.shape[1] - self.prompt_length)), dim=1)
        self.real_positions = (self.visible[:, : self.num_real].long().cumsum(1) - 1).clamp(min=0)
        self.offsets = torch.arange(size, device=device)
        self.block = torch.full((batch,), -1, dtype=torch.int64, device=device)
        self.num_blocks = config.max_new_tokens // size
        self.active = torch.ones(batch, dtype=torch.bool)
        self.steps = torch.zeros(batch, dtype=torch.int64, device=device)
        self.accepted_at = torch.full_like(generation_ids, -1)
        self.trace: list[list[StepRecord]] = [[] for _ in range(batch)]
        self.temperature = (
            per_request(config.temperature, batch, device, torch.float32)[:, None].expand(batch, size).contiguous()
        )
        self.samples = bool((self.temperature > 0).any())
        self.seed = per_request(config.seed, batch, device, torch.int64)
        self.state = BlockState(
            tokens=generation_ids.new_zeros(batch, size),
            masked=visible.new_zeros(batch, size),
            revocable=visible.new_zeros(batch, size),
            last_accepted=torch.zeros(batch, dtype=torch.int32, device=device),
            block_step=torch.zeros(batch, dtype=torch.int64, device=device),
            row_seeds=generation_ids.new_zeros(batch, size),
        )
        self._advance(self.active.to(device))

    @property
    def sequences(self) -> Tensor:
        return self.tokens[:, : self.num_real]

    @property
    def generated(self) -> Tensor:
        return self.tokens[:, self.prompt_length : self.num_real]

    def step(self) -> None:
        """One forward pass and one update of every active sequence."""
        state = self.state
        if self.samples or self.config.remasking == "random":
            state.row_seeds = wino_kernels.row_seeds(
                self.seed, self.steps, self.real_positions.gather(1, self.block_positions)
            )
        token_ids, confidence = self._score()
        masked_before, tokens_before = state.masked.clone(), state.tokens.clone()
        revocable_before = state.revocable.clone()
        status = self.decoder.update(state, token_ids, confidence).cpu()
        if (status == 2).any():
            self._raise_nan(status, confidence, masked_before, revocable_before)
        self.tokens.scatter_(1, self.block_positions, state.tokens)
        self._note(masked_before, tokens_before, confidence)
        running = self.active.to(state.block_step.device)
        state.block_step += running
        self.steps += running
        finished = (status == 1) & self.active
        if finished.any():
            self._advance(finished.to(self.tokens.device))

    def _score(self) -> tuple[Tensor, Tensor]:
        """Token and confidence (B, K) of every block position: its real row if masked, its shadow row if filled."""
        state = self.state
        rows = self.block_positions
        if self.num_shadow:
            rows = torch.where(state.masked, rows, self.num_real + self.offsets)
        hidden = self._hidden_rows(self.tokens, rows)
        if self.config.cfg_scale > 0:
            # The head is linear, so guiding the hidden rows guides the logits.
            unguided = self._hidden_rows(self._without_prompt(), rows).float()
            hidden = (unguided + (self.config.cfg_scale + 1) * (hidden.float() - unguided)).to(hidden.dtype)
        weight, bias = self.backbone.head()
        temperature, seed = (self.temperature, state.row_seeds) if self.samples else (0.0, 0)
        candidates = self.decoder.candidate_ids(state)
        return wino_kernels.linear_score_tokens(
            hidden, weight, candidates, bias=bias, temperature=temperature, seed=seed
        )

    def _hidden_rows(self, tokens: Tensor, rows: Tensor) -> Tensor:
        return self.backbone.hidden_rows(
            tokens,
            rows,
            position_ids=self.position_ids,
            num_shadow=self.num_shadow,
            block_start=self.block_positions[:, 0].contiguous(),
            key_padding_mask=self.visible,
        )

    def _without_prompt(self) -> Tensor:
        tokens = self.tokens.clone()
        tokens[:, : self.prompt_length] = self.backbone.mask_token_id
        return tokens

    def _advance(self, moving: Tensor) -> None:
        """Move the sequences ``moving`` (B,) to their next block that has something to fill, or out of the batch."""
        state, mask_id = self.state, self.backbone.mask_token_id
        while True:
            self.block = torch.where(moving, self.block + 1, self.block)
            inside = self.block < self.num_blocks
            positions = (
                self.prompt_length
                + self.block.clamp(max=self.num_blocks - 1)[:, None] * len(self.offsets)
                + self.offsets
            )
            tokens = self.tokens.gather(1, positions)
            entering = moving & inside
            fresh = (tokens == mask_id) & entering[:, None]
            state.tokens.copy_(torch.where(moving[:, None], tokens, state.tokens))
            state.masked.copy_(torch.where(moving[:, None], fresh, state.masked))
            moving = entering & ~fresh.any(1)
            started = entering & ~moving
            state.revocable.masked_fill_(started[:, None] | ~inside[:, None], False)
            state.last_accepted.masked_fill_(started, _LAST_ACCEPTED_AT_START)
            state.last_accepted.masked_fill_(~inside, 0)
            state.block_step.masked_fill_(started, 0)
            self.block_positions = positions
            self.decoder.start_blocks(state, started)
            if not moving.any():
                break
        self.active = inside.cpu()
        self.position_ids = self.real_positions
        if self.num_shadow:
            self.position_ids = torch.cat((self.real_positions, self.real_positions.gather(1, positions)), dim=1)

    def _note(self, masked_before: Tensor, tokens_before: Tensor, confidence: Tensor) -> None:
        """Keep ``accepted_at``, and the records where somebody asked for them."""
        state, region = self.state, self.block_positions - self.prompt_length
        accepted = masked_before & ~state.masked
        # A re-masked position is accepted again before its block ends, which overwrites its entry.
        at = torch.where(accepted, self.steps[:, None], self.accepted_at.gather(1, region))
        self.accepted_at.scatter_(1, region, at)
        wants_records = hasattr(self.streamer, "put_step")
        if self.config.return_trace or wants_records:
            records = [
                record_step(
                    step=int(self.steps[i]),
                    block=int(self.block[i]),
                    block_length=len(self.offsets),
                    tokens_before=tokens_before[i],
                    tokens_after=state.tokens[i],
                    masked_before=masked_before[i],
                    masked_after=state.masked[i],
                    confidence=confidence[i],
                )
                if self.active[i]
                else None
                for i in range(len(self.trace))
            ]
            for history, record in zip(self.trace, records, strict=True):
                if record is not None:
                    history.append(record)
            if wants_records:
                self.streamer.put_step(int(self.steps.max()), self.generated.cpu(), records)
        if hasattr(self.streamer, "put_draft"):
            self.streamer.put_draft(self.generated.cpu())

    def _raise_nan(self, status: Tensor, confidence: Tensor, masked: Tensor, revocable: Tensor) -> None:
        sequence = int((status == 2).nonzero()[0])
        nan = confidence[sequence].isnan()
        drafted = nan & masked[sequence]
        wrong = (drafted if drafted.any() else nan & revocable[sequence]).nonzero()[0]
        position = int(self.block_positions[sequence, wrong]) - self.prompt_length
        raise FloatingPointError(
            f"the model's logits are NaN or infinite for sequence {sequence}, generated position {position}, "
            f"step {int(self.steps[sequence])}"
        )
