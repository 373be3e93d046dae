"""Rows of compiled kernels that need not be compiled again: each carries a stamp of its sources and of its numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from typing import Any

Row = dict[str, Any]
_LENGTH = 16


def fingerprint(*parts: object) -> str:
    """Of everything that a row's numbers follow from."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:_LENGTH]


def stamp(source: str, rows: Iterable[Row], names: Collection[str]) -> str:
    """What the ``rows`` that come from one source carry: its fingerprint, and one of their values of ``names``."""
    values = {json.dumps({name: row[name] for name in names if name in row}, sort_keys=True) for row in rows}
    return f"{source}-{fingerprint(*sorted(values))[:8]}"


def known(rows: Iterable[Row], names: Collection[str]) -> dict[str, list[Row]]:
    """``rows`` by the fingerprint of their source; those that were changed or are not all there are left out."""
    together: dict[str, list[Row]] = {}
    for row in rows:
        together.setdefault(str(row.get("source")), []).append(row)
    found = {carried[:_LENGTH]: (carried, own) for carried, own in together.items()}
    return {source: own for source, (carried, own) in found.items() if stamp(source, own, names) == carried}
