"""``wino generate``: prompts in, text or JSON lines out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import GenerationConfig
from ..generation import _check_inputs, generate
from ..models.backbone import Backbone, backbone_of
from ..tasks import TASKS
from ..tasks.evaluation import encode_prompts, read_answers
from .errors import BadInputError
from .session import Presets, Session, open_session, text_lines


def read_prompts(prompt: str | None, file: str | None) -> list[str]:
    """The prompts asked for: the argument itself, or the lines of a file or of standard input."""
    if (prompt is None) == (file is None):
        raise BadInputError("expected a prompt or --file, " + ("got neither" if prompt is None else "got both"))
    source = file if file is not None else ("-" if prompt == "-" else None)
    if source is None:
        return [_checked(str(prompt), "prompt")]
    prompts = [_checked(line, where) for where, line in text_lines(source)]
    if not prompts:
        name = "standard input" if source == "-" else source
        raise BadInputError(f"{name}: expected one prompt a line, got nothing")
    return prompts


def _checked(prompt: str, where: str) -> str:
    if not prompt.strip():
        raise BadInputError(f"{where}: expected a prompt, got an empty one")
    if any("\ud800" <= c <= "\udfff" for c in prompt):
        raise BadInputError(f"{where}: expected UTF-8 text")
    return prompt


def config_for(
    prompt: str, settings: dict[str, Any], presets: Presets, otherwise: dict[str, Any] | None = None
) -> GenerationConfig:
    """The settings given, over the preset of the task that the prompt's first word names, else over ``otherwise``."""
    task = prompt.split()[0]
    preset: dict[str, Any] = dict(otherwise or {})
    if task in presets and task in TASKS:
        decoder = settings.get("decoder", GenerationConfig().decoder)
        preset = {"max_new_tokens": TASKS[task].max_new_tokens, **presets[task].get(decoder, {})}
    if "max_new_tokens" in settings:
        preset = {name: value for name, value in preset.items() if name not in ("block_length", "steps")}
    return GenerationConfig(**{**preset, **settings})


def run_generate(
    prompts: Sequence[str],
    settings: dict[str, Any],
    *,
    model: str,
    device: str,
    batch_size: int,
    json_lines: bool,
    trace: bool,
    stream: bool,
    verbose: bool,
    image: Path | None,
) -> None:
    """Decode ``prompts`` and print each answer as soon as its batch is done."""
    if trace and not json_lines:
        raise BadInputError("--trace adds to JSON lines: give --json too")
    if stream and json_lines:
        raise BadInputError("--stream and --json exclude each other")
    if stream and not sys.stdout.isatty():
        raise BadInputError("--stream needs a terminal; without it the finished text is printed")
    session = open_session(model, device, pictures=image is not None)
    otherwise = _length_without_preset(session, prompts, image)
    configs = [config_for(prompt, settings, session.presets, otherwise) for prompt in prompts]
    batches = list(_batches(prompts, configs, batch_size))
    backbone = backbone_of(session.model)
    for batch, config in batches:  # the last prompt's fault is told before the first is decoded
        input_ids, attention_mask = _encode(session, batch, image)
        _check_room(int(attention_mask.sum(1).max()), config, backbone)
        _check_inputs(backbone, config, input_ids, attention_mask, None)
    session.announce()
    if stream:
        _stream(session, prompts, configs, image)
        return
    for batch, config in batches:
        config.return_trace = trace
        answers = _decode(session, batch, config, image)
        lines = [json.dumps(answer, ensure_ascii=False) if json_lines else answer["text"] for answer in answers]
        print("\n".join(lines), flush=True)
        if verbose:
            print("\n".join(map(_summary, answers)), file=sys.stderr, flush=True)


def _summary(answer: dict[str, Any]) -> str:
    return f"{answer['tokens']} tokens in {answer['steps']} forward passes"


def _encode(session: Session, prompts: Sequence[str], image: Path | None) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, P) of prompts, each of them about the picture if there is one."""
    if image is None:
        return encode_prompts(session.tokenizer, prompts)
    return session.tokenizer.encode_with_pictures(prompts, [image] * len(prompts))


def _length_without_preset(session: Session, prompts: Sequence[str], image: Path | None) -> dict[str, Any]:
    """The generation length where neither option nor preset says one: the checkpoint's own, or what fits."""
    longest = int(_encode(session, prompts, image)[1].sum(1).max())
    room = backbone_of(session.model).max_length - longest
    own = getattr(getattr(session.model, "generation_config", None), "max_new_tokens", None)
    return {"max_new_tokens": max(1, min(own or GenerationConfig().max_new_tokens, room))}


def _check_room(longest: int, config: GenerationConfig, backbone: Backbone) -> None:
    room = backbone.max_length - longest
    if room < 1:
        raise BadInputError(f"prompt: {longest} tokens leave no room, the model's limit is {backbone.max_length}")
    if config.max_new_tokens > room:
        raise BadInputError(
            f"--max-new-tokens: after a prompt of {longest} tokens {room} fit, the model's limit is "
            f"{backbone.max_length}; got {config.max_new_tokens}"
        )


def _batches(
    prompts: Sequence[str], configs: Sequence[GenerationConfig], batch_size: int
) -> Iterator[tuple[list[str], GenerationConfig]]:
    """Consecutive prompts that share their settings, at most ``batch_size`` at a time."""
    pairs = zip(prompts, configs, strict=True)
    for _, group in groupby(pairs, key=lambda pair: pair[1].to_diff_dict()):
        members = list(group)
        for first in range(0, len(members), batch_size):
            yield [prompt for prompt, _ in members[first : first + batch_size]], members[first][1]


def _decode(
    session: Session, prompts: list[str], config: GenerationConfig, image: Path | None, streamer: Any = None
) -> list[dict[str, Any]]:
    """One record per prompt; ``tokens`` counts up to and including the first end token, ``steps`` forward passes."""
    input_ids, attention_mask = _encode(session, prompts, image)
    output = generate(session.model, input_ids, attention_mask, config, streamer=streamer)
    generated = output.sequences[:, input_ids.shape[1] :].cpu()
    texts, lengths = read_answers(session.tokenizer, generated, session.ends)
    records = []
    for i, prompt in enumerate(prompts):
        record = {
            "prompt": prompt,
            "text": texts[i],
            "steps": int(output.steps[i]),
            "tokens": lengths[i],
            "generated_ids": generated[i].tolist(),
            "accepted_at": output.accepted_at[i].tolist(),
        }
        if output.trace is not None:
            record["trace"] = [asdict(step) for step in output.trace[i]]
        records.append(record)
    return records


def _stream(session: Session, prompts: Sequence[str], configs: Sequence[GenerationConfig], image: Path | None) -> None:
    from rich.console import Console
    from rich.text import Text

    from .board import LiveDecode

    console = Console(highlight=False)
    for prompt, config in zip(prompts, configs, strict=True):
        console.print(Text(prompt, style="bold"))
        with LiveDecode(console, session.tokenizer, session.ends, config.max_new_tokens) as live:
            answer = _decode(session, [prompt], config, image, live)[0]
        console.print(Text(_summary(answer), style="dim"))
