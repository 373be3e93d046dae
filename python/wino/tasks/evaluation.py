"""Run a decoder over a task's items and say how well and how fast it did."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..chat import render_chats
from ..config import GenerationConfig
from ..files import AppendedLines, numbered_lines, utf8
from ..generation import _check_inputs, generate
from ..models.backbone import backbone_of
from ..models.ends import end_token_ids
from ..prompts import pad_left
from .base import InvalidRowError, Item, Task
from .statistics import wilson_interval

_ENCODED_TOGETHER = 256  # prompts


@dataclass(frozen=True)
class Evaluation:
    """Outcome of one decoder on one list of items, item by item.

    ``tokens`` counts an answer up to and including its first end token, so that padding is never counted as speed
    (docs/spec.md section 3). ``scores``: what the task says of all answers together, beside accuracy.
    """

    texts: list[str]
    correct: list[bool]
    tokens: list[int]
    steps: list[int]
    seconds: float
    config: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        return sum(self.correct) / len(self.correct)

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return wilson_interval(sum(self.correct), len(self.correct))

    @property
    def mean_steps(self) -> float:
        return sum(self.steps) / len(self.steps)

    @property
    def step_reduction(self) -> float:
        """Forward passes that one token a step would take, over those taken, both summed over all items."""
        return sum(self.tokens) / sum(self.steps)

    @property
    def tokens_per_forward(self) -> float:
        """Mean over items of answer tokens per forward pass."""
        return sum(t / s for t, s in zip(self.tokens, self.steps, strict=True)) / len(self.steps)

    @property
    def tokens_per_second(self) -> float:
        return sum(self.tokens) / self.seconds

    def row(self) -> dict[str, Any]:
        """The figures as one flat record."""
        low, high = self.accuracy_interval
        return {
            "n": len(self.correct),
            "accuracy": self.accuracy,
            "ci_low": low,
            "ci_high": high,
            "mean_steps": self.mean_steps,
            "step_reduction": self.step_reduction,
            "tokens_per_forward": self.tokens_per_forward,
            "tokens_per_second": self.tokens_per_second,
            **self.scores,
        }


def encode_prompts(
    tokenizer: Any, prompts: Sequence[str], openings: Sequence[str] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts through the chat template, left-padded: ids and mask (B, P) int64; ``openings``: how replies begin.

    Raises:
        ValueError: a prompt is empty or has text the tokenizer cannot encode; names the text.
    """
    if not all(prompt.strip() for prompt in prompts):
        raise ValueError("prompt: expected text, got an empty prompt")
    asked = render_chats(tokenizer, [[{"role": "user", "content": prompt}] for prompt in prompts])
    chats = [chat + opening for chat, opening in zip(asked, openings or [""] * len(prompts), strict=True)]
    encoded = tokenizer(chats, add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    for prompt, row in zip(prompts, encoded, strict=True):
        if unknown is not None and unknown in row:
            unreadable = _unencodable(tokenizer, prompt)
            raise ValueError(f"prompt: the tokenizer cannot encode {unreadable!r} in {prompt[:80]!r}")
    return pad_left(encoded)


def encode_items(tokenizer: Any, task: Task, items: Sequence[Item]) -> tuple[torch.Tensor, torch.Tensor]:
    """The items' prompts, with their pictures if they have some, left-padded: ids and mask (B, P) int64.

    Raises:
        ValueError: as :func:`encode_prompts`; pictures, but ``tokenizer`` is no :class:`wino.multimodal.Processor`.
    """
    prompts = [item.prompt for item in items]
    if not task.has_pictures:
        return encode_prompts(tokenizer, prompts, [item.opening for item in items])
    if not hasattr(tokenizer, "encode_with_pictures"):
        raise ValueError(f"task {task.name} has pictures: expected a MMaDA and its wino.multimodal.Processor")
    return tokenizer.encode_with_pictures(prompts, [task.picture(item) for item in items], fit=task.fit)


def encode_checked(
    model: Any,
    tokenizer: Any,
    task: Task,
    items: Sequence[Item],
    configs: Collection[GenerationConfig],
    *,
    on_invalid: Callable[[str], None] | None = None,
    on_item: Callable[[], None] | None = None,
) -> tuple[list[Item], list[list[int]]]:
    """Encode every item, and see before anything is decoded that ``model`` can decode it with each of ``configs``.

    Args:
        on_invalid: told of every item that cannot be decoded, which is then left out.
        on_item: called after each item.

    Returns:
        The items that can be decoded, and the token ids of their prompts.

    Raises:
        InvalidRowError: without ``on_invalid``, an item that cannot be encoded (empty, unknown token, a picture that
            cannot be read) or decoded (too long, a mask token in it); names where it stands.
    """
    backbone = backbone_of(model)
    kept: list[Item] = []
    prompts: list[list[int]] = []

    def encode(group: Sequence[Item]) -> None:
        ids, mask = encode_items(tokenizer, task, group)
        for config in configs:
            _check_inputs(backbone, config, ids, mask, None)
        kept.extend(group)
        prompts.extend(row[seen].tolist() for row, seen in zip(ids, mask.bool(), strict=True))

    # A template may cost a process a call, so texts go together; whose fault it was is found one by one.
    size = 1 if task.has_pictures else _ENCODED_TOGETHER
    for group in (items[first : first + size] for first in range(0, len(items), size)):
        try:
            encode(group)
        except (ValueError, TypeError, OSError):
            for item in group:
                try:
                    encode([item])
                except (ValueError, TypeError, OSError) as error:
                    fault = f"{item.where or item.key}: {error}"
                    if on_invalid is None:
                        raise InvalidRowError(fault) from error
                    on_invalid(fault)
        if on_item is not None:
            for _ in group:
                on_item()
    return kept, prompts


def encode_answers(tokenizer: Any, task: Task, items: Sequence[Item]) -> torch.Tensor:
    """Worked answers (B, G) int64, end tokens behind them.

    Raises:
        ValueError: an item has no worked answer, or one that does not fit the task's generation length.
    """
    rows = []
    for item in items:
        if not item.answer:
            raise ValueError(f"items: {item.key!r} has no worked answer")
        ids = tokenizer(item.answer, add_special_tokens=False)["input_ids"]
        if len(ids) > task.max_new_tokens:
            raise ValueError(f"items: the answer of {item.key!r} has {len(ids)} tokens, {task.max_new_tokens} fit")
        rows.append(ids + [tokenizer.eos_token_id] * (task.max_new_tokens - len(ids)))
    return torch.tensor(rows)


def _unencodable(tokenizer: Any, prompt: str) -> str:
    """The distinct pieces of ``prompt`` that become the unknown token; all of it where offsets are not known."""
    if not tokenizer.is_fast:
        return prompt[:40]
    encoded = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
    spans = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    pieces = [prompt[first:last] for token, (first, last) in spans if token == tokenizer.unk_token_id]
    return "".join(dict.fromkeys(pieces))[:40]


def answer_lengths(generated: torch.Tensor, ends: Iterable[int]) -> torch.Tensor:
    """Tokens (B,) up to and including the first of the ``ends`` in each row of ``generated`` (B, G); G without one.

    ``ends``: as of :func:`wino.models.end_token_ids`.
    """
    is_end = torch.isin(generated, torch.tensor(list(ends), dtype=generated.dtype, device=generated.device))
    return torch.where(is_end.any(1), is_end.int().argmax(1) + 1, generated.shape[1])


def read_answers(tokenizer: Any, generated: torch.Tensor, ends: Collection[int]) -> tuple[list[str], list[int]]:
    """The text before the first end token of each row of ``generated`` (B, G), and :func:`answer_lengths`."""
    lengths = answer_lengths(generated, ends).tolist()
    rows = [row[:length] for row, length in zip(generated.tolist(), lengths, strict=True)]
    answers = [row[:-1] if row[-1] in ends else row for row in rows]
    return tokenizer.batch_decode(answers, skip_special_tokens=True), lengths


def evaluate(
    model: Any,
    tokenizer: Any,
    task: Task,
    items: Sequence[Item],
    config: GenerationConfig,
    *,
    batch_size: int = 128,
    on_batch: Callable[[int], None] | None = None,
    prompts: Sequence[Sequence[int]] | None = None,
    journal: Path | None = None,
) -> Evaluation:
    """Decode and grade ``items``, all of which are checked before the first is decoded. Timed: the decoding alone.

    Args:
        on_batch: told how many items each batch finished, and first of those that the journal had.
        prompts: of the items, from :func:`encode_checked`; None: they are encoded and checked here.
        journal: a file to which every batch's answers are appended; a later call for the same goes on behind them. Its
            name has to stand for model, items and settings, which it does not hold.

    Raises:
        InvalidRowError: as :func:`encode_checked`.
        ValueError: another process writes ``journal``, or it is none.
    """
    if not items:
        raise ValueError("items: expected at least one")
    if prompts is None:
        items, prompts = encode_checked(model, tokenizer, task, items, [config])
    ends = end_token_ids(model, tokenizer)
    with ExitStack() as stack:
        log = None if journal is None else stack.enter_context(AppendedLines(journal))
        answers = [] if journal is None else _read_journal(journal)
        if answers and on_batch is not None:
            on_batch(len(answers))
        for first in range(len(answers), len(items), batch_size):
            input_ids, attention_mask = pad_left(prompts[first : first + batch_size])
            began = time.perf_counter()
            output = generate(model, input_ids, attention_mask, config, tokenizer=tokenizer)
            seconds = (time.perf_counter() - began) / len(input_ids)
            texts, tokens = read_answers(tokenizer, output.sequences[:, input_ids.shape[1] :], ends)
            batch = [_Answer(*a, seconds) for a in zip(texts, tokens, output.steps.tolist(), strict=True)]
            if log is not None:
                log.write([(json.dumps(answer) + "\n").encode() for answer in batch])
            answers += batch
            if on_batch is not None:
                on_batch(len(batch))
    texts, counts, steps, times = (list(column) for column in zip(*answers, strict=True))
    correct = [task.grade(item, text) for item, text in zip(items, texts, strict=True)]
    return Evaluation(texts, correct, counts, steps, sum(times), config.to_diff_dict(), task.scores(items, texts))


class _Answer(NamedTuple):
    """One decoded item: what a line of a journal holds."""

    text: str
    tokens: int
    steps: int
    seconds: float


def _read_journal(path: Path) -> list[_Answer]:
    answers = []
    with open(path, "rb") as file:
        for where, line in numbered_lines(file, path):
            try:
                answer = _Answer(*json.loads(utf8(line)))
                if [type(value) for value in answer] != [str, int, int, float]:
                    raise TypeError
            except (ValueError, TypeError, RecursionError):
                raise ValueError(f"{where}: expected a decoded answer; remove the file to begin again") from None
            answers.append(answer)
    return answers
