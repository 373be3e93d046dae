"""Trajectory records: validation names line and field, files are appended and repaired, the filter keeps the best."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plus_records import make_record

from wino.plus.identity import tokenizer_fingerprint
from wino.plus.records import (
    RecordWriter,
    Trajectory,
    filter_best,
    merge_files,
    read_trajectories,
    write_trajectories,
)
from wino.pretrain import build_tokenizer


def fields_of(number: int = 0, **changes: object) -> dict[str, Any]:
    return {**json.loads(make_record(number).to_json()), **changes}


def test_a_record_survives_the_file() -> None:
    record = make_record(1, generated_text="a\nb é", metadata={"x": [1, {"y": None}]}, trajectory_proposed=[-1] * 12)
    line = record.to_json()
    assert "\n" not in line
    assert Trajectory.from_json(line) == record
    assert list(json.loads(line)) == [
        *("unique_id", "source", "prompt_ids", "prompt_length", "generated_ids", "trajectory_accepted"),
        *("trajectory_proposed", "correct", "generated_text", "decoding_steps", "used_temperature", "metadata"),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unique_id": None}, "field unique_id: expected a string, got null"),
        ({"prompt_ids": []}, r"field prompt_ids: expected a list of integers >= 0, got \[\]"),
        ({"prompt_ids": [1, -2]}, "field prompt_ids: expected a list of integers >= 0"),
        ({"prompt_ids": [1, True]}, "field prompt_ids: expected a list of integers >= 0"),
        ({"prompt_ids": "123"}, 'field prompt_ids: expected a list of integers >= 0, got "123"'),
        ({"prompt_length": 9}, "field prompt_length: expected 3, the number of prompt_ids, got 9"),
        ({"generated_ids": [1.5] * 12}, "field generated_ids: expected a list of integers"),
        (
            {"trajectory_accepted": [0] * 11},
            "field trajectory_accepted: expected 12 steps, one for each of",
        ),
        ({"trajectory_accepted": [-2] + [0] * 11}, "field trajectory_accepted: expected a list of integers >= -1"),
        ({"trajectory_proposed": [0]}, "field trajectory_proposed: expected 12 steps"),
        ({"correct": 1}, "field correct: expected true or false, got 1"),
        ({"decoding_steps": 2}, "field decoding_steps: expected more than 5, the last accepted step, got 2"),
        ({"used_temperature": -0.1}, "field used_temperature: expected a number >= 0, got -0.1"),
        ({"used_temperature": "0"}, 'field used_temperature: expected a number >= 0, got "0"'),
        ({"metadata": []}, r"field metadata: expected an object, got \[\]"),
    ],
)
def test_invalid_fields_are_named_with_their_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(f"{make_record(0).to_json()}\n{json.dumps(fields_of(**changes))}\n")
    records = read_trajectories(path)
    next(records)
    with pytest.raises(ValueError, match=f"^{path}, line 2: {message}"):
        next(records)


@pytest.mark.parametrize("name", ["unique_id", "prompt_ids", "generated_ids", "trajectory_accepted", "correct"])
def test_missing_fields_are_named(name: str) -> None:
    fields = fields_of()
    del fields[name]
    with pytest.raises(ValueError, match=f"record: field {name}: expected a value, got nothing"):
        Trajectory.from_json(json.dumps(fields))


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"a": 1', "\x00", "NaN"])
def test_lines_that_are_no_records(text: str) -> None:
    with pytest.raises(ValueError, match=r"^here(: expected an object| is not valid JSON)"):
        Trajectory.from_json(text, "here")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_any_value_of_any_field_is_a_record_or_a_named_error(value: Any) -> None:
    for name in fields_of():
        try:
            Trajectory.from_json(json.dumps(fields_of(**{name: value})), "here")
        except ValueError as error:
            assert str(error).startswith("here: field ")


def test_the_authors_records_load() -> None:
    fields = fields_of(3)
    fields["wino_trajectory"] = fields.pop("trajectory_accepted")
    for name in ("trajectory_proposed", "metadata", "prompt_length", "source"):
        del fields[name]
    fields |= {"question": "2 + 2", "unique_id": 17, "trajectory_mode": "random"}
    record = Trajectory.from_json(json.dumps(fields))
    assert record.trajectory_accepted == make_record(3).trajectory_accepted
    assert record.prompt_length == len(record.prompt_ids)
    assert record.unique_id == "17"
    assert record.metadata == {"question": "2 + 2", "trajectory_mode": "random"}


def test_filter_keeps_lowest_temperature_then_fewest_steps(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    same: dict[str, Any] = {"unique_id": "a", "prompt_ids": [5, 6], "prompt_length": 2}
    rows = [
        make_record(0, **same, used_temperature=0.2, decoding_steps=6),
        make_record(1, **same, used_temperature=0.1, decoding_steps=9),
        make_record(2, **same, used_temperature=0.1, decoding_steps=7),
        make_record(3, **same, used_temperature=0.1, decoding_steps=7),
        make_record(4, **same, used_temperature=0.0, decoding_steps=6, correct=False),
        make_record(5, unique_id="b", correct=False),
        make_record(6, unique_id="c"),
    ]
    write_trajectories(path, rows)
    assert list(filter_best(path)) == [rows[6], rows[2]]  # the easy one first
    assert list(filter_best(path, allow_incorrect=True)) == [rows[5], rows[6], rows[2]]
    assert list(filter_best(path, max_prompt_length=2)) == [rows[2]]
    assert list(filter_best(path, dedupe_key="source")) == [rows[6]]
    with pytest.raises(ValueError, match=r"t\.jsonl, line 1: dedupe_key: the record has no field 'level'"):
        list(filter_best(path, dedupe_key="level"))


def test_filter_keeps_a_share_of_the_steps(tmp_path: Path) -> None:
    """Of 4, 6, 6 and 8 steps those that fit into the share, easy ones first, up to the first that does not."""
    path = tmp_path / "t.jsonl"
    rows = [
        make_record(i, trajectory_accepted=[steps - 1] * 12, decoding_steps=steps, metadata={"level": i // 2})
        for i, steps in enumerate((8, 6, 4, 6))
    ]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(["", *(row.to_json() for row in rows)]).encode())
    easy = [rows[2], rows[1], rows[3], rows[0]]
    assert list(filter_best(path)) == easy
    for ratio, kept in ((1.0, 4), (0.99, 3), (16 / 24, 3), (15 / 24, 2), (0.2, 1), (0.1, 0)):
        assert list(filter_best(path, keep_step_ratio=ratio)) == easy[:kept]
    assert list(filter_best(path, dedupe_key="level")) == [rows[2], rows[1]]
    for ratio in (0.0, 1.1):
        with pytest.raises(ValueError, match=r"keep_step_ratio: expected a number in \(0, 1\]"):
            list(filter_best(path, keep_step_ratio=ratio))


def test_merging_keeps_each_key_once(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    write_trajectories(paths[0], [make_record(0), make_record(1)])
    write_trajectories(paths[1], [make_record(1), make_record(2)])
    assert [r.unique_id for r in merge_files(paths)] == ["item:0", "item:1", "item:2"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_trajectories(path, [make_record(0)])
    before = path.read_bytes()

    def failing() -> Iterator[Trajectory]:
        yield make_record(1)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_trajectories(path, failing())
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["t.jsonl"]


def test_the_writer_repairs_a_torn_last_line_wherever_it_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    whole = [make_record(0), make_record(1)]
    with RecordWriter(path, {}) as writer:
        writer.write(whole)
    data = path.read_bytes()
    last = data.index(b"\n") + 1
    for end in range(last, len(data)):
        path.write_bytes(data[:end])
        with RecordWriter(path, {}) as writer:
            assert writer.done == {"item:0"}
            writer.write([make_record(0), make_record(1)])
        assert path.read_bytes() == data


def test_the_writer_repairs_a_torn_line_longer_than_it_reads_at_once(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(make_record(0).to_json() + "\n" + "x" * 200_000)
    with RecordWriter(path, {}) as writer:
        assert writer.done == {"item:0"}
    path.write_text("y" * 200_000)
    with RecordWriter(path, {}) as writer:
        assert writer.done == set()
    assert path.read_bytes() == b""


def test_the_writer_refuses_a_file_of_other_settings(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_trajectories(path, [make_record(0, metadata={"threshold": 0.5})])
    with pytest.raises(ValueError, match=r"record 1 was made with threshold 0.5, this run has 0.6"):
        RecordWriter(path, {"threshold": 0.6})


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that does not fit is taken back, and the run can go on when there is room."""
    path = tmp_path / "t.jsonl"
    with RecordWriter(path, {}) as writer:
        writer.write([make_record(0)])
        before = path.read_bytes()

        class Full:
            def __init__(self, file: Any) -> None:
                self._file, self._room = file, 50

            def write(self, data: bytes) -> int:
                if not self._room:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
                written = self._file.write(data[: self._room])
                self._room -= written
                return written

            def __getattr__(self, name: str) -> Any:
                return getattr(self._file, name)

        real = writer._file._file
        monkeypatch.setattr(writer._file, "_file", Full(real))
        with pytest.raises(OSError, match="No space left"):
            writer.write([make_record(1)])
        assert path.read_bytes() == before
        assert writer.done == {"item:0"}
        monkeypatch.setattr(writer._file, "_file", real)
        writer.write([make_record(1)])
    assert [r.unique_id for r in read_trajectories(path)] == ["item:0", "item:1"]


def test_an_interrupted_write_keeps_its_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a batch goes to the disk: what was decoded is not thrown away, and not written twice."""
    path, records = tmp_path / "t.jsonl", [make_record(number) for number in range(3)]
    written = [(record.to_json() + "\n").encode() for record in records]

    def interrupted(number: int) -> None:
        raise KeyboardInterrupt

    with RecordWriter(path, {}) as writer:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "fsync", interrupted)
            writer.write(records[:2])
        assert path.read_bytes() == b"".join(written[:2]) and writer.done == {"item:0", "item:1"}
        writer.write(records)
    assert path.read_bytes() == b"".join(written)


def test_the_fingerprint_is_of_the_vocabulary() -> None:
    tokenizer = build_tokenizer()
    before = tokenizer_fingerprint(tokenizer)
    assert tokenizer_fingerprint(build_tokenizer()) == before
    tokenizer.add_tokens(["new"])
    assert tokenizer_fingerprint(tokenizer) != before
