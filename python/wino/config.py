"""What a decode is asked to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import transformers

PerRequest = float | Sequence[float]
"""One value for every sequence of the batch, or one value each."""

CACHE_NAMES = ("none", "prefix", "dual")

DECODER_NAMES = ("wino", "low_confidence", "confidence_threshold", "prophet", "maskgit")
"""The keys of :data:`wino.decoders.DECODERS`."""

ANSWER_REGION = 5
"""Positions that "prophet" looks at from ``answer_start`` on."""

MASKGIT_STEPS = 18
"""Steps of a block of "maskgit" if none are asked for: what its authors found ideal."""

_DEFAULTS: dict[str, Any] = {
    "decoder": "wino",
    "max_new_tokens": 256,
    "block_length": None,
    "threshold": 0.6,
    "threshold_back": 0.9,
    "accept_fraction": 0.7,
    "min_accept": 5,
    "max_accept": 20,
    "verify_last": False,
    "steps": None,
    "answer_start": None,
    "remasking": "low_confidence",
    "cfg_scale": 0.0,
    "token_range": None,
    "temperature": 0.0,
    "choice_temperature": 0.0,
    "seed": 0,
    "stop_at_eos": False,
    "cache": "none",
    "cache_refresh": None,
    "compile_step": False,
    "cuda_graph": False,
    "return_trace": False,
}


class GenerationConfig(transformers.GenerationConfig):
    """Settings of :func:`wino.generate`; a ``transformers.GenerationConfig`` (saves, loads and updates like one).

    Args:
        decoder: "wino" (docs/spec.md section 3), "low_confidence", "confidence_threshold" or "prophet" (section 4);
            "maskgit", with which MMaDA draws pictures (:mod:`wino.decoders.maskgit`).
        max_new_tokens: generation length G.
        block_length: block length K, divides G; None: one block of G.
        threshold: draft threshold of "wino" (accept above it), acceptance threshold of "confidence_threshold"; in (0,
            1].
        threshold_back: verification threshold of "wino", in (0, 1].
        accept_fraction, min_accept, max_accept: "wino": at most min(max(floor(fraction * masked), min), max) tokens
            are accepted a step.
        verify_last: "wino": also verify the tokens accepted last (docs/spec.md section 3a).
        steps: "low_confidence", "prophet", "maskgit": forward passes over all blocks; None: one token a step, of
            "maskgit" 18 a block.
        answer_start: "prophet": where in the generation region the answer's five positions begin, whose certainty ends
            the decode; None: all masked positions are looked at.
        remasking: "low_confidence": fill by "low_confidence" or at "random".
        cfg_scale: classifier-free guidance w; 0: none. The second copy has ``unconditional_ids`` in the prompt's place,
            or masks.
        token_range: (first, behind): only these token ids are drafted, and confidences are shares of their probability
            alone, as image codes are drawn; None: all of the vocabulary.
        temperature: Gumbel temperature; 0: greedy; 1: drafts are drawn from the model's distribution.
        choice_temperature: "maskgit": of the noise on confidences, at the first step; 0: none.
        seed: seed of a request's random draws. One integer serves every sequence, so equal prompts draw equal
            samples; give one seed a sequence for different ones.
        stop_at_eos: once a block holds nothing but the end-of-sequence token, later blocks without given tokens are
            filled with it and not decoded.
        cache: "none": every step computes every token, exactly (docs/spec.md section 2). "prefix": keys and values of
            the prompt and of finished blocks are computed once a block; "dual": also those behind the block
            (:mod:`wino.cache`). Approximate.
        cache_refresh: with a cache: compute every token every so many steps of a block, not only in its first.
        compile_step: run the step under ``torch.compile``; a dictionary holds its keyword arguments.
        cuda_graph: replay the step as a CUDA graph; needs the model on a CUDA device.
        return_trace: record what every step accepted and re-masked.

    ``threshold``, ``threshold_back``, ``temperature`` and ``seed`` may be sequences with one value per sequence of
    the batch.

    Raises:
        ValueError: a value outside its range, naming it.
    """

    decoder: str
    max_new_tokens: int
    block_length: int | None
    threshold: PerRequest
    threshold_back: PerRequest
    accept_fraction: float
    min_accept: int
    max_accept: int
    verify_last: bool
    steps: int | None
    answer_start: int | None
    remasking: str
    cfg_scale: float
    token_range: tuple[int, int] | None
    temperature: PerRequest
    choice_temperature: float
    seed: int | Sequence[int]
    stop_at_eos: bool
    cache: str
    cache_refresh: int | None
    compile_step: bool | dict[str, Any]
    cuda_graph: bool
    return_trace: bool

    def __init__(self, **kwargs: Any) -> None:
        known = vars(transformers.GenerationConfig())
        unknown = [name for name in kwargs if name not in _DEFAULTS and name not in known and not name.startswith("_")]
        if unknown:
            raise TypeError(f"GenerationConfig: unknown settings {', '.join(unknown)}; ours are {', '.join(_DEFAULTS)}")
        ours = {name: kwargs.pop(name, default) for name, default in _DEFAULTS.items()}
        self.__dict__.update(ours)
        super().__init__(max_new_tokens=ours.pop("max_new_tokens"), temperature=ours.pop("temperature"), **kwargs)
        self.__dict__.update(ours)

    def validate(self, *args: Any, **kwargs: Any) -> None:
        """Check our own fields; the autoregressive rules of transformers do not apply to this loop."""
        _check_choice("decoder", self.decoder, DECODER_NAMES)
        _check_choice("remasking", self.remasking, ("low_confidence", "random"))
        _check_integer("max_new_tokens", self.max_new_tokens, 1)
        _check_integer("min_accept", self.min_accept, 1)
        _check_integer("max_accept", self.max_accept, 1)
        if self.block_length is not None:
            _check_integer("block_length", self.block_length, 1)
            if self.max_new_tokens % self.block_length:
                raise ValueError(
                    f"block_length: must divide max_new_tokens = {self.max_new_tokens}, got {self.block_length}"
                )
        blocks = self.max_new_tokens // (self.block_length or self.max_new_tokens)
        if self.steps is not None:
            _check_integer("steps", self.steps, 1)
            if self.steps % blocks:
                raise ValueError(f"steps: must be a multiple of the {blocks} blocks, got {self.steps}")
        if self.answer_start is not None:
            _check_integer("answer_start", self.answer_start, 0)
            if self.answer_start + ANSWER_REGION > self.max_new_tokens:
                raise ValueError(
                    f"answer_start: expected at most {self.max_new_tokens - ANSWER_REGION}, {ANSWER_REGION} positions "
                    f"before the end of the {self.max_new_tokens} generated, got {self.answer_start}"
                )
        if self.decoder == "prophet":
            for name, only in (("stop_at_eos", False), ("remasking", "low_confidence")):
                if getattr(self, name) != only:
                    raise ValueError(f"{name}: decoder prophet has {only!r} only, got {getattr(self, name)!r}")
        for name in ("verify_last", "stop_at_eos", "cuda_graph"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: expected True or False, got {getattr(self, name)!r}")
        if not isinstance(self.compile_step, bool | dict):
            raise ValueError(
                f"compile_step: expected True, False or arguments of torch.compile, got {self.compile_step!r}"
            )
        _check_choice("cache", self.cache, CACHE_NAMES)
        if self.cache_refresh is not None:
            _check_integer("cache_refresh", self.cache_refresh, 1)
            if self.cache == "none":
                raise ValueError("cache_refresh: needs cache to be prefix or dual")
        for name in ("threshold", "threshold_back"):
            _check_numbers(name, _per_sequence(getattr(self, name)), "in (0, 1]", lambda v: 0 < v <= 1)
        _check_numbers("accept_fraction", [self.accept_fraction], "in (0, 1]", lambda v: 0 < v <= 1)
        for name in ("cfg_scale", "choice_temperature"):
            _check_numbers(name, [getattr(self, name)], "a finite number >= 0", lambda v: 0 <= v < math.inf)
        if self.token_range is not None:
            _check_range("token_range", self.token_range)
        temperatures = _per_sequence(self.temperature)
        _check_numbers("temperature", temperatures, "a finite number >= 0", lambda v: 0 <= v < math.inf)
        _check_numbers("seed", _per_sequence(self.seed), "an integer", lambda v: isinstance(v, Integral))

    @property
    def block_size(self) -> int:
        """Positions scored in a step: the block length K with its default resolved; all of "prophet"'s."""
        return self.max_new_tokens if self.decoder == "prophet" else self.block_length or self.max_new_tokens


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")


def _check_integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: expected an integer >= {least}, got {value!r}")


def _check_range(name: str, value: Any) -> None:
    pair = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if len(pair) != 2 or any(isinstance(v, bool) or not isinstance(v, int) for v in pair) or not 0 <= pair[0] < pair[1]:
        raise ValueError(f"{name}: expected (first, behind) with 0 <= first < behind, got {value!r}")


def _per_sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def _check_numbers(name: str, values: Sequence[Any], expected: str, holds: Callable[[Any], bool]) -> None:
    for number in values or [None]:
        if isinstance(number, bool) or not isinstance(number, Real) or not holds(number):
            raise ValueError(f"{name}: expected {expected}, got {number!r}")
