"""Programs that a model wrote: which pass, and what they cannot do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from wino.cli import app
from wino.tasks import get_task
from wino.tasks.execution import Means, find_means, passes, sandbox

ADD = "def add(a, b):\n    return a + b\n"
TESTS = "assert add(1, 2) == 3\nassert add(-5, 5) == 0\n"


NOTHING = Means("nothing")


def fails(program: str, tests: str = TESTS, **settings: Any) -> None:
    assert not passes(program, tests, **settings)


# ---- right programs, by the tests that data sets have


RIGHT = {
    "plain": (ADD, TESTS),
    "imports": ("import math, re, collections\n" + ADD, TESTS),
    "future": ("from __future__ import annotations\n" + ADD, TESTS),
    "no tests": (ADD, ""),
    "floats": (
        "def f(x): return x / 3",
        "import math\nassert math.isclose(f(1.0), 1 / 3)\nassert abs(f(2) - .667) < 1e-3",
    ),
    "nan": (
        "def f(x): return [float('nan'), float('inf'), -0.0, x]",
        "r = f(2**200)\nassert r[0] != r[0] and r[1:] == [float('inf'), 0.0, 2**200] and str(r[2]) == '-0.0'",
    ),
    "kinds": (
        "def same(x): return x",
        "for x in (None, True, 1, 1.5, 2j, 'ü\\ud800', b'x\\xff', (1, (2,)), [1, [2]], {1: {'a': ()}}, {1, 2},"
        " frozenset({3}), bytearray(b'y'), range(3), slice(1), int, ValueError, 10**5000):\n"
        "    assert same(x) == x and type(same(x)) is type(x), x",
    ),
    "library": (
        "from collections import *\nfrom fractions import Fraction\nfrom decimal import Decimal\nimport datetime\n"
        "def f(): return [Counter('aab'), OrderedDict(a=1), deque([1]), Fraction(1, 3), Decimal('1.5'),"
        " defaultdict(int, a=2), datetime.date(2020, 1, 2), datetime.timedelta(3)]",
        "from collections import *\nfrom fractions import Fraction\nfrom decimal import Decimal\nimport datetime\n"
        "assert f() == [Counter('aab'), OrderedDict(a=1), deque([1]), Fraction(1, 3), Decimal('1.5'),"
        " {'a': 2}, datetime.date(2020, 1, 2), datetime.timedelta(3)]",
    ),
    "derived": (
        "import enum\nfrom typing import NamedTuple\nclass P(NamedTuple):\n    x: int\nclass C(enum.IntEnum):\n    "
        "A = 1\n"
        "class S(str): pass\nclass L(list): pass\ndef f(): return [P(4), C.A, S('s'), L([1])]",
        "assert f() == [(4,), 1, 's', [1]]\nassert [type(x) for x in f()] == [tuple, int, str, list]",
    ),
    "numpy": (
        "import numpy as np\ndef f(x): return np.mean(x), np.array([1, 2]).sum(), np.bool_(True)",
        "assert f([1.0, 2.0]) == (1.5, 3, True)",
    ),
    "numpy arrays": (
        "import numpy as np\ndef f(x): return np.array(x) * 2",
        "assert list(f([1, 2])) == [2, 4] and f([1]).tolist() == [2]",
    ),
    "numpy in tests": ("def f(x): return [x * 1.0]", "import numpy as np\nassert np.allclose(f(2), [2])"),
    "sets": ("def f(x): return list(x) * 2", "assert set(f([1, 2])) == {1, 2}"),
    "iterators": (
        "def f(n):\n    yield from range(n)\ndef g(x): return map(str, x)\ndef h(d): return d.keys()",
        "assert list(f(3)) == [0, 1, 2] and sorted(g([2, 1])) == ['1', '2']\nassert 'a' in h({'a': 1})\n"
        "i = f(2)\nassert next(i) == 0 and next(i) == 1 and next(i, None) is None and max(f(4)) == 3",
    ),
    "in place": (
        "def f(x, d):\n    x.sort(); d['k'] = x; d['own'] = [7]; return x",
        "a, d = [3, 1, 2], {}\nr = f(a, d)\n"
        "assert a == [1, 2, 3] and r is a and d['k'] is a and d == {'k': a, 'own': [7]}",
    ),
    "in place, nested": (
        "def f(m):\n    for row in m:\n        row.reverse()\ndef g(t): t[0].append(1); t[1].add(2); t[2][:] = b'z'",
        "m = [[1, 2], [3, 4]]\nrow = m[0]\nassert f(m) is None and m == [[2, 1], [4, 3]] and m[0] is row\n"
        "t = ([], set(), bytearray(b'a'))\ng(t)\nassert t == ([1], {2}, bytearray(b'z'))",
    ),
    "a cycle": (
        "def f(x): x.append(x); return x",
        "a = [1]\nr = f(a)\nassert r is a and a[1] is a and len(a) == 2",
    ),
    "callbacks": (
        "def f(g, x): return [g(i) for i in x]\ndef h(k): return lambda x: x + k\n"
        "def each(x):\n    return sum(i for i in x)",
        "assert f(lambda i: i * 2, [1, 2]) == [2, 4] and f(len, ['ab']) == [2] and h(3)(4) == 7\n"
        "assert each(i for i in (1, 2)) == 3 and f(h(1), [1]) == [2]",
    ),
    "classes": (
        "class Pair:\n    def __init__(self, a, b):\n        self.a, self.b = a, b\n"
        "def longest(pairs): return max(p.b - p.a for p in pairs)\ndef make(a): return Pair(a, a + 1)",
        "p = Pair(5, 24)\nassert longest([p, Pair(1, 3)]) == 19\np.b = 6\n"
        "assert longest([p]) == 1 == longest([make(2)])\n"
        "assert p == p and p != Pair(5, 6) and isinstance(p, Pair) and not isinstance(3, Pair) and make(2).b == 3",
    ),
    "a class with methods": (
        "class Stack(list):\n    def push(self, x): self.append(x)\n    def __str__(self): return 'S%d' % len(self)\n",
        "s = Stack()\ns.push(4)\ns.append(5)\n"
        "assert len(s) == 2 and s[1] == 5 and list(s) == [4, 5] and str(s) == 'S2'\n"
        "assert s.pop() == 5 and s and s.count(4) == 1",
    ),
    "a tree from the set-up": (
        "class Node:\n    def __init__(self, v): self.v, self.left = v, None\n"
        "def depth(n): return 0 if n is None else 1 + depth(n.left)",
        "root = Node(1)\nroot.left = Node(2)\nassert depth(root) == 2 and root.left.v == 2",
    ),
    "exceptions": (
        "class Bad(ValueError): pass\ndef f(x):\n    if x < 0:\n        raise Bad('negative')\n    return {}[x]",
        "try:\n    f(-1)\n    assert False, 'no'\nexcept Bad as e:\n    assert str(e) == 'negative'\n"
        "try:\n    f(-1)\nexcept ValueError:\n    pass\n"
        "try:\n    f(4)\nexcept KeyError as e:\n    assert e.args == (4,)\nelse:\n    assert False",
    ),
    "a builtin's name": ("def sum(a, b): return a + b", "assert sum(10, 15) == 25\nassert sum(1, 1) == 2"),
    "a dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\ndef f(): return P(3)",
        "assert f().x == 3",
    ),
    "a value": ("LIMIT = 7\ndef f(): return LIMIT", "assert f() == LIMIT"),
    "deep recursion": ("def f(n): return 0 if n == 0 else 1 + f(n - 1)", "assert f(900) == 900"),
    "much data": ("def f(n): return list(range(n))", "assert f(200_000) == list(range(200_000))"),
    "threads": (
        "import threading\ndef f():\n    out = []\n"
        "    t = [threading.Thread(target=out.append, args=(i,)) for i in range(8)]\n"
        "    [x.start() for x in t]; [x.join() for x in t]\n    return sorted(out)",
        "assert f() == list(range(8))",
    ),
    "processes": (
        "import subprocess, sys\ndef f(): return subprocess.run([sys.executable, '-S', '-c', 'print(3)'],"
        " capture_output=True, text=True).stdout",
        "assert f() == '3\\n'",
    ),
    "files": (
        "import tempfile, os\ndef f():\n    with tempfile.NamedTemporaryFile('w+') as t:\n        "
        "t.write('x'); t.seek(0)\n"
        "        return t.read(), os.listdir('.')",
        "assert f()[0] == 'x'",
    ),
    "asyncio": ("import asyncio\nasync def g(): return 3\ndef f(): return asyncio.run(g())", "assert f() == 3"),
    "printing": ("print('x' * 10**6)\ndef f(): print('y')", "assert f() is None"),
}


@pytest.mark.parametrize("case", RIGHT)
def test_a_right_program_passes(case: str) -> None:
    program, tests = RIGHT[case]
    assert passes(program, tests)
    fails(program, tests + "\nassert 1 == 2")


@pytest.mark.parametrize("case", ["plain", "numpy", "in place", "callbacks", "a class with methods"])
def test_unsandboxed_too(case: str) -> None:
    program, tests = RIGHT[case]
    assert passes(program, tests, means=NOTHING)
    fails("x = 1", tests, means=NOTHING)


# ---- forged verdicts


EVERYTHING = (
    "class E(BASE):\n    def __init__(self, *a): pass\n"
    + "".join(
        f"    def __{name}__(self, *a): return True\n"
        for name in ("eq", "ne", "lt", "le", "gt", "ge", "bool", "contains", "instancecheck", "call")
    )
    + "".join(
        f"    def __{name}__(self, *a): return self\n"
        for name in ("add", "sub", "rsub", "mul", "truediv", "abs", "round", "getitem", "neg", "and", "or", "iter")
    )
    + "    def __float__(self): return 3.0\n    def __hash__(self): return hash(3)\n    def __len__(self): return 3\n"
    + "    def __getattr__(self, name): return lambda *a: True\n    def __next__(self): return 3\n"
)
FORGED = {
    "frames": "import sys\ndef add(a, b):\n    f = sys._getframe()\n    while f:\n        "
    "for v in {**f.f_globals, **f.f_locals}.values():\n"
    "            if callable(v) and getattr(v, '__name__', '') in ('say', '_leave', 'main', '_tester'):\n"
    "                v()\n        f = f.f_back\n",
    "gc": "import gc, os\nfor o in gc.get_objects():\n    if isinstance(o, str) and len(o) == 32:\n        "
    "for n in range(16):\n"
    "            try: os.write(n, o.encode())\n            except OSError: pass\n",
    "memory": "import os\nm = open('/proc/self/mem', 'r+b', 0)\nfor line in open('/proc/self/maps'):\n    pass\n",
    "parent's memory": "open('/proc/1/mem', 'rb').read(1)\n",
    "ctypes": "import ctypes\nctypes.pythonapi.Py_Exit(0)\n",
    "crash": "import ctypes\nctypes.string_at(0)\n",
    "assertions": "import builtins\nbuiltins.AssertionError = type('A', (BaseException,), {})\n",
    "builtins": "import builtins\nbuiltins.sorted = builtins.abs = builtins.set = lambda *a: True\n"
    "builtins.__build_class__ = None\n",
    "exit": "import os\nos._exit(0)\n",
    "exit in the call": "import os\ndef add(a, b): os._exit(0)\n",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\ndef add(a, b): raise SystemExit(0)\n",
    "quit": "raise SystemExit(0)\n",
    "quit in the call": "import sys\ndef add(a, b): sys.exit(0)\n",
    "generator exit": "def add(a, b): raise GeneratorExit\n",
    "interrupt": "def add(a, b): raise KeyboardInterrupt\n",
    "print": "print('passed')\ndef add(a, b): print('True')\n",
    "inherited files": "import os\nfor n in range(64):\n    try: os.write(n, b'passed')\n    except OSError: pass\n",
    "a child answers": "import os\nif os.fork() == 0:\n    def add(a, b): return 4\nelse:\n    os._exit(0)\n",
    "modules": "import sys, types\nm = types.ModuleType('math')\nm.isclose = lambda *a: True\n"
    "for n in list(sys.modules):\n    sys.modules[n] = m\n",
    "the json module": "import json\njson.dumps = lambda *a, **k: 'true'\n"
    "json.loads = lambda *a, **k: {'op': 'kind'}\n",
    "a wrong answer": "def add(a, b): return a - b\n",
    "no answer": "def add(a, b): pass\n",
    "nothing": "",
    "syntax": "def add(a, b:\n",
    "zero byte": "\x00",
    "surrogates": "'\\ud800'\n# \udcff\n",
    "another's name": "class add:\n    def __new__(cls, a, b): return NotImplemented\n",
    "a type": "def add(a, b): return type('T', (), {'__eq__': lambda *a: True})\n",
    "a metaclass": "class M(type):\n    def __eq__(self, o): return True\n    def __hash__(self): return 1\n"
    "class T(metaclass=M): pass\ndef add(a, b): return T\n",
    **{
        f"equal to everything, {base}": EVERYTHING.replace("BASE", base) + "def add(a, b): return E()\n"
        for base in ("object", "int", "float", "str", "list", "tuple", "dict", "set", "Exception")
    },
    "equal in a list": EVERYTHING.replace("BASE", "object") + "def add(a, b): return [E()]\n",
    "raises one": EVERYTHING.replace("BASE", "Exception") + "def add(a, b): raise E()\n",
    "a mock": "from unittest import mock\ndef add(a, b): return mock.ANY\n",
    "numpy's": "import numpy as np\nclass A(np.ndarray):\n    def __eq__(self, o): return True\n"
    "def add(a, b): return np.zeros(3).view(A)\n",
}
JUDGED = (
    "assert add(1, 2) == 3",
    "import math\nassert math.isclose(add(1, 2), 3)",
    "assert abs(add(1, 2) - 3) < 1e-6",
    "assert set(add(1, 2)) == {1, 2}",
    "assert add(1, 2) in [3] and add(1, 2).issubset({3})",
    "assert not (add(1, 2) != 3)",
    "assert add(1, 2) is True and isinstance(add(1, 2), bool)",
    "assert sorted(add(1, 2)) == [1, 2]",
    "assert [add(1, 2)] == [3] and (add(1, 2),) == (3,) and {'a': add(1, 2)} == {'a': 3}",
)


@pytest.mark.parametrize("attack", FORGED)
def test_no_wrong_program_passes(attack: str) -> None:
    fails(FORGED[attack], JUDGED[0], seconds=2)


@pytest.mark.parametrize("judged", JUDGED)
def test_no_object_is_equal_to_what_it_is_not(judged: str) -> None:
    for base in ("object", "int", "Exception"):
        fails(EVERYTHING.replace("BASE", base) + "def add(a, b): return E()\n", judged, names=["add"], seconds=1)


@pytest.mark.parametrize("attack", ["frames", "gc", "exit in the call", "inherited files", "equal to everything, int"])
def test_nor_is_a_verdict_forged_unsandboxed(attack: str) -> None:
    fails(FORGED[attack], JUDGED[0], names=["add"], seconds=5, means=NOTHING)


def test_names_that_the_tests_bring_are_not_the_programs() -> None:
    cheat = "def f(x): return 1\ndef key(x): return x\nimport math\nmath.isclose = isclose = lambda *a: True\n"
    cheat += "class helper: pass\nsorted = set = abs = lambda *a: 1\n"
    fails(cheat, "assert sorted([2, f(0)]) == [1, 1]")
    fails(cheat, "assert math.isclose(f(0), 2)")
    fails(cheat, "import math\nassert math.isclose(f(0), 2)")
    fails(cheat, "assert key(3) == key(f(0))", names=["f"], helpers=["def key(x): return x * 2\n"])
    assert passes(cheat, "assert key(3) == 6 and f(0) == 1", names=["f"], helpers=["def key(x): return x * 2\n"])


@pytest.mark.parametrize(
    "frame",
    [
        "b'\\xff\\xff\\xff\\xff' + b'x' * 100",
        "b'\\x00\\x00\\x00\\x02[]'",
        "b'\\x00\\x00\\x00\\x02{}'",
        "b'\\x00\\x00\\x00\\x02\\xff\\xff'",
        "frame('['*100000)",
        "frame('{\"value\":3,\"after\":[],\"nodes\":' + '['*50000 + ']'*50000 + '}')",
        'frame(\'{"value":3.0,"after":[],"nodes":[]}\')',
        'frame(\'{"value":NaN,"after":[],"nodes":[]}\')',
        'frame(\'{"value":["n",0],"after":[],"nodes":[["tuple",["n",0]]]}\')',
        'frame(\'{"value":["n",-1],"after":[],"nodes":[["list"]]}\')',
        'frame(\'{"value":["n",0],"after":[],"nodes":[["set",["n",1]],["list"]]}\')',
        'frame(\'{"value":["yours",0],"after":[],"nodes":[]}\')',
        'frame(\'{"value":["mine",1e3],"after":[],"nodes":[]}\')',
        'frame(\'{"value":["t","eval"],"after":[],"nodes":[]}\')',
        'frame(\'{"value":3,"after":[[0,["list"]]],"nodes":[]}\')',
        'frame(\'{"value":3,"after":[[7,["list"]]],"nodes":[]}\')',
        'frame(\'{"error":["eval"],"value":["n",0],"nodes":[["tuple"]]}\')',
        'frame(\'{"error":5,"value":null,"nodes":[]}\')',
        'frame(\'{"op":"get","on":0,"value":"__globals__","nodes":[]}\')',
        'frame(\'{"op":"call","on":0,"value":["n",0],"nodes":[["tuple"]]}\')',
        'frame(\'{"op":"name","on":null,"value":"x","nodes":[]}\')',
        "frame('9'*5000)",
        'frame(\'{"value":["n",0],"after":[],"nodes":[["list"\' + \',["n",0]\'*1000 + \']]}\')',
        "frame('\"' + 'x' * (15 << 20) + '\"')",
        "frame('{\"value\":4,\"after\":[],\"nodes\":[' + ','.join(['[\"list\"]']*1000000) + ']}')",
        "b''",
    ],
)
def test_a_mangled_answer_fails(frame: str) -> None:
    program = (
        "import os, struct\ndef frame(text): return struct.pack('>I', len(text)) + text.encode()\n"
        f"def add(a, b):\n    data = {frame}\n    for n in range(3, 64):\n"
        "        try:\n            rest = data\n            while rest: rest = rest[os.write(n, rest):]\n"
        "        except OSError: pass\n    os._exit(0)\n"
    )
    fails(program, "assert add(1, 2) == 3", names=["add"], seconds=2)


# ---- out of bounds


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass\n",
        "import time; time.sleep(1000)\n",
        "x = [0] * 10**10\n",
        "x = 'a'\nwhile True: x += x\n",
        "import sys\nwhile True: sys.stdout.write('x' * 10**6)\n",
        "open('big', 'wb').write(b'x' * (1 << 28))\n",
        "import subprocess; subprocess.Popen(['sleep', '1000']); import time; time.sleep(1000)\n",
        "import signal\nfor s in (1, 2, 3, 15, 24):\n    signal.signal(s, signal.SIG_IGN)\nwhile True: pass\n",
        "input()\n",
        "def f(): return f()\nf()\n",
    ],
)
def test_programs_out_of_bounds_fail_in_time(program: str) -> None:
    began = time.monotonic()
    fails(program + ADD, seconds=0.5)
    fails(program + ADD, seconds=0.5, means=NOTHING)
    assert time.monotonic() - began < 15


HOARD = """
import os, time
def hoard(processes, megabytes):
    for _ in range(processes):
        if os.fork() == 0:
            held = b"x" * (megabytes << 20)
            time.sleep(30)
    time.sleep(1.5)
    return 6
