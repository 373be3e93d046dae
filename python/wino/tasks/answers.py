"""Read an answer out of a model's text, which is parsed, never evaluated: any string is safe and takes little time."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from fractions import Fraction

#: Characters of a text that are looked at, from its end.
LONGEST = 20_000
_NUMBER = re.compile(r"-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|-?\.[0-9]+")
_DIGITS = 40  # of a number that is compared
_EXPRESSION = 200  # characters of an expression that is parsed
_SIGNS = {"\\times": "*", "\\cdot": "*", "\\div": "/", "\u00d7": "*", "\u00f7": "/", "\u2212": "-"}


def boxed(text: str) -> str | None:
    r"""Contents of the last ``\boxed{...}`` whose braces are balanced; None without one."""
    text = text[-LONGEST:]
    open_braces: list[int] = []
    closing: dict[int, int] = {}  # of each brace that is closed
    for brace in re.finditer("[{}]", text):
        if brace[0] == "{":
            open_braces.append(brace.start())
        elif open_braces:
            closing[open_braces.pop()] = brace.start()
    boxes = [box.end() - 1 for box in re.finditer(r"\\boxed\{", text) if box.end() - 1 in closing]
    return text[boxes[-1] + 1 : closing[boxes[-1]]] if boxes else None


def tagged(text: str, tag: str = "answer") -> str | None:
    """What stands in the last ``<answer>...</answer>``, to the text's end if it is not closed; None without one."""
    text = text[-LONGEST:]
    start = text.rfind(f"<{tag}>")
    return None if start < 0 else text[start + len(tag) + 2 :].partition(f"</{tag}>")[0]


def number(text: str) -> Fraction | None:
    """The last number in ``text``, thousands separated by commas or not; None without one or with too many digits."""
    found = _NUMBER.findall(text[-LONGEST:])
    if not found or len(found[-1]) > _DIGITS:
        return None
    return Fraction(found[-1].replace(",", ""))


def final_number(text: str) -> Fraction | None:
    """The number a solution ends in: in its last box, behind the last ``####``, or the last one."""
    inside = boxed(text)
    if inside is not None:
        return number(inside)
    _, mark, behind = text[-LONGEST:].rpartition("####")
    return number(behind.splitlines()[0] if mark and behind.strip() else text)


def expression(text: str) -> tuple[Fraction, list[int]] | None:
    """Value of an arithmetic expression and the integers in it; None if it is anything but + - * / of integers."""
    text = text.strip()[: _EXPRESSION + 1].rstrip(".")
    for written, meant in _SIGNS.items():
        text = text.replace(written, meant)
    if len(text) > _EXPRESSION or not re.fullmatch(r"[0-9+\-*/() ]+", text) or "**" in text or "//" in text:
        return None
    try:
        tree = ast.parse(text, mode="eval").body
        numbers: list[int] = []
        return _value(tree, numbers), numbers
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _value(node: ast.AST, numbers: list[int]) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int and node.value < 10**12:
        numbers.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, numbers)
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, numbers), _value(node.right, numbers)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult):
            return left * right
        if isinstance(node.op, ast.Div):
            return left / right
    raise ValueError("not an arithmetic expression")


def reaches(text: str, numbers: Sequence[int], target: int) -> bool:
    """Whether the expression in ``text`` makes ``target`` of each of ``numbers`` exactly once."""
    found = expression(text.partition("=")[0])
    return found is not None and found[0] == target and sorted(found[1]) == sorted(numbers)


def letter(text: str, choices: Sequence[str]) -> str | None:
    """The option a text settles on: in a box or tag, as "answer is B", or a letter standing alone; None if unclear."""
    options = "".join(re.escape(choice) for choice in choices)
    for part in (boxed(text), tagged(text)):
        if part is not None:
            found = re.findall(rf"(?<![A-Za-z0-9])([{options}])(?![A-Za-z0-9])", part)
            return found[-1] if found else None
    text = text[-LONGEST:]
    said = re.findall(rf"[Aa]nswer(?:\s+is)?\s*:?\s*\(?([{options}])(?![A-Za-z0-9])", text)
    if said:
        return said[-1]
    alone = re.findall(rf"(?<![A-Za-z0-9'])([{options}])(?![A-Za-z0-9'])", text)
    return alone[0] if len(set(alone)) == 1 else None


def code(text: str) -> str:
    """The program in a reply: the last fenced block, or the whole text without one."""
    blocks = re.findall(r"```(?:[Pp]ython|py)?[ \t]*\n(.*?)(?:```|\Z)", text[:LONGEST], re.DOTALL)
    return blocks[-1] if blocks else text[:LONGEST]
