"""JSON that somebody else wrote: read, or refused in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from wino.foreign import DEEPEST_JSON, parse_json, read_json


def nested(times: int, kind: str = "[]") -> str:
    return '{"a":' * times + "1" + "}" * times if kind == "{}" else "[" * times + "]" * times


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        (nested(DEEPEST_JSON + 1), "nested more than 64 times"),
        (nested(DEEPEST_JSON + 1, "{}"), "nested more than 64 times"),
        (nested(10**6), "nested more than 64 times"),
        ('{"a": ' * 10**6, "nested more than 64 times"),
        (b'{"a": 1,\n"b":\n"\xff"}', "line 3 has the byte 0xff, which is not UTF-8"),
        ("\0", "Expecting value"),
        ('"\\ud800"', "half of a surrogate pair"),
        ('{"\\uDC00": 1}', "half of a surrogate pair"),
        ('"\ud800"', "half of a surrogate pair"),
        ("NaN", "NaN is not a number of JSON"),
        ('{"a": -Infinity}', "-Infinity is not a number of JSON"),
        ("1e999", "the number 1e999 is too large"),
        ("9" * 5000, "Exceeds the limit"),
        ('{"n_layers": 2, "n_heads": 1, "n_layers": 3}', "the key 'n_layers' comes twice"),
    ],
)
def test_what_is_refused(content: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_json(content, "here")
    message = str(caught.value)
    assert message.startswith("here is not valid JSON: ") and reason in message
    assert "\n" not in message and len(message) < 300


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.5, None, True, "\u2028 \x85 \U0001f600"], "b": {"c": [[]] * 200}},
        json.loads(nested(DEEPEST_JSON)),
        json.loads(nested(DEEPEST_JSON, "{}")),
        [10**100, -(2**63), 1e300],
        "\\ud800 as text",
    ],
)
def test_what_is_read(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert parse_json(text, "here") == parse_json(b"\xef\xbb\xbf" + text.encode(), "here") == value


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(FileNotFoundError, match=r"a\.json: no such file"):
        read_json(path)
    path.write_text("[1, 2]")
    assert read_json(path, 6) == [1, 2]
    with pytest.raises(ValueError, match=r"a\.json: expected at most 5 bytes"):
        read_json(path, 5)
    path.unlink()
    os.mkfifo(path)  # nobody writes to it, so reading would never end
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_json(path)
