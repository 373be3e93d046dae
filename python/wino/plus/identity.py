"""Which model and tokenizer something belongs to, so that trajectories, adapters and bases are never mixed up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files import write_atomically
from ..foreign import read_json
from .records import Trajectory

_FILE = "wino_plus.json"
_LARGEST_FILE = 1 << 16


@dataclass(frozen=True)
class Identity:
    """Of a base model: its name as given, its vocabulary, and hashes of its tokenizer and weights."""

    model: str
    vocab_size: int
    mask_token_id: int
    tokenizer: str
    weights: str


def identify(model: nn.Module, tokenizer: Any, name: str) -> Identity:
    config: Any = model.config
    return Identity(
        name, config.vocab_size, config.mask_token_id, tokenizer_fingerprint(tokenizer), weights_fingerprint(model)
    )


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A hash of the vocabulary: which id every token has."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0]))
    return hashlib.sha256(json.dumps(vocabulary, ensure_ascii=False).encode()).hexdigest()[:16]


def weights_fingerprint(model: nn.Module) -> str:
    """A hash of every parameter's name, shape and first 64 values in bfloat16, in whatever dtype it was loaded."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        first = parameter.detach().flatten()[:64].to("cpu", torch.bfloat16).view(torch.int16)
        digest.update(f"{name} {tuple(parameter.shape)} ".encode() + bytes(first.numpy().tobytes()))
    return digest.hexdigest()


def write_identity(identity: Identity, folder: Path) -> None:
    write_atomically(folder / _FILE, json.dumps(asdict(identity), indent=2) + "\n")


def is_trained_here(folder: Path) -> bool:
    """Whether ``folder`` says which base it belongs to, as the results of ``wino train`` do."""
    return (folder / _FILE).is_file()


def read_identity(folder: Path) -> Identity:
    """Raises ``ValueError`` if ``folder`` is not the result of a training stage."""
    try:
        found = Identity(**read_json(folder / _FILE, _LARGEST_FILE))
        for field in fields(Identity):
            kind: type = int if field.name in ("vocab_size", "mask_token_id") else str
            if type(getattr(found, field.name)) is not kind:
                raise ValueError(f"{field.name}: expected {kind.__name__}, got {getattr(found, field.name)!r:.80}")
        return found
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder}: expected the result of `wino train`, with {_FILE} ({error})") from None


def check_base(identity: Identity, model: nn.Module, tokenizer: Any, name: str) -> None:
    """Raises ``ValueError`` unless ``model`` is the base that ``identity`` names."""
    own = identify(model, tokenizer, name)
    for field in ("vocab_size", "mask_token_id", "tokenizer", "weights"):
        if getattr(own, field) != getattr(identity, field):
            expected, got = getattr(identity, field), getattr(own, field)
            raise ValueError(
                f"base: the adapter was trained on {identity.model} ({field} {expected}), got {name} ({got})"
            )


def check_records(records: Iterable[Trajectory], identity: Identity, path: Path) -> Iterator[Trajectory]:
    """Pass ``records`` on; ``ValueError`` at the first that another model or tokenizer wrote, or that does not fit.

    Records without metadata (the authors' collector) are only checked for token ids inside the vocabulary.
    """
    known = {
        "vocab_size": identity.vocab_size,
        "mask_token_id": identity.mask_token_id,
        "tokenizer_fingerprint": identity.tokenizer,
    }
    for number, record in enumerate(records, 1):
        where = f"{path}: record {number} ({record.unique_id})"
        for field, expected in known.items():
            got = record.metadata.get(field, expected)
            if got != expected:
                raise ValueError(f"{where}: {field} {got!r}, but {identity.model} has {expected!r}")
        largest = max((*record.prompt_ids, *record.generated_ids))
        if largest >= identity.vocab_size:
            raise ValueError(f"{where}: token id {largest}, but {identity.model} has {identity.vocab_size} tokens")
        yield record
