"""``wino bench``: how fast a model decodes here, by the published loop and by ours in each mode."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from ..files import write_atomically
from ..progress import ProgressReport
from .errors import BadInputError
from .report import print_rows
from .session import check_writable, open_session, status, text_lines

MODES: dict[str, dict[str, Any]] = {
    "exact": {},
    "prefix": {"cache": "prefix"},
    "dual": {"cache": "dual"},
    "compile": {"compile_step": True},
    "graph": {"cuda_graph": True},
    "dual+graph": {"cache": "dual", "cuda_graph": True},
    "compile+graph": {"compile_step": True, "cuda_graph": True},
}
"""Name -> settings of :class:`wino.GenerationConfig`."""

DTYPES = ("bfloat16", "float32", "float16")
_SETTINGS = ("max_new_tokens", "block_length", "threshold", "threshold_back")
_BUNDLED, _BUNDLED_TASK = "wino-tiny", "sum"
_RANDOM_VOCABULARY = 126464
_LEGEND = (
    "Times are medians of interleaved rounds, ratios are published / ours per sequence with their 95 % interval "
    "(of fewer than six rounds: the extremes). steps: forward passes a sequence; tok/fwd: answer tokens per forward; "
    "MiB: peak memory per sequence beyond the model; equal: generated tokens equal to the first row's; ms a step: the "
    "trunk, the head (the matrix product alone), scoring, everything else."
)


class Subject(NamedTuple):
    """A model, what it is called, and the prompts to decode with it: label, ids (B, P) and mask (B, P) or None."""

    model: Any
    name: str
    config: Any
    prompts: list[tuple[str, Any, Any]]


def integers(name: str, text: str) -> list[int]:
    """The numbers of ``1,4,16``."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise BadInputError(f"{name}: expected positive integers with commas between them, got {text!r}")
    return [int(part) for part in parts]


def chosen_modes(text: str) -> dict[str, dict[str, Any]]:
    names = text.split(",")
    for name in names:
        if name not in MODES:
            raise BadInputError(f"modes: expected some of {', '.join(MODES)} with commas between them, got {name!r}")
    return {name: MODES[name] for name in names}


def run_bench(
    parameters: dict[str, Any],
    *,
    model: str,
    trunk: str | None,
    vocabulary: int | None,
    dtype: str | None,
    device: str,
    batch: str,
    prompt: str | None,
    file: str | None,
    modes: str,
    rounds: int,
    published: bool,
    seed: int,
    json_file: Path | None,
) -> None:
    """Measure, print one table a workload, write the JSON file."""
    batches, chosen = integers("batch", batch), chosen_modes(modes)
    lengths = None if prompt is None else integers("prompt", prompt)
    if json_file is not None:
        check_writable(json_file)
    if dtype is not None and dtype not in DTYPES:
        raise BadInputError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    if trunk is None and vocabulary is not None:
        raise BadInputError("--vocab belongs to a random model: give --trunk too")
    if file is not None and (lengths is not None or trunk is not None):
        raise BadInputError("--file and " + ("--prompt" if lengths is not None else "--trunk") + " exclude each other")
    settings = {name: parameters[name] for name in _SETTINGS if parameters.get(name) is not None}
    if trunk is not None:
        from ..device import choose_device

        wanted = vocabulary or _RANDOM_VOCABULARY, dtype or "bfloat16", choose_device(device)
        subject = _random_subject(trunk, *wanted, settings, batches, lengths or [128], seed)
    else:
        subject = _loaded_subject(model, dtype, device, settings, batches, lengths, file, seed)
    _check_lengths(subject)

    from ..benchmark import Workload, calls, measure
    from ..device import describe_placement

    print(f"{subject.name} on {describe_placement(subject.model)}", file=sys.stderr)

    console, records = Console(highlight=False), []
    with ProgressReport(subject.name, len(subject.prompts) * calls(len(chosen), rounds, published)) as report:
        results = [
            (label, measure(workload, chosen, rounds=rounds, published=published, on_call=report.advance))
            for label, workload in _workloads(subject, Workload)
        ]
    for label, measured in results:
        console.print(f"{subject.name}: {label}", markup=False, soft_wrap=True)
        _print_tables(console, measured.figures)
        if measured.margin is not None:
            console.print(_equality(measured), style="dim", soft_wrap=not console.is_terminal)
        records += [{"workload": label, "margin": measured.margin, **row.row()} for row in measured.figures.values()]
    console.print(_LEGEND, style="dim", soft_wrap=not console.is_terminal)
    sys.stdout.flush()
    if json_file is not None:
        about = {"model": subject.name, "settings": subject.config.to_diff_dict(), "rounds": rounds, "modes": chosen}
        write_atomically(json_file, json.dumps(about | _machine() | {"results": records}, indent=1) + "\n")


def _workloads(subject: Subject, workload: Any) -> Iterator[tuple[str, Any]]:
    for label, input_ids, attention_mask in subject.prompts:
        yield label, workload(subject.model, input_ids, attention_mask, subject.config)


