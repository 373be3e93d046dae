"""What a decode is asked to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import transformers

from .settings import CARRIED, HONOURED, known_settings, refuse_foreign

PerRequest = float | Sequence[float]
"""One value for every sequence of the batch, or one value each."""

CACHE_NAMES = ("none", "prefix", "dual")

DECODER_NAMES = ("wino", "low_confidence", "confidence_threshold", "prophet", "maskgit")
"""The keys of :data:`wino.decoders.DECODERS`."""

ANSWER_REGION = 5
"""Positions that "prophet" looks at from ``answer_start`` on."""

MASKGIT_STEPS = 18
"""Steps of a block of "maskgit" if none are asked for: what its authors found ideal."""

USED_BY: dict[str, tuple[str, ...]] = {
    "threshold": ("wino", "confidence_threshold"),
    "threshold_back": ("wino",),
    "accept_fraction": ("wino",),
    "min_accept": ("wino",),
    "max_accept": ("wino",),
    "verify_last": ("wino",),
    "steps": ("low_confidence", "prophet", "maskgit"),
    "answer_start": ("prophet",),
    "remasking": ("low_confidence",),
    "choice_temperature": ("maskgit",),
}
"""Settings that only some decoders go by; for another one they must have their default."""

# What transformers 4 writes for "not set", and only there means nothing.
_MAX_LENGTH_OF_4, _TOP_K_OF_4 = 20, 50

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
    "defer_tokens": None,
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

    Every setting is honoured or refused: one that the decoder does not go by, or one of transformers that this loop
    has no counterpart of, raises unless it has its default, here and again when a decode begins.

    Args:
        decoder: "wino" (docs/spec.md section 3), "low_confidence", "confidence_threshold" or "prophet" (section 4);
            "maskgit", with which MMaDA draws pictures (:mod:`wino.decoders.maskgit`).
        max_new_tokens: generation length G; 256 if neither it nor ``max_length`` is given.
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
        defer_tokens: ids whose drafts count with confidence 0, so that they are filled in last, and whose probability
            the other drafts' confidences do not count (docs/spec.md section 3b). LLaDA's ``confidence_eos_eot_inf``:
            [126081, 126348].
        temperature: Gumbel temperature; 0: greedy; 1: drafts are drawn from the model's distribution.
        choice_temperature: "maskgit": of the noise on confidences, at the first step; 0: none.
        seed: seed of a request's random draws. One integer serves every sequence, so equal prompts draw equal
            samples; give one seed a sequence for different ones.
        stop_at_eos: once a block holds nothing but end tokens, later blocks without given tokens are not decoded, but
            filled with ``pad_token_id``, without one with the end token. End tokens: ``eos_token_id``.
        cache: "none": every step computes every token, exactly (docs/spec.md section 2). "prefix": keys and values of
            the prompt and of finished blocks are computed once a block; "dual": also those behind the block
            (:mod:`wino.cache`). Approximate.
        cache_refresh: with a cache: compute every token every so many steps of a block, not only in its first.
        compile_step: run the step under ``torch.compile``; a dictionary holds its keyword arguments.
        cuda_graph: replay the step as a CUDA graph; needs the model on a CUDA device.
        return_trace: record what every step accepted and re-masked.
        max_length: of transformers, as the following: prompt and generation together, in the place of
            ``max_new_tokens``.
        do_sample: True needs a temperature above 0, False temperature 0; None: whatever the temperature is.
        top_k, top_p: with a temperature: draw among the ``top_k`` likeliest tokens, and of these among the likeliest
            that together have at least ``top_p`` of the probability at that temperature. Confidences stay those of the
            model's whole distribution (docs/spec.md section 3b).
        suppress_tokens: ids that are never drafted: their logits are -inf, before anything else. LLaDA's
            ``logits_eos_inf``: [126081].
        begin_suppress_tokens: ids that are not drafted at the first generated position.
        bad_words_ids: as ``suppress_tokens``, each id in a list of its own; words of several tokens are refused.
        eos_token_id: end token, or a list of them; None: the model's (:func:`wino.models.end_token_ids`).
        pad_token_id: what stands behind the end of a sequence that ended early; None: the first end token.
        stop_strings: text, or a list of texts; :func:`wino.generate` needs ``tokenizer``. Once the text of the blocks
            decoded so far has one, later blocks are not decoded, and what follows its last token is filled as behind an
            end.
        num_return_sequences: answers drawn for each prompt, rows beside each other; the seed of copy c is
            ``seed + c * 2**32``. More than one needs something random.
        use_cache: False: ``cache`` must be "none"; ``cache`` decides.
        return_dict_in_generate: a :class:`wino.GenerationOutput` is returned either way.

    ``threshold``, ``threshold_back``, ``temperature`` and ``seed`` may be sequences with one value per sequence of
    the batch.

    Raises:
        ValueError: a value outside its range, two that contradict each other, or a setting that would change nothing;
            names it.
        TypeError: a name that is no setting.
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
    defer_tokens: list[int] | None
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
        _check_names(kwargs)
        length, new_tokens = kwargs.get("max_length"), kwargs.get("max_new_tokens")
        if length is None and new_tokens is None:
            kwargs["max_new_tokens"] = _DEFAULTS["max_new_tokens"]
        elif length == _MAX_LENGTH_OF_4 and new_tokens is not None:
            kwargs["max_length"] = None
        ours = {**_DEFAULTS, "max_new_tokens": None}
        ours = {name: kwargs.pop(name, default) for name, default in ours.items()}
        theirs = {name: kwargs.pop(name, None) for name in HONOURED}
        refuse_foreign({name: value for name, value in kwargs.items() if name not in CARRIED})
        self.__dict__.update(ours)
        super().__init__(
            max_new_tokens=ours.pop("max_new_tokens"), temperature=ours.pop("temperature"), **theirs, **kwargs
        )
        self.__dict__.update(ours)

    def validate(self, *args: Any, **kwargs: Any) -> None:
        """Check our own fields; the autoregressive rules of transformers do not apply to this loop."""
        _check_names(vars(self))
        refuse_foreign({n: v for n, v in vars(self).items() if n not in (*_DEFAULTS, *HONOURED, *CARRIED)})
        _check_choice("decoder", self.decoder, DECODER_NAMES)
        _check_choice("remasking", self.remasking, ("low_confidence", "random"))
        self._check_length()
        _check_integer("min_accept", self.min_accept, 1)
        _check_integer("max_accept", self.max_accept, 1)
        if self.decoder == "prophet":
            for name, only in (("stop_at_eos", False), ("remasking", "low_confidence")):
                if getattr(self, name) != only:
                    raise ValueError(f"{name}: decoder prophet has {only!r} only, got {getattr(self, name)!r}")
        for name, decoders in USED_BY.items():
            if self.decoder not in decoders and getattr(self, name) != _DEFAULTS[name]:
                raise ValueError(
                    f"{name}: decoder {self.decoder} does not go by it, got {getattr(self, name)!r}; leave it out, or "
                    f"take {' or '.join(decoders)}"
                )
        for name in ("verify_last", "stop_at_eos", "cuda_graph", "return_trace"):
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
        self._check_drawing()
        self._check_tokens()

    def _check_length(self) -> None:
        if self.max_length is not None:
            _check_integer("max_length", self.max_length, 1)
            if self.max_new_tokens is not None:
                raise ValueError(
                    f"max_length: max_new_tokens is set as well, got {self.max_length} and {self.max_new_tokens}; "
                    "leave one of them out (None)"
                )
        else:
            _check_integer("max_new_tokens", self.max_new_tokens, 1)
        for name, least in (("block_length", 1), ("steps", 1), ("answer_start", 0)):
            if getattr(self, name) is not None:
                _check_integer(name, getattr(self, name), least)
        if self.max_new_tokens is None:  # known with the prompt; generate checks what follows then
            return
        if self.max_new_tokens % (self.block_length or 1):
            raise ValueError(
                f"block_length: must divide max_new_tokens = {self.max_new_tokens}, got {self.block_length}"
            )
        blocks = self.max_new_tokens // (self.block_length or self.max_new_tokens)
        if (self.steps or 0) % blocks:
            raise ValueError(f"steps: must be a multiple of the {blocks} blocks, got {self.steps}")
        if self.answer_start is not None and self.answer_start + ANSWER_REGION > self.max_new_tokens:
            raise ValueError(
                f"answer_start: expected at most {self.max_new_tokens - ANSWER_REGION}, {ANSWER_REGION} positions "
                f"before the end of the {self.max_new_tokens} generated, got {self.answer_start}"
            )

    def _check_drawing(self) -> None:
        """What has to do with chance."""
        samples = self.samples
        if self.do_sample not in (None, True, False):
            raise ValueError(f"do_sample: expected True, False or None, got {self.do_sample!r}")
        if self.do_sample is not None and self.do_sample != samples:
            wanted = "a temperature above 0" if self.do_sample else "temperature 0"
            raise ValueError(f"do_sample: {self.do_sample} needs {wanted}, got temperature {self.temperature!r}")
        if self.top_k is not None:
            _check_integer("top_k", self.top_k, 0)
        if self.top_p is not None:
            _check_numbers("top_p", [self.top_p], "in (0, 1]", lambda v: 0 < v <= 1)
        for name, neutral in (("top_k", (None, 0, _TOP_K_OF_4)), ("top_p", (None, 1.0))):
            if getattr(self, name) not in neutral and not samples:
                raise ValueError(f"{name}: needs a temperature above 0, got {getattr(self, name)!r} and temperature 0")
        if self.num_return_sequences is not None:
            _check_integer("num_return_sequences", self.num_return_sequences, 1)
            random = samples or self.remasking == "random" or self.choice_temperature > 0
            if self.num_return_sequences > 1 and not random:
                raise ValueError(
                    f"num_return_sequences: greedy decodes of one prompt are equal, got {self.num_return_sequences}; "
                    "give a temperature above 0"
                )

    def _check_tokens(self) -> None:
        """What names tokens or ends."""
        for name in ("suppress_tokens", "begin_suppress_tokens", "defer_tokens"):
            if getattr(self, name) is not None:
                _check_ids(name, getattr(self, name))
        if self.bad_words_ids is not None:
            if not isinstance(self.bad_words_ids, list | tuple):
                raise ValueError(f"bad_words_ids: expected lists of one id each, got {self.bad_words_ids!r}")
            for word in self.bad_words_ids:
                _check_ids("bad_words_ids", word)
                if len(word) != 1:
                    raise ValueError(
                        f"bad_words_ids: only words of one token can be kept out, since tokens of a block are drafted "
                        f"at once, got {list(word)!r}"
                    )
        if self.eos_token_id is not None:
            ends = self.eos_token_id if isinstance(self.eos_token_id, list | tuple) else [self.eos_token_id]
            _check_ids("eos_token_id", ends)
        if self.pad_token_id is not None:
            _check_ids("pad_token_id", [self.pad_token_id])
        stops = [self.stop_strings] if isinstance(self.stop_strings, str) else self.stop_strings
        texts = isinstance(stops, list | tuple) and all(isinstance(stop, str) and stop for stop in stops)
        if stops is not None and not texts:
            raise ValueError(f"stop_strings: expected texts, none of them empty, got {self.stop_strings!r}")
        for name in ("use_cache", "return_dict_in_generate"):
            if getattr(self, name) not in (None, True, False):
                raise ValueError(f"{name}: expected True or False, got {getattr(self, name)!r}")
        if self.use_cache is False and self.cache != "none":
            raise ValueError(f"use_cache: False needs cache 'none', got cache {self.cache!r}")

    def to_diff_dict(self) -> dict[str, Any]:
        """What a file holds: of transformers 4 also a setting whose value here is the default there, not ours."""
        honoured = {name: getattr(self, name) for name in HONOURED if getattr(self, name) is not None}
        return {**super().to_diff_dict(), "temperature": self.temperature, **honoured}

    @property
    def suppressed(self) -> list[int]:
        """Ids that are never drafted: ``suppress_tokens`` and ``bad_words_ids``."""
        return [*(self.suppress_tokens or ()), *(token for word in self.bad_words_ids or () for token in word)]

    @property
    def samples(self) -> bool:
        """Whether a draft of some sequence is drawn."""
        return any(value > 0 for value in _per_sequence(self.temperature))

    @property
    def filters_draws(self) -> bool:
        """Whether ``top_k`` or ``top_p`` leaves something out of what is drawn."""
        return self.samples and (bool(self.top_k) or self.top_p not in (None, 1.0))

    @property
    def stops(self) -> tuple[str, ...]:
        """``stop_strings`` as a tuple."""
        given = () if self.stop_strings is None else self.stop_strings
        return (given,) if isinstance(given, str) else tuple(given)

    @property
    def block_size(self) -> int:
        """Positions scored in a step: the block length K with its default resolved; all of "prophet"'s."""
        return self.max_new_tokens if self.decoder == "prophet" else self.block_length or self.max_new_tokens


def _check_names(settings: Iterable[str]) -> None:
    unknown = [name for name in settings if name not in _DEFAULTS and name not in known_settings()]
    if unknown:
        raise TypeError(f"GenerationConfig: unknown settings {', '.join(unknown)}; ours are {', '.join(_DEFAULTS)}")


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


def _check_ids(name: str, value: Any) -> None:
    ids = value if isinstance(value, list | tuple) else [None]
    if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in ids):
        raise ValueError(f"{name}: expected token ids, got {value!r}")


def _per_sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def _check_numbers(name: str, values: Sequence[Any], expected: str, holds: Callable[[Any], bool]) -> None:
    for number in values or [None]:
        if isinstance(number, bool) or not isinstance(number, Real) or not holds(number):
            raise ValueError(f"{name}: expected {expected}, got {number!r}")
