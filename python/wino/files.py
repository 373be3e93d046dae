"""Files that are either as they were or complete, that one process writes at a time, and that are read line by line."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import socket
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, BinaryIO

#: Bytes of one line of a text file; a longer one is refused, so that no file fills the memory before it is looked at.
LONGEST_LINE = 1 << 28
_MARK = b"\xef\xbb\xbf"
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` (text as UTF-8) so that an interruption leaves either the old file or the new one."""
    with written_atomically(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def written_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which becomes ``path`` when the block ends, and nothing if it ends in an exception."""
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def numbered_lines(file: BinaryIO, name: str | Path, *, torn: bool = True) -> Iterator[tuple[str, bytes]]:
    r"""("name, line 3", the line without its end) of a text file, with or without a byte order mark.

    A line ends at ``\n`` or ``\r\n`` alone: U+2028, U+0085, a form feed and a lone ``\r`` are content.

    Args:
        torn: whether a last line without its end counts; a process may still be writing it.

    Raises:
        ValueError: a line of more than ``LONGEST_LINE`` bytes.
    """
    for number in itertools.count(1):
        line = file.readline(LONGEST_LINE + 1)
        if not line or not (torn or line.endswith(b"\n")):
            return
        where = f"{name}, line {number}"
        if len(line) > LONGEST_LINE:
            raise ValueError(f"{where}: expected at most {LONGEST_LINE} bytes a line")
        line = line.removeprefix(_MARK) if number == 1 else line
        yield where, line.removesuffix(b"\n").removesuffix(b"\r") if line.endswith(b"\n") else line


def utf8(line: bytes) -> str:
    """``line`` as text. Raises ``ValueError`` naming the first byte that is not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 text, got the byte 0x{line[error.start]:02x}") from None


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold the output ``path``, a file or a folder, against other processes while the block runs.

    The lock is a ``flock`` on ``.NAME.lock`` beside the file, or ``.lock`` in the folder, which says who holds it. It
    ends with the process that holds it, however that dies; the lock file is removed with it, or taken over. It holds
    between the processes of one machine, and between machines where the file system carries it (NFS with its lock
    service, Lustre mounted with ``flock``). Where there are no locks at all a warning says so, and nothing is held.

    Args:
        path: need not exist; the folder it is in must.
        shared: several may hold it, but none beside one that holds it alone.
        wait: for another to let go, in place of refusing.

    Raises:
        ValueError: another process, or another thread, holds it; says which, where and since when.
    """
    lock = path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")
    file = _acquire(lock, path, shared, wait)
    try:
        yield
    finally:
        if file is not None:
            _release(file, lock)


def _acquire(lock: Path, path: Path, shared: bool, wait: bool) -> IO[str] | None:
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        file = open(lock, "a+", encoding="utf-8")  # noqa: SIM115 - closed by _release
        try:
            fcntl.flock(file, kind)
        except BlockingIOError:
            holder = _holder(file)
            file.close()
            raise ValueError(f"{path}: {holder} is writing it; wait for it or choose another output") from None
        except OSError as error:
            file.close()
            if error.errno not in _NO_LOCKS_HERE:
                raise
            lock.unlink(missing_ok=True)
            warnings.warn(f"{path}: no locks on this file system; see that no other process writes it", stacklevel=4)
            return None
        except BaseException:
            file.close()
            raise
        if _is_still(file, lock):
            break
        file.close()  # its holder removed it while we waited
    if not shared:
        file.truncate(0)
    about = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T %z")}
    file.write(json.dumps(about) + "\n")
    file.flush()
    return file


def _is_still(file: IO[str], lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(lock))
    except FileNotFoundError:
        return False


def _release(file: IO[str], lock: Path) -> None:
    """Remove the lock file where nobody else holds it, and let go."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_still(file, lock):
            lock.unlink()
    except BlockingIOError:
        pass  # others share it: the last of them removes it
    finally:
        file.close()


def _holder(file: IO[str]) -> str:
    """Who wrote into the lock file last and is still there; of those that share it, one."""
    try:
        file.seek(0)
        for line in reversed(file.readlines()):
            found = json.loads(line)
            if found["host"] != socket.gethostname() or _is_running(found["pid"]):
                return f"process {found['pid']} on {found['host']}, since {found['since']},"
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return "another process"


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class AppendedLines(AbstractContextManager["AppendedLines"]):
    """A file that grows by whole lines, and by one process at a time: a context manager.

    A last line without its newline, which a killed process leaves, is cut off once the file is locked. Every batch is
    on the disk when ``write`` returns; of one that fails or is interrupted the whole lines stay.

    Attributes:
        path: of the file.
        kept: how many of the last batch's lines are in the file.

    Raises:
        ValueError: another process has it open.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.kept = path, 0
        self._lock = locked(path)
        self._lock.__enter__()
        try:
            _cut_torn_line(path)
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by __exit__
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise

    def write(self, lines: Sequence[bytes]) -> None:
        """Append ``lines``, each with its newline."""
        start, data = self._file.seek(0, os.SEEK_END), b"".join(lines)
        try:
            while data:
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        finally:
            _cut_torn_line(self.path)
            grown = self._file.seek(0, os.SEEK_END) - start
            self.kept = sum(end <= grown for end in itertools.accumulate(map(len, lines)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._lock.__exit__(None, None, None)


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        kept = end
        while kept > 0:
            start = max(0, kept - 65536)
            file.seek(start)
            newline = file.read(kept - start).rfind(b"\n")
            kept = start + newline + 1 if newline >= 0 else start
            if newline >= 0:
                break
        if kept != end:
            file.truncate(kept)