def _random_subject(
    trunk: str,
    vocabulary: int,
    dtype: str,
    device: Any,
    settings: dict[str, Any],
    batches: Sequence[int],
    lengths: Sequence[int],
    seed: int,
) -> Subject:
    with status(f"making a random model {trunk} ..."):
        import torch

        from ..benchmark import Trunk, peaked_model, random_prompts
        from ..config import GenerationConfig

        shape = Trunk.parse(trunk)
        config = GenerationConfig(**{"max_new_tokens": 128, "block_length": None, **settings})
        mask_id = min(vocabulary - 1, 126336)
        first = random_prompts(1, lengths[0], vocabulary, mask_id, seed)
        try:
            model = peaked_model(
                shape, vocabulary, first, config, dtype=getattr(torch, dtype), device=device, seed=seed
            ).model
        except RuntimeError as error:
            raise BadInputError(str(error)) from error
    return Subject(
        model,
        f"random {shape}, {vocabulary} tokens, {dtype}",
        config,
        [
            (f"batch {size}, prompt {length}", random_prompts(size, length, vocabulary, mask_id, seed), None)
            for size, length in itertools.product(batches, lengths)
        ],
    )


def _loaded_subject(
    name: str,
    dtype: str | None,
    device: str,
    settings: dict[str, Any],
    batches: Sequence[int],
    lengths: Sequence[int] | None,
    file: str | None,
    seed: int,
) -> Subject:
    session = open_session(name, device)

    import torch

    from ..benchmark import random_prompts
    from ..config import GenerationConfig
    from ..tasks import TASKS
    from ..tasks.evaluation import encode_prompts

    model = session.model if dtype is None else session.model.to(getattr(torch, dtype))
    if lengths is None and file is None and name == _BUNDLED:
        task = TASKS[_BUNDLED_TASK]
        preset = {"max_new_tokens": task.max_new_tokens, **session.presets.get(task.name, {}).get("wino", {})}
        if "max_new_tokens" in settings:
            preset.pop("block_length", None)
        config = GenerationConfig(**{**preset, **settings, "verify_last": False})
        items = task.items("heldout", seed)
        texts = [next(items).prompt for _ in range(max(batches))]
    else:
        config = GenerationConfig(**{"max_new_tokens": 128, **settings})
        texts = [] if file is None else [line for _, line in text_lines(file) if line.strip()]
        if file is not None and not texts:
            raise BadInputError(f"{file}: expected one prompt a line, got nothing")
    prompts: list[tuple[str, Any, Any]] = []
    if texts:
        for size in batches:
            ids, mask = encode_prompts(session.tokenizer, list(itertools.islice(itertools.cycle(texts), size)))
            prompts.append((f"batch {size}, prompt {ids.shape[1]}", ids, mask))
    else:
        vocabulary, mask_id = model.config.vocab_size, model.config.mask_token_id
        for size, length in itertools.product(batches, lengths or [128]):
            ids = _ids(random_prompts, size, length, vocabulary, mask_id, seed)
            prompts.append((f"batch {size}, prompt {length} of random tokens", ids, None))
    return Subject(model, name, config, prompts)


def _ids(make: Any, size: int, length: int, vocabulary: int, mask_id: int, seed: int) -> Any:
    """Random ids; where the mask id is a low one, ids above it."""
    if mask_id > vocabulary // 2:
        return make(size, length, vocabulary, mask_id, seed)
    return make(size, length, vocabulary - mask_id - 1, vocabulary, seed) + mask_id + 1


def _check_lengths(subject: Subject) -> None:
    longest = max(ids.shape[1] for _, ids, _ in subject.prompts) + subject.config.max_new_tokens
    limit = subject.model.config.max_sequence_length
    if longest > limit:
        raise BadInputError(f"prompt: with the generation {longest} positions are needed, the model's limit is {limit}")


def _print_tables(console: Console, figures: dict[str, Any]) -> None:
    """How fast each mode is, and below that where a step's time goes: each fits into 80 columns."""
    from ..benchmark import PHASES, PUBLISHED

    baseline = figures.get(PUBLISHED, next(iter(figures.values())))
    speed: list[tuple[str, ...]] = [("", "tok/s", "ratio", "95 %", "steps", "tok/fwd", "MiB", "equal")]
    times: list[tuple[str, ...]] = [("ms a step", "all", *PHASES)]
    for name, row in figures.items():
        found = row.times_faster_than(baseline)
        ratio, interval = f"{found.median:.2f}x", f"{found.low:.2f}-{found.high:.2f}"
        speed.append(
            (
                name,
                f"{row.tokens_per_second:.1f}",
                *(("", "") if row is baseline else (ratio, interval)),
                f"{row.steps:.1f}",
                f"{row.tokens_per_forward:.2f}",
                "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.1f}",
                f"{row.agreement:.1%}",
            )
        )
        parts = (row.milliseconds.get(phase) for phase in PHASES)
        shown = ("" if part is None else f"{part:.2f}" for part in parts)
        times.append((name, f"{row.milliseconds_per_step:.2f}", *shown))
    for rows in (speed, times):
        print_rows(console, rows, green=[name for name, row in figures.items() if row is not baseline])


def _equality(measured: Any) -> str:
    exact = measured.figures.get("exact")
    if exact is None:
        return f"margin of the published decode: {measured.margin:.1e}"
    if exact.agreement == 1.0:
        return "exact: the published loop's tokens"
    return (
        f"exact: {exact.agreement:.1%} of the published loop's tokens, which came as near as {measured.margin:.1e} to "
        "a tie or a threshold (nearer than rounding, two right decoders may differ)"
    )


def _machine() -> dict[str, Any]:
    import platform

    import torch

    from wino_kernels import __version__
    from wino_kernels.backends import available

    return {
        "torch": torch.__version__,
        "wino": __version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "backends": available(),
    }