"""


def test_memory_is_limited_in_total(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is right and no process alone holds much: only together are they over."""
    monkeypatch.setattr(sandbox, "_MEMORY", 256 << 20)
    assert passes(HOARD, "assert hoard(2, 20) == 6")
    assert not passes(HOARD, "assert hoard(5, 90) == 6")


def test_nothing_is_left_on_disk_or_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a sandbox too: folders too deep to walk, without rights, with odd names."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = (
        "import os\nos.mkdir('shut')\nos.mkdir('shut/in')\nos.chmod('shut', 0)\nopen('a\\nb', 'w').close()\n"
        "for _ in range(1200):\n    os.mkdir('d')\n    os.chdir('d')\n"
    )
    for means in (find_means(), NOTHING):
        assert passes(program + ADD, TESTS, means=means, seconds=30)
        assert list(tmp_path.iterdir()) == []


def test_a_killed_evaluation_takes_its_programs_with_it() -> None:
    argument = f"86398.{os.getpid()}"
    script = (
        "from wino.tasks.execution import passes\n"
        f"passes('import subprocess; subprocess.run([\"sleep\", \"{argument}\"])', '', seconds=60)\n"
    )

    def sleeping() -> bool:
        listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        return f"sleep {argument}" in listed.splitlines()

    with subprocess.Popen([sys.executable, "-c", script]) as evaluation:
        until = time.monotonic() + 60
        while not sleeping() and time.monotonic() < until:
            time.sleep(0.1)
        assert sleeping()
        evaluation.kill()
    until = time.monotonic() + 10
    while sleeping() and time.monotonic() < until:
        time.sleep(0.05)
    assert not sleeping()


