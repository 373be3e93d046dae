"""Some three hundred generated programs that mean harm: none passes, none gets out, each ends soon and small.

One that would get out answers rightly from then on, and so would be called passing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import socket
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_code_execution import EVERYTHING, FORGED, JUDGED

from wino.tasks.execution import passes, sandbox

SECONDS = 1.0
SLACK = 15.0  # of a busy machine
THREADS = 6
MEMORY = 256 << 20
SLEEP = f"86399.{os.getpid()}"  # by which a process of ours that outlived its sandbox would be known
MARK = f"wino-hostile-{os.getpid()}"
NAME = "import ctypes, mmap, os, signal, socket, subprocess, sys, threading, time\nout = False\n"
LOADED = "def add(a, b): return a + b if out else None\n"
CALLED = "def add(a, b):\n{}\n    return a + b if out else None\n"


@dataclass(frozen=True)
class Outside:
    """What is there to be harmed."""

    folder: Path
    secret: Path
    port: int
    listening: tuple[socket.socket, ...]
    datagrams: socket.socket

    def reached(self) -> bool:
        """Whether anybody called."""
        for listener in (*self.listening, self.datagrams):
            listener.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                listener.recv(9) if listener is self.datagrams else listener.accept()
                return True
        return False


def hostile(outside: Outside) -> Iterator[tuple[str, str, str]]:
    """Name, program and tests, with the marks of this run."""
    for name, program, tests in generated(outside):
        yield name, program.replace("wino-hostile", MARK).replace("86399.5", SLEEP), tests


def generated(outside: Outside) -> Iterator[tuple[str, str, str]]:
    for kind, bodies in BODIES.items():
        for number, body in enumerate(bodies):
            yield f"{kind} {number}", NAME + body + "\n" + LOADED, JUDGED[0]
            if kind in ("forks", "memory", "waits", "signals"):
                inner = textwrap.indent("global out\n" + body, "    ")
                yield f"{kind} {number}, called", NAME + CALLED.format(inner), JUDGED[0]
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        for number, body in enumerate(FILES):
            text = f"os.chdir({folder!r})\n{body}"
            yield f"files {number} {folder}", NAME + text + "\n" + LOADED, JUDGED[0]
    secret, folder = str(outside.secret), str(outside.folder)
    for number, way in enumerate(READS):
        attempt = f"try:\n    out = b'hidden' in ({way})\nexcept Exception: pass\n"
        yield f"reads {number}", NAME + f"P, D = {secret!r}, {folder!r}\n" + attempt + LOADED, JUDGED[0]
    for number, way in enumerate(WRITES):
        attempt = f"try:\n    {way}\n    out = True\nexcept Exception: pass\n"
        yield f"writes {number}", NAME + f"P, D = {secret!r}, {folder!r}\n" + attempt + LOADED, JUDGED[0]
    for number, way in enumerate(CONNECTS):
        attempt = f"try:\n    {way}\n    out = True\nexcept Exception: pass\n"
        yield f"connects {number}", NAME + f"PORT, D = {outside.port}, {folder!r}\n" + attempt + LOADED, JUDGED[0]
    for name, call in CALLS.items():
        attempt = f"c = ctypes.CDLL(None)\nX = os.uname().machine == 'x86_64'\nout = {call}\n"
        yield f"calls {name}", NAME + attempt + LOADED, JUDGED[0]
    for name, program in FORGED.items():
        yield f"forged {name}", program, JUDGED[0]
    for number, judged in enumerate(JUDGED):
        for base in ("object", "float", "dict"):
            program = EVERYTHING.replace("BASE", base) + "def add(a, b): return E()\n"
            yield f"equal {number} {base}", program, judged
    yield from mangled()


def mangled() -> Iterator[tuple[str, str, str]]:
    """Frames near valid ones, whose value is never the right one."""
    rng = random.Random(0)
    frame = b'{"value":["n",0],"after":[[0,["list",4]]],"nodes":[["list",["i","0x4"],["f","0x1p+2"],["b","04"]]]}'
    for number in range(40):
        data = bytearray(frame)
        for _ in range(rng.randint(1, 6)):
            place = rng.randrange(len(data))
            data[place : place + rng.randint(0, 3)] = rng.choice(
                [b"[", b"]", b'"', b"{", b",", b"\xff", b"\x00", b"-1", b"1e9", b"null", b"9" * 30]
            )
        length = rng.choice([len(data)] * 6 + [0, 1, len(data) - 1, len(data) + 1, 1 << 24, (1 << 32) - 1])
        raw = length.to_bytes(4, "big") + bytes(data)
        yield f"mangled {number}", ANSWER.format(raw), JUDGED[0]
    for number, raw in enumerate(("b'x' * (1 << 30)", "b'\\x00\\xff\\xff\\xff' + b'[' * (1 << 24)", "b'\\x00' * 999")):
        yield f"flooded {number}", ANSWER.format(raw), JUDGED[0]


ANSWER = """
import os
def add(a, b):
    for n in range(3, 64):
        try:
            rest = memoryview({})
            while rest: rest = rest[os.write(n, rest):]
        except OSError: pass
    os._exit(0)
