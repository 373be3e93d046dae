"""Programs in replies: what is taken, what is left, and how a body continues its prompt."""

from __future__ import annotations

import time

import pytest

from wino.tasks import programs
from wino.tasks.programs import complete, defines, entry_point_of, extract, future_first

GOOD = "def twice(x):\n    return 2 * x\n"
BAD = "def twice(x):\n    return x\n"
HEAD = 'def twice(x):\n    """2 x"""\n'
FENCE = "```"


def fenced(code: str, tag: str = "python", fence: str = FENCE) -> str:
    return f"{fence}{tag}\n{code.rstrip()}\n{fence}\n"


USAGE = fenced("print(twice(4))\n")
OUTPUT = fenced("8\n", "")
BODY = "    return 2 * x\n"

#: Replies whose program is right, and replies whose program is wrong although something in them is right.
RIGHT = {
    "one block": fenced(GOOD),
    "no tag": fenced(GOOD, ""),
    "python3": fenced(GOOD, "python3"),
    "Py": fenced(GOOD, "Py"),
    "PYTHON": fenced(GOOD, "PYTHON"),
    "Python 3": fenced(GOOD, "Python 3"),
    "braces": fenced(GOOD, "{.python}"),
    "title": fenced(GOOD, 'python title="twice.py"'),
    "space before the tag": fenced(GOOD, " python"),
    "spaces behind the tag": fenced(GOOD, "python  "),
    "unknown tag": fenced(GOOD, "code"),
    "tildes": fenced(GOOD, "python", "~~~"),
    "four backticks": fenced(GOOD, "python", "````"),
    "backticks inside": f"````python\n{GOOD}# ```\n````\n",
    "prose around": f"Here it is:\n\n{fenced(GOOD)}\nIt doubles x.",
    "usage after": f"{fenced(GOOD)}Use it so:\n{USAGE}",
    "usage before": f"{USAGE}{fenced(GOOD)}",
    "output after": f"{fenced(GOOD)}Output:\n{OUTPUT}",
    "usage and output": f"{fenced(GOOD)}{USAGE}{OUTPUT}",
    "first try, then better": f"{fenced(BAD)}That was wrong.\n{fenced(GOOD)}",
    "shell before": f"{fenced('pip install x', 'bash')}{fenced(GOOD)}",
    "CRLF": fenced(GOOD).replace("\n", "\r\n"),
    "CR": fenced(GOOD).replace("\n", "\r"),
    "in a list": "1. Write it:\n\n" + "".join(f"   {line}\n" for line in fenced(GOOD).splitlines()),
    "a list's item": "- " + "\n  ".join(fenced(GOOD).splitlines()),
    "indented fence, flush code": f"  {FENCE}python\n{GOOD}  {FENCE}\n",
    "cut off": f"{FENCE}python\n{GOOD}",
    "cut off without a tag": f"{FENCE}\n{GOOD}",
    "cut off after usage": f"{fenced(GOOD)}{FENCE}python\nprint(",
    "never closed, then another": f"{FENCE}python\n{BAD}\n{fenced(GOOD)}",
    "only closed": f"{GOOD}{FENCE}\nIt doubles x.",
    "only closed, a body": f"{BODY}{FENCE}\nIt doubles x.",
    "only closed, then usage": f"{GOOD}{FENCE}\nFor example:\n{USAGE}",
    "unfenced": GOOD,
    "prose before unfenced": f"Here is the function:\n\n{GOOD}",
    "prose after unfenced": f"{GOOD}\nThis function doubles x.\n",
    "prose around unfenced": f"From the task we see that x is doubled.\n{GOOD}\nIt's done.",
    "unfenced with an import": f"Sure!\nimport math\n\n{GOOD}",
    "body": BODY,
    "body in a fence": fenced(BODY),
    "body in a list's fence": "- " + "\n  ".join(fenced(BODY).splitlines()),
    "flush body": "return 2 * x\n",
    "flush body of lines": "y = x\ny = y + x\nreturn y\n",
    "body whose first line lost its spaces": "y = x\n    y = y + x\n    return y\n",
    "body with a block": "if x == 0:\n    return 0\nreturn 2 * x\n",
    "body whose first line lost its spaces, with a block": "for y in [x]:\n        return y + x\n",
    "body and prose": f"{BODY}\nThis doubles x, as asked.\n",
    "body with tabs": "\treturn 2 * x\n",
    "helper in an earlier block": fenced("def add(a, b): return a + b") + fenced("def twice(x): return add(x, x)"),
    "helper in a later block": fenced("def twice(x): return add(x, x)") + fenced("def add(a, b): return a + b"),
    "helper of a helper": f"{fenced('import operator')}{fenced('add = operator.add')}"
    f"{fenced('def twice(x): return add(x, x)')}",
    "constant in an earlier block": fenced("TWO = 2") + fenced("def twice(x): return TWO * x"),
    "decorated helper": fenced("import functools\n@functools.cache\ndef two(): return 2")
    + fenced("def twice(x): return two() * x"),
    "future": fenced(f"from __future__ import annotations\n\n{GOOD}"),
    "future in two blocks": f"{fenced('from __future__ import annotations')}{fenced(GOOD)}",
    "class beside it": fenced(f"class A:\n    def twice(self): return 0\n\n{GOOD}"),
    "a lambda": fenced("twice = lambda x: 2 * x\n"),
    "async beside it": fenced(f"async def other(): pass\n\n{GOOD}"),
    "head repeated": fenced(HEAD + BODY),
    "name of a helper begins alike": fenced(f"def twice_(x): return 0\n\n{GOOD}"),
    "inner function with that beginning": "    def twice_more(y): return y + x\n    return twice_more(x)\n",
}
WRONG = {
    "empty": "",
    "prose": "I cannot do this.",
    "empty block": fenced(""),
    "wrong": fenced(BAD),
    "right, then worse": f"{fenced(GOOD)}Or better:\n{fenced(BAD)}",
    "right in prose": "return 2 * x would do, but\n" + fenced(BAD),
    "syntax error": fenced("def twice(x:\n    return 2 * x\n"),
    "cut off in the body": f"{FENCE}python\ndef twice(x):\n    y = (",
    "other function": fenced("def double(x):\n    return 2 * x\n"),
    "method of a class": fenced("class A:\n    def twice(self, x): return 2 * x\n"),
    "inside another": fenced("def outer():\n    def twice(x): return 2 * x\n"),
    "usage alone": USAGE,
    "output alone": OUTPUT,
    "shell": fenced("echo twice", "bash"),
    "body of something else": "    return 3 * x\n",
    "flush and wrong": "return x\n",
    "helper that is nowhere": fenced("def twice(x): return add(x, x)\n"),
    "raises": fenced("raise ValueError\n" + GOOD),
    "commented out": fenced("# def twice(x):\n#     return 2 * x\n"),
    "in a string": fenced("'''\ndef twice(x):\n    return 2 * x\n'''\n"),
    "null": "\x00" + GOOD,
    "nest": "(" * 3_000,
}