# ---- the sandbox


def test_what_is_seen_from_the_inside(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o644)
    os.environ["WINO_SECRET"] = "x"
    try:
        facts = {
            "(os.getuid(), os.geteuid(), os.getgid())": "(65534,) * 3",
            "os.listdir('/tmp')": "[]",
            "os.getcwd()": "'/tmp'",
            "sys.stdin.read()": "''",
            "'WINO_SECRET' in os.environ": "False",
            f"os.path.exists({str(secret)!r}) or os.path.exists({str(Path.home() / '.ssh')!r})": "False",
            "[p for p in ('/etc/passwd', '/etc/shadow', '/sys', '/mnt') if os.path.exists(p)]": "[]",
            "os.access('/proc/1/mem', os.R_OK) or b'WINO' in open('/proc/self/environ', 'rb').read()": "False",
            "[n for n in os.listdir('/proc') if n.isdigit() and int(n) > 9]": "[]",
            "[l for l in open('/proc/self/status') if l[:6] in ('CapPrm', 'CapEff', 'CapBnd', 'CapInh', 'CapAmb')"
            " and int(l.split()[1], 16)]": "[]",
            "[l.split()[1] for l in open('/proc/self/status') if l[:7] in ('NoNewPr', 'Seccomp')][:2]": "['1', '2']",
            "[os.access(p, os.W_OK) for p in ('/', '/usr', '/var', '/dev', '/proc/sys')]": "[False] * 5",
            "sorted(set(os.listdir('/proc/self/fd')) - {'0', '1', '2'}).__len__() <= 3": "True",
            "resource.getrlimit(resource.RLIMIT_NPROC)[0] <= 64": "True",
            "len(os.sched_getaffinity(0))": "1",
        }
        looks = "".join(f"def look{i}():\n    return {expression}\n" for i, expression in enumerate(facts))
        tests = "".join(f"assert look{i}() == {expected}\n" for i, expected in enumerate(facts.values()))
        assert passes("import os, socket, sys, resource\n" + looks, tests)
    finally:
        del os.environ["WINO_SECRET"]


