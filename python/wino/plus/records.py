"""Trajectory records: one JSON object a line, streamed, validated, appended safely (docs/spec.md section 5)."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from ..files import AppendedLines, numbered_lines, utf8, written_atomically
from ..foreign import parse_json

_OLD_NAMES = {"wino_trajectory": "trajectory_accepted"}
_INTEGER_LISTS = ("prompt_ids", "generated_ids", "trajectory_accepted", "trajectory_proposed")
_INTEGERS = ("prompt_length", "decoding_steps")
_STRINGS = ("unique_id", "source", "generated_text")
_UNSAID = {"cache": "none"}  # settings of records that do not name them
_LARGEST = (1 << 63) - 1
_HOTTEST = 1e6
_OPTIONAL = ("trajectory_proposed", "source", "metadata", "prompt_length", "generated_text", "used_temperature")


@dataclass(frozen=True)
class Trajectory:
    """One decoded answer and the step at which each of its tokens was accepted.

    Attributes:
        unique_id: the item's key.
        source: the task, or the file the item came from.
        prompt_ids: P token ids.
        prompt_length: P.
        generated_ids: G final token ids.
        trajectory_accepted: G global steps at which the final token was accepted; -1: given, or never decoded.
        trajectory_proposed: G steps at which the final token was first its shadow row's argmax; None: not collected.
        correct: whether the task's grader took the answer.
        generated_text: the answer.
        decoding_steps: forward passes.
        used_temperature: of the attempt kept.
        metadata: what else is known; fields this class does not have land here.
    """

    unique_id: str
    source: str
    prompt_ids: list[int]
    prompt_length: int
    generated_ids: list[int]
    trajectory_accepted: list[int]
    trajectory_proposed: list[int] | None
    correct: bool
    generated_text: str
    decoding_steps: int
    used_temperature: float
    metadata: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line, without its newline."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":"))

    @property
    def identity(self) -> str:
        """What tells its item from all others: a hash of ``unique_id``, prompt and worked answer."""
        content = json.dumps([self.unique_id, self.prompt_ids, self.metadata.get("answer")])
        return hashlib.sha256(content.encode()).hexdigest()

    @classmethod
    def from_json(cls, line: str | bytes, where: str = "record") -> Trajectory:
        """Parse and validate a line.

        The authors' records load too: ``wino_trajectory`` is ``trajectory_accepted``, other unknown fields go to
        ``metadata``, and those that follow from others may be missing.

        Raises:
            ValueError: naming ``where``, the field, what was expected and what came.
        """
        values = parse_json(line, where)
        if not isinstance(values, dict):
            raise ValueError(f"{where}: expected an object, got {_shown(values)}")
        for old, name in _OLD_NAMES.items():
            if old in values and name in values:
                _fail(where, name, f"no {old} beside it", values[old])
        values = {_OLD_NAMES.get(name, name): value for name, value in values.items()}
        _fill(values)
        own = {f.name for f in fields(cls)}
        for name in own:
            if name not in values:
                _fail(where, name, "a value", "nothing")
        if not isinstance(values["metadata"], dict):
            _fail(where, "metadata", "an object", values["metadata"])
        extra = {name: values.pop(name) for name in list(values) if name not in own}
        values["metadata"] = {**extra, **values["metadata"]}
        _check(where, values)
        return cls(**values)


def _fill(values: dict[str, Any]) -> None:
    prompt, generated = values.get("prompt_ids"), values.get("trajectory_accepted")
    defaults: dict[str, Any] = {"trajectory_proposed": None, "source": "", "metadata": {}, "generated_text": ""}
    defaults["used_temperature"] = 0.0
    if isinstance(prompt, list):
        defaults["prompt_length"] = len(prompt)
    if isinstance(generated, list) and all(isinstance(step, int) for step in generated):
        defaults["decoding_steps"] = max(generated, default=-1) + 1
    for name, value in defaults.items():
        values.setdefault(name, value)
    if isinstance(values.get("unique_id"), int):
        values["unique_id"] = str(values["unique_id"])


def _check(where: str, values: dict[str, Any]) -> None:
    for name in _STRINGS:
        if not isinstance(values[name], str):
            _fail(where, name, "a string", values[name])
    for name in _INTEGERS:
        if not _is_integer(values[name]) or not 0 <= values[name] <= _LARGEST:
            _fail(where, name, "an integer >= 0", values[name])
    if not isinstance(values["correct"], bool):
        _fail(where, "correct", "true or false", values["correct"])
    temperature = values["used_temperature"]
    if not isinstance(temperature, int | float) or isinstance(temperature, bool) or not 0 <= temperature <= _HOTTEST:
        _fail(where, "used_temperature", "a number >= 0", temperature)
    for name in _INTEGER_LISTS:
        least = -1 if name.startswith("trajectory") else 0
        given = values[name]
        if name == "trajectory_proposed" and given is None:
            continue
        if not isinstance(given, list) or not given or not all(_is_integer(i) and i >= least for i in given):
            _fail(where, name, f"a list of integers >= {least}", given)
        if max(given) > _LARGEST:
            _fail(where, name, "integers of 63 bits", max(given))
    block = values["metadata"].get("block_length")
    if block is not None and not (_is_integer(block) and 0 < block <= _LARGEST):
        _fail(where, "metadata.block_length", "an integer >= 1", block)
    if values["prompt_length"] != len(values["prompt_ids"]):
        _fail(where, "prompt_length", f"{len(values['prompt_ids'])}, the number of prompt_ids", values["prompt_length"])
    for name in ("trajectory_accepted", "trajectory_proposed"):
        if values[name] is not None and len(values[name]) != len(values["generated_ids"]):
            _fail(where, name, f"{len(values['generated_ids'])} steps, one for each of generated_ids", values[name])
    if max(values["trajectory_accepted"]) >= values["decoding_steps"]:
        expected = f"more than {max(values['trajectory_accepted'])}, the last accepted step"
        _fail(where, "decoding_steps", expected, values["decoding_steps"])


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _fail(where: str, name: str, expected: str, got: Any) -> NoReturn:
    raise ValueError(f"{where}: field {name}: expected {expected}, got {_shown(got)}")


def _shown(value: Any) -> str:
    text = value if value == "nothing" else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_FIELDS = frozenset(field.name for field in fields(Trajectory))


def read_trajectories(path: Path) -> Iterator[Trajectory]:
    """Stream a file's records. ``ValueError`` names path, line number and field of the first that is not valid."""
    with open(path, "rb") as file:
        for where, line in numbered_lines(file, path):
            if line.strip():
                yield _parsed(line, where)