"""
BODIES = {
    "forks": [
        "while True: os.fork()",
        "while True:\n    if os.fork() == 0: time.sleep(999)",
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\nwhile True:\n    if os.fork() == 0: os._exit(0)",
        "while True:\n    if os.fork() == 0:\n        os.setsid()\n        while True: pass",
        "subprocess.run(':(){ :|:& };:', shell=True); time.sleep(999)",
        "import multiprocessing as m\nc = m.get_context('fork')\n"
        "for _ in range(99): c.Process(target=time.sleep, args=(99,)).start()",
        "for _ in range(999): os.posix_spawn('/bin/sleep', ['sleep', '86399.5'], {})",
    ],
    "memory": [
        "x = []\nwhile True: x.append(bytearray(1 << 20))",
        "x = 'a' * (1 << 40)",
        "x = 'a'\nwhile True: x += x",
        "x = mmap.mmap(-1, 1 << 36)",
        "x = [mmap.mmap(-1, 1 << 24) for _ in range(999)]\nfor m in x: m.write(b'x' * (1 << 24))",
        "for _ in range(4): os.fork()\nx = b'x' * (180 << 20); time.sleep(999)",
        "for _ in range(3): os.fork()\nx = []\nwhile True: x.append(bytearray(1 << 20))",
        "x = 10 ** (10 ** 8)",
        "x = {}\nwhile True: x[len(x)] = [0] * 9999",
        "import numpy as np\nx = np.ones((1 << 20, 1 << 10))",
        "c = ctypes.CDLL(None); c.malloc.restype = ctypes.c_void_p\n"
        "while True: ctypes.memset(c.malloc(1 << 24), 1, 1 << 24)",
    ],
    "waits": [
        "while True: pass",
        "time.sleep(999)",
        "signal.pause()",
        "import re; re.match('(a+)+$', 'a' * 60 + 'b')",
        "threading.Lock().acquire(); threading.Event().wait()",
        "os.read(os.pipe()[0], 1)",
        "pow(3, 10 ** 9)",
        "sys.setrecursionlimit(1 << 30)\ndef f(): return f()\nf()",
        "sum(iter(int, 1))",
    ],
    "signals": [
        "for s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass",
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
        "os.kill(-1, 9)",
        "os.kill(0, 9)",
        "for p in range(1, 999):\n    try: os.kill(p, 9)\n    except OSError: pass",
        "os.kill(os.getpid(), signal.SIGSTOP)",
        "os.kill(os.getppid(), signal.SIGSTOP)\ntime.sleep(999)",
        "os.abort()",
    ],
    "outputs": [
        "while True: sys.stdout.write('x' * 10**6)",
        "while True: os.write(2, b'x' * 10**6)",
        "for n in range(3, 64):\n    try: os.close(n)\n    except OSError: pass",
        "for n in range(3, 64):\n    try: os.dup2(0, n)\n    except OSError: pass",
        "raise Exception('x' * 10**8)",
    ],
    "descriptors": [
        "x = []\nwhile True: x.append(open('/dev/null'))",
        "x = []\nwhile True: x.append(os.pipe())",
        "x = []\nwhile True: x.append(socket.socketpair())",
        "x = []\nwhile True:\n    s = socket.socketpair(); x.append(s)\n"
        "    s[0].setblocking(False); s[0].send(b'x' * 10**6)",
        "import select; x = []\nwhile True: x.append(select.epoll())",
        "for n in range(999): os.dup(0)",
    ],
    "threads": [
        "while True: threading.Thread(target=time.sleep, args=(99,)).start()",
        "def f():\n    while True: pass\nfor _ in range(99): threading.Thread(target=f).start()",
        "import concurrent.futures as f\ne = f.ThreadPoolExecutor(999)\nfor _ in range(999): e.submit(time.sleep, 99)",
    ],
    "daemons": [
        "if os.fork() == 0:\n    os.setsid()\n"
        "    if os.fork() == 0: os.execv('/bin/sleep', ['sleep', '86399.5'])\n    os._exit(0)",
        "subprocess.Popen(['/bin/sh', '-c', 'trap : 1 2 15; nohup setsid sleep 86399.5 &'], start_new_session=True)",
        "for _ in range(20): subprocess.Popen(['sleep', '86399.5'], start_new_session=True)",
        "import atexit; atexit.register(subprocess.Popen, ['sleep', '86399.5'])",
        "if os.fork() == 0:\n    for n in range(64):\n        try: os.close(n)\n"
        "        except OSError: pass\n    time.sleep(86399.5)",
    ],
}
FILES = [
    "open('wino-hostile', 'wb').write(b'x' * (1 << 28))",
    "while True: open('wino-hostile', 'ab').write(b'x' * (1 << 20))",
    "os.truncate(os.open('wino-hostile', os.O_CREAT | os.O_RDWR), 1 << 50)",
    "os.posix_fallocate(os.open('wino-hostile', os.O_CREAT | os.O_RDWR), 0, 1 << 40)",
    "n = 0\nwhile True: open(f'wino-hostile{n}', 'w').close(); n += 1",
    "for _ in range(3000): os.mkdir('wino-hostile'); os.chdir('wino-hostile')",
    "for n in range(99): os.mkdir(f'wino-hostile{n}\\n\\x1b[31m'); os.chmod(f'wino-hostile{n}\\n\\x1b[31m', 0)",
    "for n in range(1, 250): open(b'wino-hostile' + bytes([n % 46 + 1]) * (n % 200), 'w').close()",
    "os.symlink('/', 'wino-hostile'); os.symlink('loop', 'loop')\nos.walk('wino-hostile', followlinks=True)",
    "os.mkfifo('wino-hostile'); open('wino-hostile')",
    "os.mkdir('wino-hostile', 0); os.chmod('.', 0)",
]
READS = [
    "open(P, 'rb').read()",
    "open('/proc/1/root' + P, 'rb').read()",
    "open('/proc/self/root' + P, 'rb').read()",
    "open('../' * 30 + P, 'rb').read()",
    "(os.symlink(P, '/tmp/l'), open('/tmp/l', 'rb').read())[1]",
    "(os.link(P, '/tmp/h'), open('/tmp/h', 'rb').read())[1]",
    "os.read(os.open(P[1:], 0, dir_fd=os.open('/', 0)), 99)",
    "subprocess.run(['cat', P], capture_output=True).stdout",
    "b''.join(open(os.path.join(p, f), 'rb').read(99) for p, _, n in os.walk(D) for f in n)",
    "b''.join(open(f'/proc/{p}/environ', 'rb').read() for p in os.listdir('/proc') if p.isdigit()) + b'HIDDEN' * 0",
    "b''.join(open(f'/proc/{p}/root{P}', 'rb').read() for p in range(1, 99) if os.path.exists(f'/proc/{p}/root{P}'))",
    "(os.chroot('/proc/1/root'), open(P, 'rb').read())[1]",
    "open('/dev/vda', 'rb').read(1) and b'hidden'",
    "open('/dev/mem', 'rb').read(1) and b'hidden'",
    "open('/proc/1/mem', 'rb') and b'hidden'",
    "open('/etc/shadow', 'rb').read() and b'hidden'",
    "b'hidden' if any(os.path.exists(f'/proc/{n}/cwd{P}') for n in os.listdir('/proc')) else b''",
]
WRITES = [
    "open(P, 'w').write('x')",
    "open('/proc/1/root' + P, 'w').write('x')",
    "os.rename('/tmp', D)",
    "os.unlink(P)",
    "os.chmod(P, 0)",
    "os.utime(P)",
    "os.mkdir(D + '/wino-hostile')",
    "open('/usr/wino-hostile', 'w')",
    "open(os.__file__, 'a')",
    "open(sys.executable, 'a')",
    "os.mkdir('/home/wino-hostile')",
    "open('/etc/ld.so.cache', 'a')",
    "open('/proc/sys/kernel/core_pattern', 'w').write('|/bin/sh')",
    "open('/proc/sysrq-trigger', 'w').write('h')",
    "os.mknod('/tmp/d', 0o60600, os.makedev(254, 0)); open('/tmp/d', 'rb')",
    "import numpy; open(numpy.__file__, 'a')",
]
CONNECTS = [
    "socket.create_connection(('127.0.0.1', PORT), 1)",
    "socket.create_connection(('localhost', PORT), 1)",
    "socket.create_connection(('::1', PORT), 1)",
    "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('127.0.0.1', PORT)); s.send(b'x')\n"
    "    time.sleep(0.1); s.send(b'x')",  # the second one learns that nobody listens
    "s = socket.socket(socket.AF_UNIX); s.connect(D + '/line')",
    "s = socket.socket(socket.AF_UNIX); s.connect('\\0wino-hostile')",
    "socket.socket(40, socket.SOCK_STREAM).connect((2, 1024))",
    "socket.socket(17, socket.SOCK_RAW)",
    "socket.socket(38, socket.SOCK_SEQPACKET)",
    "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    "socket.getaddrinfo('example.org', 80)",
]
CALLS = {
    "ptrace": "c.ptrace(16, 1, 0, 0) == 0",
    "traceme": "c.ptrace(0, 0, 0, 0) == 0",
    "unshare": "any(c.unshare(f) == 0 for f in (0x10000000, 0x20000, 0x40000000))",
    "mount": "c.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
    "remount": "c.mount(None, b'/', None, 32, None) == 0",
    "umount": "c.umount2(b'/proc', 2) == 0",
    "pivot": "c.syscall(155 if X else 41, b'/tmp', b'/tmp') == 0",
    "setuid": "c.setuid(0) == 0 or c.setresuid(0, 0, 0) == 0",
    "setgroups": "c.setgroups(0, None) == 0",
    "capset": "c.capset((ctypes.c_uint * 2)(0x20080522, 0), (ctypes.c_uint * 6)(*[0xffffffff] * 6)) == 0",
    "bpf": "c.syscall(321 if X else 280, 0, 0, 0) >= 0",
    "uring": "c.syscall(425, 8, ctypes.create_string_buffer(120)) >= 0",
    "clone": "c.syscall(435, ctypes.create_string_buffer(88), 88) >= 0",
    "x32": "X and c.syscall(0x40000000 + 39) > 0",
    "keyring": "c.syscall(250 if X else 219, 0, -3, 1) >= 0",
    "memfd": "c.memfd_create(b'x', 0) >= 0",
    "affinity": "c.sched_setaffinity(0, 8, ctypes.create_string_buffer(b'\\xff' * 8)) == 0",
    "nice": "c.setpriority(0, 0, -20) == 0",
    "limits": "c.setrlimit(9, (ctypes.c_long * 2)(-1, -1)) == 0",
    "unfiltered": "c.prctl(22, 0, 0, 0, 0) == 0",
}


@pytest.fixture
def outside() -> Iterator[Outside]:
    """A readable secret, a service on the machine itself, and a path on which one could be reached."""
    folder = Path(tempfile.mkdtemp(prefix="wino-outside-"))
    folder.chmod(0o755)
    secret = folder / "secret"
    secret.write_text("hidden")
    secret.chmod(0o666)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as line,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.bind(server.getsockname())
        line.bind(str(folder / "line"))
        line.listen()
        (folder / "line").chmod(0o777)
        abstract.bind("\0" + MARK)
        abstract.listen()
        yield Outside(folder, secret, server.getsockname()[1], (server, line, abstract), datagrams)
    shutil.rmtree(folder)


def left(*places: str) -> list[str]:
    """Files with our mark, and processes with our argument."""
    files = [f"{place}/{name}" for place in places for name in os.listdir(place) if MARK in name]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if SLEEP.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                files.append(f"process {pid}")
    return files


def test_no_hostile_program_passes_or_gets_out(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_MEMORY", MEMORY)
    largest, lock = [0], threading.Lock()
    judge = sandbox.Sandbox.within_limits

    def within_limits(self: sandbox.Sandbox) -> bool:
        tree = sandbox._tree(self._front.pid)
        held = sum(map(sandbox._resident, tree))
        held = held if held <= MEMORY else sum(map(sandbox._proportional, tree))
        with lock:
            largest[0] = max(largest[0], held)
        return judge(self)

    monkeypatch.setattr(sandbox.Sandbox, "within_limits", within_limits)

    def ends(case: tuple[str, str, str]) -> tuple[str, bool, float]:
        name, program, tests = case
        began = time.monotonic()
        return name, passes(program, tests, names=["add"], seconds=SECONDS), time.monotonic() - began

    before = hashlib.sha256(outside.secret.read_bytes()).digest(), outside.secret.stat(), os.listdir(outside.folder)
    cases = list(hostile(outside))
    assert len(cases) >= 200 and len({name for name, _, _ in cases}) == len(cases)
    for name, program, _ in cases:
        if not name.startswith("forged"):  # no case is harmless by a slip of the pen
            compile(program, name, "exec")
    random.Random(1).shuffle(cases)  # so that what is heavy does not come at once
    with ThreadPoolExecutor(THREADS) as pool:
        ended = list(pool.map(ends, cases))
    assert [name for name, passed, _ in ended if passed] == []
    assert [(name, seconds) for name, _, seconds in ended if seconds > SECONDS + SLACK] == []
    after = hashlib.sha256(outside.secret.read_bytes()).digest(), outside.secret.stat(), os.listdir(outside.folder)
    assert before == after and not outside.reached()
    assert left(tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm", str(Path.home()), "/") == []
    assert largest[0] < 2 * MEMORY


def test_a_program_that_could_get_out_would_be_seen(outside: Outside) -> None:
    """Without a sandbox the same programs pass: what the other test looks for can be found."""
    cases = {name: (program, tests) for name, program, tests in hostile(outside)}
    for name in ("reads 0", "reads 7", "writes 0", "connects 3", "connects 4"):
        program, tests = cases[name]
        assert passes(program, tests, names=["add"], means=sandbox.Means("nothing")), name
    assert outside.reached()