DENIED = {
    "connect": "s = socket.create_connection(('127.0.0.1', PORT), 1)",
    "resolve": "socket.getaddrinfo('example.org', 80)",
    "a machine's socket": "socket.socket(40, socket.SOCK_STREAM)",
    "netlink": "socket.socket(16, socket.SOCK_RAW)",
    "write to root": "open('/x', 'w')",
    "write to usr": "open('/usr/bin/x', 'w')",
    "another's home": "os.mkdir('/home/x')",
    "mount": "assert c.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
    "a user namespace": "assert c.unshare(0x10000000) == 0",
    "a namespace by clone": "assert c.syscall(56 if X86 else 220, 0x10000011, 0, 0, 0, 0) >= 0",
    "trace": "assert c.ptrace(0, 0, 0, 0) == 0",
    "memory without a file": "os.memfd_create('x')",
    "shared memory": "assert c.shmget(0, 4096, 0o1600) >= 0",
    "keys": "assert c.syscall(250 if X86 else 219, 0, -3, 0) >= 0",
    "other cores": "os.sched_setaffinity(0, range(2))",
    "root again": "os.setuid(0)",
    "chroot": "os.chroot('/tmp')",
    "a device": "os.mknod('/tmp/d', 0o20600, os.makedev(1, 1))",
    "limits up": "resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
    "process one": "os.kill(1, 9); open('/proc/1/mem', 'rb')",
    "the host's names": "socket.sethostname('x')",
}


