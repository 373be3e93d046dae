"""JSON that somebody else wrote: read within bounds, or refused in one line."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

#: Bytes of a JSON file that is read at once; the tokenizer.json of a vocabulary of 200,000 has 20 MB.
LARGEST_JSON = 1 << 26
#: Objects and arrays inside one another.
DEEPEST_JSON = 64
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


def read_json(path: Path, most: int = LARGEST_JSON) -> Any:
    """What a JSON file holds, whoever wrote it.

    Raises:
        FileNotFoundError: ``path`` is no file.
        ValueError: more than ``most`` bytes, or what :func:`parse_json` refuses.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{path}: expected at most {most} bytes of JSON")
    return parse_json(content, str(path))


def parse_json(content: str | bytes, where: str) -> Any:
    """The value of a JSON text, whoever wrote it: what comes back can be walked, printed and written again.

    Args:
        content: UTF-8, with or without a byte order mark.
        where: what the message of an error begins with.

    Raises:
        ValueError: not UTF-8 (names the line) or not JSON; or values nested more than ``DEEPEST_JSON`` times, a key
            twice in one object, NaN, an infinite number, a number of thousands of digits, half of a surrogate pair.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content.removeprefix("\ufeff")
        # Python's own limit differs between versions; both are below what would end the process.
        value = json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_constant, parse_float=_finite)
        if text.count("[") + text.count("{") > DEEPEST_JSON:
            _check_depth(value)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        reason = f"line {line} has the byte 0x{error.object[error.start]:02x}, which is not UTF-8"
    except UnicodeEncodeError:
        reason = "a text has half of a surrogate pair, which is no character"
    except RecursionError:
        reason = f"nested more than {DEEPEST_JSON} times"
    except ValueError as error:  # int() has a limit of digits, and a hint for programmers
        reason = str(error).split(" for integer string conversion")[0]
    raise ValueError(f"{where} is not valid JSON: {reason}")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r:.80} comes twice")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {digits:.80} is too large")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST_JSON):
        insides = (part.values() if isinstance(part, dict) else part for part in level)
        level = [part for inside in insides for part in inside if isinstance(part, dict | list)]
    if level:
        raise ValueError(f"nested more than {DEEPEST_JSON} times")
