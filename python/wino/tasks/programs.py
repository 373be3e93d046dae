"""Take a program out of a model's reply, and put it together with what it was asked to complete; nothing is run."""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

#: Characters of a reply that are looked at, from its beginning.
LONGEST = 20_000
_STARTS, _CUTS = 10, 5  # lines tried as the first of a program, and cuts of what is no Python
_FENCE = re.compile(
    r"^(?P<lead>[ \t]*(?:(?:[-*+]|[0-9]{1,3}[.)])[ \t]+)?)(?P<fence>`{3,}|~{3,})[ \t]*(?P<tag>[^`\n]*)$"
)
_PYTHON = ("py", "ipython", "sage")
_START = re.compile(r"^[ \t]*(?:def|class|import|from|async def)[ \t]+\w|^[ \t]*@\w|^[ \t]*[A-Za-z_]\w*[ \t]*=[ \t]*\S")


@dataclass(frozen=True)
class _Block:
    tag: str  # the first word behind the fence, in small letters
    text: str


def extract(reply: str, entry_point: str | None = None) -> str:
    """The program in a reply: a fenced block, or the reply itself without the prose around its code.

    Of several blocks it is the last that defines ``entry_point``; without one, the last that is Python. What that block
    needs from the others (imports, helpers, classes, constants) goes before it; usage examples and outputs do not.

    Args:
        reply: a model's text; fences may be of backticks or tildes, indented, in a list, unclosed, or only closed.
        entry_point: the function that the program has to define.
    """
    text = reply[:LONGEST].replace("\r\n", "\n").replace("\r", "\n")
    blocks = _blocks(text)
    if not blocks:
        return _without_prose(text, entry_point)
    python = [block for block in blocks if block.tag.startswith(_PYTHON)]
    python = python or [block for block in blocks if not block.tag and _parsed(block.text)] or blocks
    chosen = next((b for b in reversed(blocks) if entry_point and defines(b.text, entry_point)), python[-1])
    return _with_needs(chosen, [block for block in blocks if block is not chosen])


def complete(head: str, code: str, entry_point: str) -> str:
    """The program of an answer to "complete ``head``", which ends in the signature of ``entry_point``.

    An answer with the whole function stands behind the head, whose imports and helpers it may use; one that is only a
    body continues it. ``from __future__`` lines come first.
    """
    return future_first(f"{head.rstrip()}\n    pass\n\n{code}" if defines(code, entry_point) else continued(head, code))


def continued(head: str, code: str) -> str:
    """``head`` with the body ``code``, indented as a body is, without the words that may follow it."""
    head = head.rstrip() + "\n"
    code = re.sub(r"^\t+", lambda tabs: "    " * len(tabs[0]), code, flags=re.MULTILINE)
    first, _, rest = code.lstrip("\n").partition("\n")
    bodies = [code.lstrip("\n")]
    if not first.startswith((" ", "\t")):
        whole, line = textwrap.indent(code, "    "), f"    {first}\n{rest}"
        flush = any(line.strip() and not line.startswith((" ", "\t")) for line in rest.split("\n"))
        bodies = [whole, line] if flush else [line, whole]
    parsed = [body for body in bodies if _fault(head + body) is None]
    return head + parsed[0] if parsed else max((_longest(head + body) for body in bodies), key=len)


def future_first(program: str) -> str:
    """``program`` with its ``from __future__`` lines at the top, where alone Python takes them."""
    lines = program.splitlines()
    future = [line for line in lines if re.match(r"from __future__ import [\w, ()]+$", line)]
    return "\n".join([*dict.fromkeys(future), *(line for line in lines if line not in future)]) + "\n"


def defines(code: str, name: str) -> bool:
    """Whether ``code`` has a function ``name`` that is not inside another or a class."""
    tree = _parsed(code)
    if tree is None:
        return re.search(rf"^(?:async )?def {re.escape(name)}\s*\(", textwrap.dedent(code), re.MULTILINE) is not None
    return any(name in _bound(statement) for statement in tree.body)


