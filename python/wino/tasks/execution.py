"""Run a generated program against its tests in a process of its own, with limits.

What is limited: processor and wall time, memory, file size, open files; the working directory is a fresh one, the
environment empty, standard input empty, the session its own, so that everything it started dies with it. Where the
kernel lets an ordinary user have namespaces (``unshare``), it also has no network. What is *not* isolated: it runs as
the user, and may read files that the user may read. Run untrusted models in a container.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

_SECONDS = 10

# The limits are set here, not between fork and exec, where a process with threads may deadlock. Only what comes behind
# the tests knows what to say.
_HARNESS = """
import os as _os, resource as _resource, sys as _sys
def _limit(_seconds=int(_sys.argv[2])):
    for name, value in (
        ("CPU", _seconds + 1), ("AS", 1 << 30), ("FSIZE", 10 << 20), ("NOFILE", 64), ("CORE", 0), ("NPROC", 64)
    ):
        try:
            _resource.setrlimit(getattr(_resource, "RLIMIT_" + name), (value, value))
        except (ValueError, OSError):
            if name != "NPROC":  # counted over all of the user's processes
                raise
_limit()
def _say(_fd=int(_sys.argv[1]), _word=_os.read(0, 64), _write=_os.write, _exit=_os._exit):
    def say():
        _write(_fd, _word)
        _exit(0)
    return say
_done = _say()
_os.dup2(_os.open(_os.devnull, _os.O_RDONLY), 0)
_sys.argv = ["program"]
with open("program.py") as _file:
    _source = _file.read()
exec(compile(_source, "program.py", "exec"), {"__name__": "program"})
_done()
"""


def passes(program: str, seconds: float = _SECONDS) -> bool:
    """Whether ``program``, a candidate followed by its tests, runs to its very end without an exception.

    A program does not pass by leaving early or by printing: success is a random word, written to a private pipe behind
    the last statement. One that takes its own interpreter apart could find the word; a model's answer does not.
    """
    word = secrets.token_hex(16)
    reader, writer = os.pipe()
    with tempfile.TemporaryDirectory(prefix="wino-code-") as folder:
        (Path(folder) / "program.py").write_text(program, encoding="utf-8", errors="replace")
        command = [*_without_network(), sys.executable, "-I", "-S", "-c", _HARNESS, str(writer), str(int(seconds))]
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env={},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(writer,),
            )
        finally:
            os.close(writer)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(word.encode(), timeout=seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        os.set_blocking(reader, False)
        try:
            said = os.read(reader, 1024)
        except BlockingIOError:  # something it started still holds the pipe
            said = b""
        finally:
            os.close(reader)
    return said.decode(errors="replace") == word


@functools.cache
def _without_network() -> tuple[str, ...]:
    """The prefix of a command that takes network and process ids of others away; empty where that is not allowed."""
    tool = shutil.which("unshare")
    if tool is None:
        return ()
    prefix = (tool, "--user", "--map-current-user", "--net", "--pid", "--fork", "--kill-child")
    works = subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    return prefix if works else ()
