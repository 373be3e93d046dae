"""A model of lmms-eval (``--model wino_mmada``), so that its own tasks run on a MMaDA in our loop.

lmms-eval finds it by the package's entry point; nothing else here imports lmms-eval.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from ..config import GenerationConfig
from ..generation import generate
from ..models.ends import end_token_ids
from ..models.loading import floating_dtype
from ..multimodal import load, pad_left
from ..tasks.evaluation import read_answers

manifest = ModelManifest(model_id="wino_mmada", simple_class_path="wino.integrations.lmms_eval.WinoMMaDA")
# Settings of a request that are not the loop's: where its answer ends and how long it is, and for LLaVA's models what
# ``fit`` is here.
_READ_APART = ("until", "max_new_tokens", "image_aspect_ratio")
_OF_DRAWING = ("do_sample", "temperature", "top_k", "top_p")
_PLACEHOLDER = re.compile(r"<image ?\d*>")  # pictures come before the text, wherever a task puts them


class WinoMMaDA(lmms):
    """``lmms_eval --model wino_mmada --model_args pretrained=Gen-Verse/MMaDA-8B-MixCoT,decoder=wino,threshold=0.5 ...``

    Args:
        pretrained, image_tokenizer: as of :func:`wino.multimodal.load`.
        device: as of :func:`wino.load`; None: this process's GPU if there is one, else the CPU.
        dtype: name of a Torch dtype.
        batch_size: prompts decoded together.
        gen_length: tokens generated, where a task does not say ``max_new_tokens``.
        block_length: shortened to what divides the length.
        fit: "crop": a picture's middle square, as MMaDA takes photographs; "squash": all of it, its sides scaled alone,
            as MMaDA takes diagrams and documents (AI2D, MathVista, MMMU, ...).
        prefix: text before every question, such as an instruction to reason first.
        **settings: further settings of :class:`wino.GenerationConfig`; numbers may come as text. They come before what
            a task asks for in ``generation_kwargs``; of these, greedy ones (``do_sample`` false or temperature 0) leave
            ``temperature``, ``top_k`` and ``top_p`` aside, as in transformers.

    Raises:
        ValueError, TypeError: a bad argument, named, or what :func:`wino.multimodal.load` refuses.
    """

    def __init__(
        self,
        pretrained: str = "Gen-Verse/MMaDA-8B-MixCoT",
        image_tokenizer: str | None = None,
        device: str | None = None,
        dtype: str = "bfloat16",
        batch_size: int | str = 1,
        gen_length: int = 256,
        block_length: int = 128,
        fit: Literal["crop", "squash"] = "crop",
        prefix: str = "",
        **settings: Any,
    ) -> None:
        super().__init__()
        self._rank, self._world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.settings = {name: _value(value) for name, value in settings.items() if name != "max_batch_size"}
        sizes = {"gen_length": gen_length, "block_length": block_length, "batch_size": batch_size}
        self.gen_length, self.block_length, self.batch_size_per_gpu = (_size(*size) for size in sizes.items())
        if fit not in ("crop", "squash"):
            raise ValueError(f"fit: expected 'crop' or 'squash', got {fit!r}")
        kind = floating_dtype(dtype)
        self.fit, self.prefix = fit, prefix
        self._config(self.gen_length)  # a bad setting is said before the weights are read
        self._model, self.processor = load(pretrained, image_tokenizer=image_tokenizer, dtype=kind, device=device)

    @property
    def batch_size(self) -> int:
        return self.batch_size_per_gpu

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """One answer a request, in their order; those of equal settings are decoded together.

        Raises:
            ValueError, TypeError: a request's setting that the loop has not, named, before anything is decoded.
        """
        answers = [""] * len(requests)
        together: dict[str, tuple[GenerationConfig, list[int]]] = {}
        for number, request in enumerate(requests):
            length = int(request.args[1].get("max_new_tokens") or self.gen_length)
            asked = self._asked(request.args[1])
            key = repr((length, sorted(asked.items())))
            if key not in together:
                together[key] = self._config(length, asked), []
            together[key][1].append(number)
        for config, numbers in together.values():
            for first in range(0, len(numbers), self.batch_size_per_gpu):
                chosen = numbers[first : first + self.batch_size_per_gpu]
                texts = self._answer([requests[number] for number in chosen], config)
                for number, text in zip(chosen, texts, strict=True):
                    context, settings = requests[number].args[:2]
                    answers[number] = _before(text, settings.get("until"))
                    self.cache_hook.add_partial("generate_until", (context, settings), answers[number])
        return answers

    def _answer(self, requests: Sequence[Any], config: GenerationConfig) -> list[str]:
        ids, mask = pad_left([self._prompt(request) for request in requests])
        out = generate(self._model, ids, mask, config)
        generated = out.sequences[:, ids.shape[1] :].cpu()
        return read_answers(self.processor, generated, end_token_ids(self._model, self.processor))[0]

    def _prompt(self, request: Any) -> list[int]:
        context, _, visuals_of, doc_id, task, split = request.args
        pictures = visuals_of(self.task_dict[task][split][doc_id]) or []
        text = self.prefix + _PLACEHOLDER.sub("", context)
        codes = list(self.processor.codes(pictures, self.fit).cpu()) if pictures else []
        return self.processor.layout.about_picture(codes, text)

    def _asked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What a request's ``generation_kwargs`` say of the decode."""
        asked = {name: value for name, value in given.items() if name not in _READ_APART and value is not None}
        drawn = asked.get("do_sample", True) and asked.get("temperature", 1.0 if asked.get("do_sample") else 0) > 0
        if not drawn or "temperature" in self.settings:
            return {name: value for name, value in asked.items() if name not in _OF_DRAWING}
        return {"temperature": 1.0, **asked}

    def _config(self, length: int, asked: Mapping[str, Any] | None = None) -> GenerationConfig:
        block = next(size for size in range(min(self.block_length, length), 0, -1) if length % size == 0)
        ours = {"decoder": "wino", "max_new_tokens": length, "block_length": block}
        return GenerationConfig(**{**ours, **(asked or {}), **self.settings})

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("wino_mmada: a masked diffusion model has no likelihood of a continuation")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("wino_mmada: tasks of several rounds are not supported")


def _before(text: str, until: str | Sequence[str] | None) -> str:
    for stop in [until] if isinstance(until, str) else until or []:
        text = text.split(stop)[0] if stop else text
    return text


def _size(name: str, value: int | str) -> int:
    try:
        size = int(value)
    except ValueError:
        size = 0
    if size < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    return size


def _value(value: Any) -> Any:
    """``"0.5"`` is a number; what else comes as text stays as it is."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(value.lower(), value)