def whole_records(path: Path) -> Iterator[Trajectory]:
    """:func:`read_trajectories` of a file that a process may be writing: a last line without its end is left alone."""
    with open(path, "rb") as file:
        for where, line in numbered_lines(file, path, torn=False):
            if line.strip():
                yield _parsed(line, where)


def _parsed(line: bytes, where: str) -> Trajectory:
    try:
        text = utf8(line)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return Trajectory.from_json(text, where)


def randomised(trajectory: Trajectory, seed: int) -> Trajectory:
    """The ablation: the same tokens, block order and number per step, but which are accepted when is drawn at random.

    Drawn within each block of ``metadata["block_length"]`` (the whole answer without it).
    """
    accepted = list(trajectory.trajectory_accepted)
    block = trajectory.metadata.get("block_length") or len(accepted)
    rng = random.Random(f"{seed}/{trajectory.unique_id}")
    for start in range(0, len(accepted), block):
        places = [i for i in range(start, min(start + block, len(accepted))) if accepted[i] >= 0]
        steps = [accepted[i] for i in places]
        rng.shuffle(steps)
        for place, step in zip(places, steps, strict=True):
            accepted[place] = step
    metadata = {**trajectory.metadata, "trajectory_mode": "random"}
    return replace(trajectory, trajectory_accepted=accepted, trajectory_proposed=None, metadata=metadata)


