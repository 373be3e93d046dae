"""A process in new namespaces with limits that hold for all of its descendants together.

Its root holds what Python needs (``/usr`` and the libraries beside it, the interpreter's own folders, NumPy),
read-only, and one small ``/tmp`` in memory: no home, no other mount, no network, no process but its own. It runs as
nobody without a capability, a new privilege or an inherited file, on one core, with system calls that reach past this
filtered out. Total memory, processes and processor time are watched from outside; when it ends, everything in it ends.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from .guest.namespaces import DEVICES

_MEMORY = 1 << 30
_SCRATCH = 64 << 20
_INODES = 16384
_PROCESSES = 32
_TICK = 0.02
_PACKAGES = "/packages"
_GUEST = Path(__file__).parent
_START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from guest.main import main; main()"
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store", "/etc/ld.so.cache")


@dataclass(frozen=True)
class Means:
    """How programs are kept apart: by ``bubblewrap``, by our own ``namespaces``, or not at all (``nothing``)."""

    kind: Literal["bubblewrap", "namespaces", "nothing"]
    nobody: bool = False

    @property
    def sandboxed(self) -> bool:
        return self.kind != "nothing"


@functools.cache
def find_means() -> Means:
    """The isolation that this machine has, tried out. Raises ``ValueError`` naming what is missing."""
    faults = []
    for means in _possible():
        fault = _probe(means)
        if fault is None:
            return means
        faults.append(f"{means.kind}: {fault}")
    if not faults:
        faults.append(f"Linux on x86-64 or ARM64 is needed, this is {platform.system()} on {platform.machine()}")
    raise ValueError("programs that a model wrote cannot be isolated on this machine (" + "; ".join(faults) + ")")


def choose_means(unsandboxed: bool = False) -> Means:
    """:func:`find_means`; where that raises and ``unsandboxed`` allows it, nothing, with a warning."""
    try:
        return find_means()
    except ValueError as error:
        if not unsandboxed:
            raise ValueError(f"{error}; --allow-unsandboxed-code-execution runs them without") from None
        warnings.warn(f"{error}: they run as this user and can do what it can do", stacklevel=3)
        return Means("nothing")


def _possible() -> list[Means]:
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        return []
    own = Means("namespaces", os.geteuid() == 0 and _has_nobody())
    if shutil.which("bwrap") is None:
        return [own]
    wrapped = Means("bubblewrap", own.nobody)
    return [own, wrapped] if own.nobody else [wrapped, own]


def _has_nobody() -> bool:
    """Whether user 65534 is one of this (user) namespace's."""
    lines = [list(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return any(first <= 65534 < first + count for first, _, count in lines)


def _probe(means: Means) -> str | None:
    """What a sandbox says of itself from the inside: ``None``, or what is missing."""
    hidden = [str(Path.home()), *map(str, sorted(Path("/home").glob("*"))), "/etc/shadow", "/etc/passwd", "/sys"]
    shown = [path for path, _ in _view().folders]
    hidden = [path for path in hidden if not any(inner.startswith(path.rstrip("/") + "/") for inner in shown)]
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as verdict:
        job = json.dumps({"hidden": [path for path in hidden if path != "/"], "bytes": _SCRATCH})
        try:
            with (
                tempfile.TemporaryFile() as complaint,
                Sandbox(means, "probe", job, 10, 0, None, writer, complaint) as sandbox,
            ):
                os.close(writer)
                said = watch(verdict, [sandbox], 10)
                sandbox.end()
                complaint.seek(0)
                words = complaint.read().decode(errors="replace").strip().splitlines()
        except OSError as error:
            return str(error)
    if said == b"[]":
        return None
    if said:
        return "without " + ", ".join(json.loads(said))
    return words[-1] if words else "it did not start"


@dataclass(frozen=True)
class _View:
    """What of this machine is shown: (path here, path there), and symbolic links (path, target)."""

    interpreter: str
    folders: list[tuple[str, str]]
    links: list[tuple[str, str]]
    packages: str


@functools.cache
def _view() -> _View:
    interpreter = os.path.realpath(sys.executable)
    look = "import json, sys; print(json.dumps([sys.base_prefix, *sys.path]))"
    said = subprocess.run(
        [interpreter, "-I", "-S", "-c", look], env=_ENVIRONMENT, capture_output=True, check=True, text=True
    ).stdout
    prefix, *paths = json.loads(said)
    folders: list[tuple[str, str]] = []
    links = []
    for path in _SYSTEM:
        if os.path.islink(path):
            links.append((path, os.readlink(path)))
        elif os.path.exists(path):
            folders.append((path, path))
    with_links = [path for path in paths if os.path.exists(path)]
    library = os.path.join(prefix, "lib")
    if any(path.startswith(library + "/") for path in with_links):
        with_links.append(library)
    for path in sorted({interpreter, *with_links}):
        if not any(path == seen or path.startswith(seen + "/") for _, seen in folders):
            folders.append((os.path.realpath(path), path))
    packages = ""
    spec = importlib.util.find_spec("numpy")
    if spec is not None and spec.origin is not None:
        home = Path(spec.origin).resolve().parent
        for place in (home, home.with_name("numpy.libs")):
            if place.is_dir():
                folders.append((str(place), f"{_PACKAGES}/{place.name}"))
                packages = _PACKAGES
    return _View(interpreter, folders, links, packages)


class Sandbox:
    """A started process; leaving the block ends it and everything it started.

    ``wire`` and ``verdict`` are the file descriptors that it keeps, ``job`` what it reads from standard input.
    """

    def __init__(
        self,
        means: Means,
        role: str,
        job: str,
        seconds: float,
        core: int,
        wire: int | None,
        verdict: int | None = None,
        complaint: IO[bytes] | None = None,
    ) -> None:
        view = _view()
        kept = [number for number in (wire, verdict) if number is not None]
        whole = int(seconds) + 1
        limits = {"CPU": whole, "AS": _MEMORY, "FSIZE": _SCRATCH, "NOFILE": 64, "CORE": 0, "NPROC": _PROCESSES}
        limits |= {"MSGQUEUE": 0, "MEMLOCK": 1 << 16} if means.sandboxed else {}
        setting: dict[str, Any] = {
            "role": role,
            "sandboxed": means.sandboxed,
            "core": core,
            "wire": -1 if wire is None else wire,
            "verdict": -1 if verdict is None else verdict,
            "limits": limits,
            "packages": view.packages if means.sandboxed else _own_packages(),
            "view": None,
        }
        if means.kind == "namespaces":
            room = {"bytes": _SCRATCH, "inodes": _INODES, "nobody": means.nobody}
            setting["view"] = {"folders": view.folders, "links": view.links, **room}
        start = [view.interpreter, "-I", "-S", "-c", _START]
        command = [*start, "/guest"] if means.kind == "bubblewrap" else [*start, str(_GUEST)]
        if means.kind == "bubblewrap":
            command = [*_bubblewrap(view), *command]
        self.seconds, self.means = seconds, means
        self._folder = None if means.sandboxed else tempfile.mkdtemp(prefix="wino-code-")
        self._used = 0.0
        # Who may not pass our own folders cannot start there: as another user, from the root.
        other: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}
        try:
            with tempfile.TemporaryFile() as told:
                told.write(job.encode())
                told.seek(0)
                self._front = subprocess.Popen(
                    [*command, json.dumps(setting)],
                    cwd=self._folder or "/",
                    env=_ENVIRONMENT,
                    stdin=told,
                    stdout=subprocess.DEVNULL,
                    stderr=complaint or subprocess.DEVNULL,
                    start_new_session=True,
                    pass_fds=kept,
                    **(other if means.kind == "bubblewrap" and means.nobody else {}),
                )
        except BaseException:
            self._remove()
            raise

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Kill what is inside through its first process, and wait until it is gone."""
        front = self._front
        until = time.monotonic() + 5
        while front.poll() is None:
            # One process is enough where the kernel ends the others with it.
            inside = _children(front.pid) if self.means.sandboxed else _tree(front.pid)
            for pid in inside:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if not inside or time.monotonic() > until:
                    os.killpg(front.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                front.wait(0.05)
        if not self.means.sandboxed:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(front.pid, signal.SIGKILL)
        self._remove()

    def running(self) -> bool:
        return self._front.poll() is None

    def within_limits(self) -> bool:
        """Whether all its processes together keep to their memory, number and processor time."""
        tree = _tree(self._front.pid)
        if self.means.kind == "bubblewrap" and _files(tree) > _INODES:
            return False
        if len(tree) > _PROCESSES + 8:
            return False
        self._used = max(self._used, sum(map(_processor_seconds, tree)))
        if self._used > self.seconds + 1:
            return False
        if sum(map(_resident, tree)) <= _MEMORY:
            return True
        return sum(map(_proportional, tree)) <= _MEMORY

    def _remove(self) -> None:
        if self._folder is not None:  # by tools that know neither depth nor names too odd for them
            subprocess.run(["chmod", "-R", "u+rwx", self._folder], capture_output=True, check=False)
            subprocess.run(["rm", "-rf", self._folder], capture_output=True, check=False)
            self._folder = None


def watch(verdict: IO[bytes], sandboxes: list[Sandbox], seconds: float) -> bytes:
    """What the first sandbox says before it ends; nothing if time or any limit runs out."""
    until = time.monotonic() + seconds
    said = b""
    while time.monotonic() < until and all(sandbox.within_limits() for sandbox in sandboxes):
        if not select.select([verdict], [], [], _TICK)[0]:
            continue
        part = verdict.read(4096)
        said += part
        if not part or len(said) > 4096:
            return said
    return b""


def _bubblewrap(view: _View) -> list[str]:
    command = [
        "bwrap",
        "--unshare-user",
        "--unshare-all",
        "--as-pid-1",
        "--die-with-parent",
        "--uid",
        "65534",
        "--gid",
        "65534",
    ]
    command += ["--cap-drop", "ALL", "--size", str(_SCRATCH), "--tmpfs", "/tmp", "--proc", "/proc"]
    for path, target in [*view.links, ("/var/tmp", "/tmp"), ("/dev/shm", "/tmp"), ("/dev/fd", "/proc/self/fd")]:
        command += ["--symlink", target, path]
    for device in DEVICES:
        command += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for source, target in view.folders:
        command += ["--ro-bind", source, target]
    command += ["--ro-bind", str(_GUEST / "guest"), "/guest/guest", "--remount-ro", "/", "--chdir", "/tmp", "--"]
    return command


def _own_packages() -> str:
    spec = importlib.util.find_spec("numpy")
    return "" if spec is None or spec.origin is None else str(Path(spec.origin).parents[1])


def _files(tree: list[int]) -> int:
    """Files in the ``/tmp`` of a sandbox, whose own mount could not be told how many there may be."""
    with contextlib.suppress(OSError):
        room = os.statvfs(f"/proc/{tree[-1]}/root/tmp")
        if room.f_blocks * room.f_frsize <= _SCRATCH:  # else it has not moved in yet
            return room.f_files - room.f_ffree
    return 0


def _tree(pid: int) -> list[int]:
    found = [pid]
    for known in found:
        found += _children(known)
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return found


def _processor_seconds(pid: int) -> float:
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _proportional(pid: int) -> int:
    """Memory with what is shared divided among those who share it; all of it where the kernel does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return _resident(pid)
