"""Rows of a published data set: JSON lines, CSV, Parquet, or from the hub through ``datasets``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .base import read_utf8

_HUB = "hf:"


def read_rows(
    path: Path, needed: Sequence[str], aliases: Mapping[str, str] = MappingProxyType({})
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, row) of a file, whose rows all have the columns ``needed``.

    Args:
        path: ``*.jsonl``, ``*.csv`` or ``*.parquet``; or ``hf:owner/name/split`` or ``hf:owner/name/config/split``.
        aliases: other names of columns -> the names they get.

    Raises:
        ValueError: another kind of file, or a row that cannot be read or lacks a column; names file and row.
    """
    for where, found_row in _rows(path):
        row = {aliases.get(name, name): value for name, value in found_row.items()}
        missing = [name for name in needed if name not in row or row[name] is None]
        if missing:
            found = ", ".join(map(str, row)) or "none"
            raise ValueError(f"{where}: expected the columns {', '.join(needed)}, got {found}")
        yield where, row


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if str(path).startswith(_HUB):
        return _of_hub(str(path).removeprefix(_HUB))
    readers = {".jsonl": _of_json_lines, ".json": _of_json_lines, ".csv": _of_csv, ".parquet": _of_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: expected a .jsonl, .csv or .parquet file or hf:owner/name/split")
    return reader(path)


def _of_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(read_utf8(path).splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: not JSON, got {line[:80]}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: expected an object, got {line[:80]}")
            yield f"{path}, line {number}", row


def _of_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(read_utf8(path), newline=""))
    try:
        for row in reader:
            yield f"{path}, line {reader.line_num}", {name: value for name, value in row.items() if name is not None}
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not CSV ({error})") from error


def _of_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ValueError(f"{path}: Parquet needs pip install 'wino-kernels[eval]'") from error
    try:
        table = parquet.read_table(path)
    except ArrowException as error:
        raise ValueError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
    for number, row in enumerate(table.to_pylist(), 1):
        yield f"{path}, row {number}", row


def _of_hub(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    parts = name.split("/")
    if len(parts) not in (3, 4):
        raise ValueError(f"hf:{name}: expected hf:owner/name/split or hf:owner/name/config/split")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ValueError(f"hf:{name}: data from the hub need pip install 'wino-kernels[eval]'") from error
    try:
        found = load_dataset("/".join(parts[:2]), *parts[2:-1], split=parts[-1])
    except Exception as error:  # the hub client raises its own, HTTP and OS errors alike
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"hf:{name}: the hub did not deliver it ({reason})") from error
    for number, row in enumerate(found, 1):
        yield f"hf:{name}, row {number}", dict(row)