def filter_best(
    path: Path,
    *,
    allow_incorrect: bool = False,
    max_prompt_length: int | None = None,
    dedupe_key: str | None = None,
    keep_step_ratio: float = 1.0,
) -> Iterator[Trajectory]:
    """The correct records of a file, the best of each item, the easy ones first.

    Better and easier is, in this order: the lower temperature, the fewer steps, the earlier place in the file. A few
    numbers per item are kept in memory, and what is kept is read again.

    Args:
        allow_incorrect: keep records that are not correct too; a correct one of the same item is better.
        max_prompt_length: leave out records with a longer prompt.
        dedupe_key: the field, of the record or its metadata, of whose values each is kept once; None: its identity,
            that is ``unique_id``, prompt and answer.
        keep_step_ratio: keep records, in that order, while their steps come to at most this share of all steps.

    Raises:
        ValueError: a record is not valid or has no field ``dedupe_key``; ``keep_step_ratio`` is not in (0, 1].
    """
    if not 0 < keep_step_ratio <= 1:
        raise ValueError(f"keep_step_ratio: expected a number in (0, 1], got {keep_step_ratio!r}")
    best: dict[str, tuple[bool, float, int, int, int, int]] = {}
    with open(path, "rb") as file:
        start = 0
        for number, (where, line) in enumerate(numbered_lines(file, path)):
            start, at = file.tell(), start
            if not line.strip():
                continue
            record = _parsed(line, where)
            if not (record.correct or allow_incorrect):
                continue
            if max_prompt_length is not None and record.prompt_length > max_prompt_length:
                continue
            steps = max(record.trajectory_accepted) + 1
            rank = (not record.correct, record.used_temperature, record.decoding_steps, number, at, steps)
            key = record.identity if dedupe_key is None else _value_of(record, dedupe_key, where)
            best[key] = min(best.get(key, rank), rank)
        order = sorted(best.values(), key=lambda rank: rank[1:])
        left = int(keep_step_ratio * sum(rank[-1] for rank in order))
        for *_, at, steps in order:
            left -= steps
            if left < 0:
                break
            file.seek(at)
            where, line = next(numbered_lines(file, path))
            yield _parsed(line, where)


def _value_of(record: Trajectory, name: str, where: str) -> str:
    found = getattr(record, name) if name in _FIELDS else record.metadata.get(name)
    if found is None:
        raise ValueError(f"{where}: dedupe_key: the record has no field {name!r}")
    return json.dumps(found, sort_keys=True)


def write_trajectories(path: Path, records: Iterable[Trajectory]) -> int:
    """Stream records into ``path``, which appears whole or not at all; returns how many."""
    count = 0
    with written_atomically(path) as file:
        for record in records:
            file.write((record.to_json() + "\n").encode())
            count += 1
    return count


def merge_files(paths: Iterable[Path]) -> Iterator[Trajectory]:
    """All records of all files in turn, one per item (the first). Two items of one ``unique_id`` are both kept."""
    seen: set[str] = set()
    for path in paths:
        for record in read_trajectories(path):
            if record.identity not in seen:
                seen.add(record.identity)
                yield record


class RecordWriter(AbstractContextManager["RecordWriter"]):
    """Appends records to a file and knows what is in it; a context manager (:class:`wino.files.AppendedLines`).

    Attributes:
        done: the ``unique_id`` of every record in the file.

    Raises:
        ValueError: another process writes the file, or a record in it is not valid or was made with other ``settings``
            (named).
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._file = AppendedLines(path)
        try:
            self.done = checked_ids(path, settings)
        except BaseException as error:
            self._file.__exit__(type(error), error, None)
            raise

    def write(self, records: Iterable[Trajectory]) -> None:
        """Append records that are not yet in the file."""
        fresh = [record for record in records if record.unique_id not in self.done]
        try:
            self._file.write([(record.to_json() + "\n").encode() for record in fresh])
        finally:
            self.done.update(record.unique_id for record in fresh[: self._file.kept])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)


def checked_ids(path: Path, settings: dict[str, Any]) -> set[str]:
    """The ``unique_id`` of every whole record in a file that a process may be writing; empty without the file.

    Raises:
        ValueError: a record is not valid or was made with other ``settings`` (named).
    """
    ids: set[str] = set()
    if path.exists():
        for number, record in enumerate(whole_records(path), 1):
            for name, expected in settings.items():
                got = record.metadata.get(name, _UNSAID.get(name))
                if got != expected:
                    raise ValueError(f"{path}, record {number} was made with {name} {got!r}, this run has {expected!r}")
            ids.add(record.unique_id)
    return ids
