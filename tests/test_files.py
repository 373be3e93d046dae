"""Outputs that one process writes at a time, and files that are whole."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from wino import files
from wino.files import AppendedLines, locked, numbered_lines, utf8, written_atomically

HOLD = """
import sys
from pathlib import Path
from wino.files import AppendedLines, locked
path = Path(sys.argv[1])
with (AppendedLines(path) if sys.argv[2] == "append" else locked(path, shared=sys.argv[2] == "shared")):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(path: Path, how: str = "alone") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_who_holds_it_and_a_dead_holder_does_not_block(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    process = holder(path)
    said = rf"{path}: process {process.pid} on \S+, since \d{{4}}-\d\d-\d\d .*, is writing it; wait for it or choose"
    with pytest.raises(ValueError, match=said), locked(path):
        pass
    with pytest.raises(ValueError, match=said), locked(path, shared=True):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / ".out.jsonl.lock").exists()
    with locked(path):
        assert re.search(rf'"pid": {os.getpid()}\b', (tmp_path / ".out.jsonl.lock").read_text())
    assert os.listdir(tmp_path) == []


def test_several_share_what_none_may_have_alone_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "out"
    process, other = holder(path, "shared"), holder(path, "shared")
    other.communicate()
    with pytest.raises(ValueError, match=f"process {process.pid}"), locked(path):
        pass
    process.communicate()
    with locked(path):
        pass
    assert os.listdir(tmp_path) == []


def test_a_folder_is_locked_inside(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert os.listdir(tmp_path) == [".lock"]
        with pytest.raises(ValueError, match=f"process {os.getpid()}"), locked(tmp_path):
            pass
    assert os.listdir(tmp_path) == []


def test_whoever_waits_gets_it_one_after_the_other(tmp_path: Path) -> None:
    """The lock file is removed by each: none may be left holding one that is gone."""
    inside, most = 0, 0
    path = tmp_path / "out"

    def work() -> None:
        nonlocal inside, most
        for _ in range(50):
            with locked(path, wait=True):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and os.listdir(tmp_path) == []


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Any, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match=r"out: no locks on this file system"), locked(tmp_path / "out"):
        pass


def test_opening_never_cuts_the_line_that_another_process_is_writing(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    process = holder(path, "append")
    path.write_bytes(b"whole\nhalf a l")
    with pytest.raises(ValueError, match=f"process {process.pid}"):
        AppendedLines(path)
    assert path.read_bytes() == b"whole\nhalf a l"
    process.kill()
    process.wait()
    with AppendedLines(path) as lines:
        assert path.read_bytes() == b"whole\n"
        lines.write([b"next\n"])
    assert path.read_bytes() == b"whole\nnext\n" and os.listdir(tmp_path) == ["out.jsonl"]


def test_lines_end_at_newlines(monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"\xef\xbb\xbfa\rb\r\n\xc2\x85\x0c\n\nlast\r"
    expected = [("f, line 1", b"a\rb"), ("f, line 2", b"\xc2\x85\x0c"), ("f, line 3", b""), ("f, line 4", b"last\r")]
    assert list(numbered_lines(io.BytesIO(content), "f")) == expected
    assert list(numbered_lines(io.BytesIO(content), "f", torn=False)) == expected[:3]
    monkeypatch.setattr(files, "LONGEST_LINE", 3)
    assert len(list(numbered_lines(io.BytesIO(b"ab\nab\n"), "f"))) == 2
    with pytest.raises(ValueError, match="f, line 2: expected at most 3 bytes a line"):
        list(numbered_lines(io.BytesIO(b"ab\nabcd\n"), "f"))
    assert utf8("\u00e9".encode()) == "\u00e9"
    with pytest.raises(ValueError, match="expected UTF-8 text, got the byte 0xe9"):
        utf8(b"caf\xe9 au lait")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with written_atomically(path) as file:
        file.write(b"new")
        assert not path.exists()
    with pytest.raises(RuntimeError), written_atomically(path) as file:
        file.write(b"newer")
        raise RuntimeError
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["f"]