def entry_point_of(tests: Sequence[str], solution: str = "") -> str | None:
    """The function that assertions are about: the first they call that ``solution`` defines, or that is not Python's
    own; None if they call none."""
    called = [
        node.func.id
        for test in tests
        for node in ast.walk(_parsed(test) or ast.Module([], []))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    own = [name for name in called if defines(solution, name)]
    return next(iter(own or [name for name in called if not hasattr(builtins, name)]), None)


def _blocks(text: str) -> list[_Block]:
    blocks: list[_Block] = []
    lines = text.split("\n")
    opened: re.Match[str] | None = None
    first = end = 0  # of the block's lines; behind the last fence
    for number, line in enumerate(lines):
        fence = _FENCE.match(line)
        if fence is None:
            continue
        if opened is None:
            opened, first = fence, number + 1
        elif fence["fence"].startswith(opened["fence"]) and not fence["tag"].strip():
            blocks.append(_block(opened, lines[first:number]))
            opened, end = None, number + 1
        elif fence["tag"].lower().startswith(_PYTHON) and fence["fence"][0] == opened["fence"][0]:
            blocks.append(_unclosed(opened, lines[end : first - 1], lines[first:number]))
            opened, first = fence, number + 1
    if opened is not None:
        blocks.append(_unclosed(opened, lines[end : first - 1], lines[first:]))
    return [block for block in blocks if block.text.strip()]


def _unclosed(fence: re.Match[str], before: list[str], after: list[str]) -> _Block:
    """The block of a fence without a partner: what it closes, if a fence in the prompt had opened that; else what it
    opens."""
    code = "\n".join(before)
    return (
        _Block("python", code) if not fence["tag"].strip() and code.strip() and _is_code(code) else _block(fence, after)
    )


def _block(fence: re.Match[str], lines: list[str]) -> _Block:
    """A block without the indentation of its fence, which a list gives it."""
    deep = min([len(fence["lead"]), *(len(line) - len(line.lstrip(" \t")) for line in lines if line.strip())])
    tag = (fence["tag"].strip().lower().split() or [""])[0].strip("{}.")
    return _Block(tag, "\n".join(line[deep:] if line.strip() else "" for line in lines) + "\n")


def _is_code(text: str) -> bool:
    """Whether prose is unlikely: it is Python, as it is or as the body of a function."""
    return _parsed(text) is not None or _parsed(f"def f():\n{text}") is not None or _parsed(_body(text)) is not None


def _body(text: str) -> str:
    return "def f():\n    " + text.lstrip("\n")


def _with_needs(chosen: _Block, others: list[_Block]) -> str:
    tree = _parsed(chosen.text)
    if tree is None:
        return chosen.text
    bound = {name for statement in tree.body for name in _bound(statement)}
    used = _used(tree.body)
    others_said = [
        (_bound(statement), statement, _source(block.text, statement))
        for block in others
        for statement in getattr(_parsed(block.text), "body", [])
    ]
    needed: dict[int, str] = {}
    grown = True
    while grown:  # what is needed needs more
        grown = False
        for number, (names, statement, source) in reversed(list(enumerate(others_said))):
            if number not in needed and names & used - bound:
                needed[number] = source
                bound |= names
                used |= _used([statement])
                grown = True
    return "\n".join([*(needed[number] for number in sorted(needed)), chosen.text]) if needed else chosen.text


def _source(text: str, statement: ast.stmt) -> str:
    decorators = getattr(statement, "decorator_list", [])
    first = min([statement.lineno, *(decorator.lineno for decorator in decorators)])
    return "\n".join(textwrap.dedent(text).split("\n")[first - 1 : statement.end_lineno])


def _bound(statement: ast.stmt) -> set[str]:
    """Names that a statement of a module gives, if running it does nothing else that an answer is not asked for."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in statement.names}
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return set()


def _used(statements: Iterable[ast.stmt]) -> set[str]:
    return {node.id for statement in statements for node in ast.walk(statement) if isinstance(node, ast.Name)}


def _without_prose(text: str, entry_point: str | None) -> str:
    """The Python of a reply without fences, from its first line that may be Python to the last that is."""
    if _is_code(text):
        return text
    lines = text.split("\n")
    starts = [number for number, line in enumerate(lines) if _START.match(line)][:_STARTS]
    found = [kept for start in starts if (kept := _longest(textwrap.dedent("\n".join(lines[start:])))).strip()]
    return next((kept for kept in found if entry_point and defines(kept, entry_point)), found[0] if found else text)


def _longest(text: str) -> str:
    """The longest beginning of ``text`` that is Python, give or take: cut where the parser stops."""
    for _ in range(_CUTS):
        error = _fault(text)
        if error is None:
            return text
        lines = text.split("\n")
        cut = min((error.lineno or 1) - 1, len(lines) - 1)
        text = "\n".join(lines[:cut]).rstrip("\n") + "\n"
        if cut <= 0:
            return ""
    return ""


def _fault(text: str) -> SyntaxError | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except SyntaxError as error:
        return error
    except (ValueError, RecursionError, MemoryError) as error:
        return SyntaxError(str(error))
    return None


def _parsed(text: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(textwrap.dedent(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
