"""A model of lmms-eval (``--model wino_mmada``), so that its own tasks run on a MMaDA in our loop.

lmms-eval finds it by the package's entry point; nothing else here imports lmms-eval.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from ..config import GenerationConfig
from ..generation import generate
from ..models.ends import end_token_ids
from ..multimodal import load, pad_left
from ..tasks.evaluation import read_answers

manifest = ModelManifest(model_id="wino_mmada", simple_class_path="wino.integrations.lmms_eval.WinoMMaDA")
_PLACEHOLDER = re.compile(r"<image ?\d*>")  # pictures come before the text, wherever a task puts them


class WinoMMaDA(lmms):
    """``lmms_eval --model wino_mmada --model_args pretrained=Gen-Verse/MMaDA-8B-MixCoT,decoder=wino,threshold=0.5 ...``

    Args:
        pretrained, image_tokenizer: as of :func:`wino.multimodal.load`.
        device: None: this process's GPU if there is one, else the CPU.
        dtype: name of a Torch dtype.
        batch_size: prompts decoded together.
        gen_length: tokens generated, where a task does not say ``max_new_tokens``.
        block_length: shortened to what divides the length.
        fit: "crop": a picture's middle square, as MMaDA takes photographs; "squash": all of it, its sides scaled alone,
            as MMaDA takes diagrams and documents (AI2D, MathVista, MMMU, ...).
        prefix: text before every question, such as an instruction to reason first.
        **settings: further settings of :class:`wino.GenerationConfig`; numbers may come as text.

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
        if device is None and torch.cuda.is_available():
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        self.settings = {name: _value(value) for name, value in settings.items() if name != "max_batch_size"}
        sizes = {"gen_length": gen_length, "block_length": block_length, "batch_size": batch_size}
        self.gen_length, self.block_length, self.batch_size_per_gpu = (_size(*size) for size in sizes.items())
        if fit not in ("crop", "squash"):
            raise ValueError(f"fit: expected 'crop' or 'squash', got {fit!r}")
        kind = getattr(torch, dtype, None)
        if not isinstance(kind, torch.dtype):
            raise ValueError(f"dtype: expected the name of a Torch dtype such as bfloat16, got {dtype!r}")
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
        """One answer a request, in their order; those of one length are decoded together."""
        answers = [""] * len(requests)
        by_length: dict[int, list[int]] = {}
        for number, request in enumerate(requests):
            length = int(request.args[1].get("max_new_tokens") or self.gen_length)
            by_length.setdefault(length, []).append(number)
        for length, numbers in by_length.items():
            for first in range(0, len(numbers), self.batch_size_per_gpu):
                chosen = numbers[first : first + self.batch_size_per_gpu]
                texts = self._answer([requests[number] for number in chosen], length)
                for number, text in zip(chosen, texts, strict=True):
                    context, settings = requests[number].args[:2]
                    answers[number] = _before(text, settings.get("until"))
                    self.cache_hook.add_partial("generate_until", (context, settings), answers[number])
        return answers

    def _answer(self, requests: Sequence[Any], length: int) -> list[str]:
        ids, mask = pad_left([self._prompt(request) for request in requests])
        out = generate(self._model, ids, mask, self._config(length))
        generated = out.sequences[:, ids.shape[1] :].cpu()
        return read_answers(self.processor, generated, end_token_ids(self._model, self.processor))[0]

    def _prompt(self, request: Any) -> list[int]:
        context, _, visuals_of, doc_id, task, split = request.args
        pictures = visuals_of(self.task_dict[task][split][doc_id]) or []
        text = self.prefix + _PLACEHOLDER.sub("", context)
        codes = list(self.processor.codes(pictures, self.fit).cpu()) if pictures else []
        return self.processor.layout.about_picture(codes, text)

    def _config(self, length: int) -> GenerationConfig:
        block = next(size for size in range(min(self.block_length, length), 0, -1) if length % size == 0)
        return GenerationConfig(**{"decoder": "wino", "max_new_tokens": length, "block_length": block, **self.settings})

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
