"""Rows of a published data set: JSON lines, CSV, Parquet, or from the hub through ``datasets``."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..files import LONGEST_LINE, numbered_lines, utf8

_HUB = "hf:"
_PARQUET_ROWS = 64  # held at a time: each may have pictures

Row = dict[str, Any]
Read = Callable[[], Row]


def read_rows(
    path: Path, needed: Sequence[str], aliases: Mapping[str, str] = MappingProxyType({}), otherwise: str = ""
) -> Iterator[tuple[str, Read]]:
    """(where it stands, what reads it) of each row of a file, so that one bad row does not hide those behind it.

    What reads a row raises ``ValueError`` saying what is wrong with it: that it cannot be read (not UTF-8 or JSON, a
    cell too many), lacks one of the columns ``needed``, or has null or an empty text there.

    Args:
        path: ``*.jsonl``, ``*.csv`` or ``*.parquet``; or ``hf:owner/name/split`` or ``hf:owner/name/config/split``.
        aliases: other names of columns -> the names they get.
        otherwise: the suffix that a file without one of these counts as; "": it is refused.

    Raises:
        ValueError: another kind of file, or one that cannot be read as a whole.
    """
    for where, read in _rows(path, otherwise):
        yield where, partial(_checked, read, needed, aliases)


def _checked(read: Read, needed: Sequence[str], aliases: Mapping[str, str]) -> Row:
    row = {aliases.get(name, name): value for name, value in read().items()}
    missing = [name for name in needed if name not in row]
    if missing:
        found = ", ".join(map(str, row)) or "none"
        raise ValueError(f"expected the columns {', '.join(needed)}, got {found}")
    for name in needed:
        if row[name] is None:
            raise ValueError(f"column {name}: expected a value, got null")
        if isinstance(row[name], str) and not row[name].strip():
            raise ValueError(f"column {name}: expected a value, got an empty text")
    return row


def _rows(path: Path, otherwise: str) -> Iterator[tuple[str, Read]]:
    if str(path).startswith(_HUB):
        return _of_hub(str(path).removeprefix(_HUB))
    readers = {".jsonl": _of_json_lines, ".json": _of_json_lines, ".csv": _of_csv, ".parquet": _of_parquet}
    reader = readers.get(path.suffix.lower()) or readers.get(otherwise)
    if reader is None:
        raise ValueError(f"{path}: expected a .jsonl, .csv or .parquet file or hf:owner/name/split")
    return reader(path)


def _of_json_lines(path: Path) -> Iterator[tuple[str, Read]]:
    with open(path, "rb") as file:
        for where, line in numbered_lines(file, path):
            if line.strip():
                yield where, partial(_json_row, line)


def _json_row(line: bytes) -> Row:
    text = utf8(line)
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON, got {text[:80]}") from error
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {text[:80]}")
    return row


def _of_csv(path: Path) -> Iterator[tuple[str, Read]]:
    # The module's own limit of 128 KiB a cell is less than a picture in base64 has; it can only be set for all.
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        header: list[str] | None = None
        while True:
            where = f"{path}, line {reader.line_num + 1}"
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if header is None:
                    raise ValueError(f"{where}: not CSV ({error})") from error
                yield where, partial(_not_csv, str(error))
                continue
            if header is None:
                header = cells
            elif cells:
                yield where, partial(_csv_row, header, cells)


def _not_csv(reason: str) -> Row:
    raise ValueError(f"not CSV ({reason})")


def _csv_row(header: list[str], cells: list[str]) -> Row:
    for cell in cells:
        utf8(cell.encode("utf-8", "surrogateescape"))
    if len(cells) > len(header):
        raise ValueError(f"expected {len(header)} cells, as many as the columns of the first line, got {len(cells)}")
    return dict(zip(header, cells + [None] * (len(header) - len(cells)), strict=True))


def _of_parquet(path: Path) -> Iterator[tuple[str, Read]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ValueError(f"{path}: Parquet needs pip install 'wino-kernels[eval]'") from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_PARQUET_ROWS):
                for place in range(batch.num_rows):
                    number += 1
                    yield f"{path}, row {number}", partial(_parquet_row, batch, place)
    except ArrowException as error:
        raise ValueError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error


def _parquet_row(batch: Any, place: int) -> Row:
    (row,) = batch.slice(place, 1).to_pylist()
    return dict(row)


def _of_hub(name: str) -> Iterator[tuple[str, Read]]:
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
    for number in range(len(found)):
        yield f"hf:{name}, row {number + 1}", partial(_hub_row, found, number)


def _hub_row(found: Any, number: int) -> Row:
    try:
        return dict(found[number])
    except Exception as error:  # its decoders of pictures raise what they like
        raise ValueError(f"cannot be read ({error})") from error