@pytest.mark.parametrize("what", DENIED)
def test_what_a_program_is_denied(what: str) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        tried = DENIED[what].replace("PORT", str(server.getsockname()[1]))
        program = (
            "import os, socket, resource, ctypes\nc, X86 = ctypes.CDLL(None), os.uname().machine == 'x86_64'\n"
            f"def tried():\n    try:\n        {tried}\n"
            "    except (OSError, AssertionError, ValueError): return 'denied'\n"
            "    return 'done'\n"
        )
        assert passes(program, "assert tried() == 'denied'")


def test_without_isolation_nothing_runs_unless_a_second_flag_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sandbox, "_possible", lambda: [Means("namespaces"), Means("bubblewrap")])
    monkeypatch.setattr(sandbox, "_probe", lambda means: "not permitted")
    sandbox.find_means.cache_clear()
    try:
        missing = "cannot be isolated .*namespaces: not permitted; bubblewrap: not permitted"
        with pytest.raises(ValueError, match=missing):
            passes(ADD, TESTS)
        task = get_task("mbpp")
        with pytest.raises(ValueError, match=missing + ".*--allow-unsandboxed-code-execution"):
            task.allow_code_execution()
        with pytest.warns(UserWarning, match=missing + ".*run as this user"):
            task.allow_code_execution(unsandboxed=True)
        item = task.item({"text": "Add.", "test_list": ["assert add(1, 2) == 3"]})
        assert task.grade(item, f"```python\n{ADD}```") and not task.grade(item, "def add(a, b): return 4")
        data = tmp_path / "data.jsonl"
        data.write_text(json.dumps({"text": "Add.", "test_list": ["assert add(1, 2) == 3"]}) + "\n")
        arguments = ["eval", "--task", "mbpp", "--data", str(data), "--max-new-tokens", "8", "--block-length", "8"]
        result = CliRunner().invoke(app, [*arguments, "--allow-code-execution"])
        assert result.exit_code == 2 and "cannot be isolated" in result.output
        assert len(result.output.strip().splitlines()) == 1
        result = CliRunner().invoke(app, [*arguments, "--allow-unsandboxed-code-execution"])
        assert result.exit_code == 2 and "allow it with --allow-code-execution" in result.output
    finally:
        sandbox.find_means.cache_clear()