def runs(reply: str) -> bool:
    """Whether the reply's program does what the head asks; these replies are ours, so they may run here."""
    program = complete(HEAD, extract(reply, "twice"), "twice")
    space: dict[str, object] = {"print": lambda *words: None}
    try:
        exec(compile(program, "program", "exec", dont_inherit=True), space)
        return space["twice"](3) == 6  # type: ignore[operator]
    except Exception:
        return False


def test_programs_of_replies() -> None:
    assert {name: runs(reply) for name, reply in RIGHT.items()} == dict.fromkeys(RIGHT, True)
    assert {name: runs(reply) for name, reply in WRONG.items()} == dict.fromkeys(WRONG, False)
    assert len(RIGHT) >= 60 and len(WRONG) >= 20


def test_without_a_name_the_last_python_is_taken() -> None:
    assert extract("x\n```python\na = 1\n```\ny\n```\nb = 2\n```") == "a = 1\n"
    assert extract("```\na = 1\n```\n```\nb = 2\n```\n```\n[out] 2\n```") == "b = 2\n"
    assert extract("```python\nopen end") == "open end\n"
    assert extract("just = 1") == "just = 1"
    assert extract("```js\nlet a = 1\n```") == "let a = 1\n"


def test_usage_is_not_carried_along() -> None:
    reply = fenced("import math\nassert False\nprint('hello')\n") + fenced("def twice(x): return math.floor(2 * x)\n")
    assert extract(reply, "twice") == "import math\ndef twice(x): return math.floor(2 * x)\n"
    clash = fenced(BAD) + fenced("def other(): return twice(1)\n") + fenced(GOOD)
    assert extract(clash, "twice") == GOOD


def test_future_comes_first_and_once() -> None:
    program = future_first("import os\nfrom __future__ import annotations\nx = 1\nfrom __future__ import annotations\n")
    assert program == "from __future__ import annotations\nimport os\nx = 1\n"
    text = complete(f"import os\n\n{HEAD}", f"from __future__ import annotations\n\n{GOOD}", "twice")
    assert text.startswith("from __future__ import annotations\nimport os\n")


def test_the_function_that_is_tested() -> None:
    assert entry_point_of(["assert add(1, 2) == 3"]) == "add"
    assert entry_point_of(["assert set(add([1])) == set()"]) == "add"
    assert entry_point_of(["assert len(helper(add(1))) == 2"], "def add(x): return [x]") == "add"
    assert entry_point_of(["assert True"]) is None and entry_point_of(["not python"]) is None
    assert defines("def f(): pass", "f") and not defines("def g(): pass\nf()", "f")
    assert defines("def f(:\n", "f") and not defines("x = (f(:\n", "f")


@pytest.mark.parametrize(
    "piece",
    ["```\n", "```python\n", "~~~\n", "- ```\n", "def f():\n", "import a\n", "a = b\n", "(", "    ", "def f(): pass\n",
     "x\n", "'", "@a\n", "```python\ndef f(): return g()\n```\n", "\t", "1. ", "# ", "\\\n"],
)  # fmt: skip
def test_any_reply_takes_little_time(piece: str) -> None:
    reply = (piece * 20_000)[: programs.LONGEST]
    began = time.process_time()
    for whole in (reply, f"def f():\n    pass\n{reply}", f"```python\n{reply}"):
        complete(HEAD, extract(whole, "f"), "f")
    assert time.process_time() - began < 20
