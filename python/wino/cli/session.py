"""What the commands share: the loaded model, the settings of a decode, files."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..files import numbered_lines, utf8
from .errors import BadInputError

SETTINGS = (
    "decoder",
    "max_new_tokens",
    "block_length",
    "threshold",
    "threshold_back",
    "accept_fraction",
    "min_accept",
    "max_accept",
    "verify_last",
    "steps",
    "answer_start",
    "remasking",
    "cfg_scale",
    "temperature",
    "seed",
    "stop_at_eos",
    "cache",
    "cache_refresh",
)
"""The options that are fields of :class:`wino.GenerationConfig`."""

Presets = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Session:
    """A model ready to decode, its tokenizer, and the settings chosen for it: task -> decoder -> settings."""

    name: str
    model: Any
    tokenizer: Any
    presets: Presets

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Ids of the tokens that end an answer."""
        from ..models.ends import end_token_ids

        return end_token_ids(self.model, self.tokenizer)

    def announce(self) -> None:
        """Say on stderr where the model decodes; called once everything is checked, before the first pass."""
        from ..device import describe_placement

        print(f"{self.name} on {describe_placement(self.model)}", file=sys.stderr)


def chosen_settings(parameters: dict[str, Any]) -> dict[str, Any]:
    """The decoding options that were given on the command line, checked as far as each can be checked alone."""
    from ..config import USED_BY, GenerationConfig

    settings = {name: parameters[name] for name in SETTINGS if parameters.get(name) is not None}
    relative = () if "max_new_tokens" in settings else ("block_length", "steps")
    alone = {name: value for name, value in settings.items() if name not in relative}
    # Of decoders that will be compared, each takes its own.
    decoders = (
        [settings["decoder"]] if "decoder" in settings else ["wino", *(USED_BY[n][0] for n in alone if n in USED_BY)]
    )
    for decoder in dict.fromkeys(decoders):
        own = {n: v for n, v in alone.items() if "decoder" in settings or decoder in USED_BY.get(n, (decoder,))}
        GenerationConfig(**{**own, "decoder": decoder})
    return settings


def numbers_of(option: str, text: str | None) -> list[float]:
    """The numbers of "0.5,0.7", the value of ``option``."""
    try:
        return [] if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise BadInputError(f"{option}: expected numbers such as 0.5,0.7, got {text!r}") from None


def one_of(option: str, values: list[Any]) -> Any:
    """The only value of an option that may be repeated, None without one."""
    if len(values) > 1:
        raise BadInputError(f"{option}: several values need --out, the folder of the curve")
    return values[0] if values else None


def open_session(name: str, device: str = "auto", *, pictures: bool = False) -> Session:
    """Load the model called ``name`` with its presets; a status line says so on a terminal.

    With ``pictures``: a MMaDA with its image tokenizer.
    """
    if pictures:
        require("multimodal", "PIL", "pycocoevalcap")
    with status(f"loading {name} ..."):
        import transformers

        import wino

        from ..tasks.presets import load_presets

        transformers.utils.logging.set_verbosity_error()
        load: Any = importlib.import_module("wino.multimodal").load if pictures else wino.load
        model, tokenizer = load(name, device=device)
        presets = load_presets(Path(str(model.config.name_or_path)))
    return Session(name, model, tokenizer, presets)


@contextmanager
def status(message: str) -> Iterator[None]:
    """A spinner on stderr while something takes seconds, if a person is looking."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(message):
        yield


def text_lines(path: str) -> Iterator[tuple[str, str]]:
    """("name, line 3", the line) of a UTF-8 text file, or of standard input for "-"."""
    with nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb") as file:
        for where, line in numbered_lines(file, "standard input" if path == "-" else path):
            try:
                yield where, utf8(line)
            except ValueError as error:
                raise BadInputError(f"{where}: {error}") from error


def require(extra: str, *modules: str) -> None:
    """Say what to install if one of ``modules``, which the package's ``extra`` brings, is missing."""
    for name in modules:
        if importlib.util.find_spec(name) is None:
            raise BadInputError(f"{name} is not installed: pip install 'wino-kernels[{extra}]'")


def check_writable(path: Path) -> None:
    """Refuse an output file that could not be written, before the work is done rather than after."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise BadInputError(f"{path}: expected a file name in an existing folder that can be written to")