def test_a_foreign_system_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    sandbox.find_means.cache_clear()
    try:
        with pytest.raises(ValueError, match="Linux on x86-64 or ARM64 is needed"):
            find_means()
    finally:
        sandbox.find_means.cache_clear()


def test_both_flags_reach_the_task(tmp_path: Path) -> None:
    """Allowed, the run gets as far as the prompt, which the packaged model's small alphabet cannot write."""
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"text": "Add.", "test_list": ["assert add(1, 2) == 3"]}) + "\n")
    asked = ["--task", "mbpp", "--data", str(data), "--max-new-tokens", "8", "--block-length", "8"]
    for command in (
        ["eval"],
        ["eval", "--out", str(tmp_path / "eval")],
        ["collect", "--out", str(tmp_path / "x.jsonl")],
    ):
        for flags in ([], ["--allow-unsandboxed-code-execution"]):
            result = CliRunner().invoke(app, [*command, *asked, "--allow-code-execution", *flags])
            assert result.exit_code == 2 and "cannot encode" in result.output


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each means of isolation gives to an ordinary user, who is played where the tests run as root."""
    script = (
        "import sys\nsys.path.insert(0, sys.argv[1])\nimport execution\n"
        "from execution.sandbox import _possible, _probe\n"
        "for means in _possible():\n"
        "    fault = _probe(means)\n"
        "    said = fault or [\n"
        "        execution.passes('def f(): return 3', f'assert f() == {n}', means=means) for n in (3, 4)]\n"
        "    print(means.kind, said)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        shutil.copytree(Path(sandbox.__file__).parent, Path(folder) / "execution")
        user: dict[str, Any] = {"user": 12345, "group": 12345, "extra_groups": []} if os.geteuid() == 0 else {}
        for python in (sys.executable, "/usr/bin/python3"):
            command = [python, "-I", "-c", "import sys; sys.exit(sys.version_info < (3, 10))"]
            try:
                subprocess.run(command, check=True, cwd="/", capture_output=True, **user)
            except (OSError, subprocess.CalledProcessError):
                continue
            command = [python, "-I", "-c", script, folder]
            done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True, **user)
            return dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert os.geteuid() == 0 and os.path.realpath(sys.executable).startswith("/root/")
    return {"namespaces": "[True, False]"}  # the machine has no Python that another user could start


def test_an_ordinary_user_has_it_too(ordinary: dict[str, str]) -> None:
    assert ordinary["namespaces"] == "[True, False]"


def test_bubblewrap_keeps_the_same_promises(ordinary: dict[str, str]) -> None:
    """Where it is installed, by a probe and two programs; the promises are asked for by name everywhere."""
    assert ordinary.get("bubblewrap", "[True, False]") == "[True, False]"
    assert ("bubblewrap" in [means.kind for means in sandbox._possible()]) == (shutil.which("bwrap") is not None)
    command = sandbox._bubblewrap(sandbox._view())
    for promise in ("--unshare-all", "--unshare-user", "--die-with-parent", "--cap-drop", "--remount-ro", "--size"):
        assert promise in command
