"""Read an answer out of a model's text, which is parsed, never evaluated: any string is safe and takes little time."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from fractions import Fraction

#: Characters of a text that is looked at, from its end.
LONGEST = 20_000
_DIGITS = 40  # of a number that is compared
_EXPRESSION = 200  # characters of an expression that is parsed

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2013\u2012\ufe63\uff0d", "-"),
        **dict.fromkeys("\u00a0\u202f\u2009\u2007", " "),
        **dict.fromkeys("\u00d7\u22c5\u00b7\u2217\u2219\u2715", "*"),
        **dict.fromkeys("\u00f7\u2215\u2044", "/"),
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
    }
)
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s?\{([^{}]*)\}")
_SPACING = re.compile(r"(?<!\\)\\(?:[,;: ]|q?quad(?![a-zA-Z]))|~")
_DRESS = re.compile(r"\\?\$|[\u20ac\u00a3\u00a5]|(?<!\\)\\(?:[()\[\]!%]|(?:left|right|displaystyle)(?![a-zA-Z]))")
_SIGNS = ((r"\times", "*"), (r"\cdot", "*"), (r"\ast", "*"), (r"\div", "/"), (r"\over ", "/"))
_FRACTION = re.compile(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_SHORT_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([0-9]+)\}|([0-9]))\s*(?:\{([0-9]+)\}|([0-9]))")
_EXPONENT = re.compile(r"(?<=[a-zA-Z])\s?\^\s?\{?-?[0-9]+\}?")  # of a unit
_POWER_OF_TEN = re.compile(r"\s?\*\s?10\s?\^\s?\{?\s?([+-]?[0-9]{1,3})\s?\}?")
#: Digits with what may stand in a number, and a fraction's denominator.
_RUN = re.compile(
    r"(?P<sign>(?<![\w)\]}.%])-|(?:\A|(?<=[=:(])|(?<=[=:(] ))- )?(?:(?P<whole>[0-9]{1,9}) +(?=[0-9]{1,9}/[0-9]))?"
    r"(?P<run>\.?[0-9][0-9.,]*)(?P<ten>[eE][+-]?[0-9]+)?(?P<below> ?/ ?[0-9][0-9.,]*)?"
)
_NUMBER = re.compile(r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+")


def boxed(text: str) -> str | None:
    r"""Contents of the last ``\boxed{...}`` whose braces are balanced; None without one."""
    text = text[-LONGEST:]
    open_braces: list[int] = []
    closing: dict[int, int] = {}  # of each brace that is closed
    for brace in re.finditer(r"(?<!\\)[{}]", text):
        if brace[0] == "{":
            open_braces.append(brace.start())
        elif open_braces:
            closing[open_braces.pop()] = brace.start()
    boxes = [box.end() - 1 for box in re.finditer(r"\\f?boxed\s?\{", text) if box.end() - 1 in closing]
    return text[boxes[-1] + 1 : closing[boxes[-1]]] if boxes else None


def tagged(text: str, tag: str = "answer") -> str | None:
    """What stands in the last ``<answer>...</answer>``, to the text's end if it is not closed; None without one."""
    text = text[-LONGEST:]
    start = text.rfind(f"<{tag}>")
    return None if start < 0 else text[start + len(tag) + 2 :].partition(f"</{tag}>")[0]


def unwrapped(text: str) -> str:
    r"""``text`` with what ``\text{...}`` and its like hold in their place."""
    return _TEXT.sub(r"\1", text)


def number(text: str) -> Fraction | None:
    """The last number in ``text``; None without one, or if it cannot be read (``1.500,00``, or too many digits).

    Thousands may be set apart by commas or LaTeX's spaces; fractions, mixed numbers and powers of ten count as one
    number; signs of currency and the exponents of units as none.
    """
    found = _numbers(text)
    return found[-1] if found else None


def final_number(text: str) -> Fraction | None:
    """The number a solution ends in: in its last box, behind the last ``####``, or the last one.

    A box says one number, with or without words, or an expression; one with several different numbers says none.
    """
    inside = boxed(text)
    if inside is not None:
        return _settled(inside)
    _, mark, behind = text[-LONGEST:].rpartition("####")
    if mark and behind.strip():
        line = behind.strip().splitlines()[0]
        found = _numbers(line)
        begins = re.match(r"[^\w]*[0-9]", line)
        return found[0] if begins and found else _settled(line)
    return number(text)


def _settled(text: str) -> Fraction | None:
    """The one number that a short text says."""
    text = re.split(r"=|\\approx", text)[-1].strip()
    value = None if re.search(r"[0-9]\s*\\[dtc]?frac", text) else expression(text)  # a mixed number
    if value is not None:
        return value[0]
    text = re.sub(r"(?<![0-9.,])[0-9]{1,3}(?: [0-9]{3})+(?![0-9])", lambda part: part[0].replace(" ", ""), text)
    found = set(_numbers(text))
    return found.pop() if len(found) == 1 else None


def _numbers(text: str) -> list[Fraction | None]:
    text = text[-LONGEST:].translate(_CHARACTERS)
    text = _TEXT.sub(r" \1", _DRESS.sub("", text.replace(r"\!", "").replace("{,}", ",")))
    for written, meant in _SIGNS:
        text = text.replace(written, meant)
    text = re.sub(r"(?<=[0-9])\\[,;: ](?=[0-9]{3}(?![0-9]))", "", text)
    text = _SPACING.sub(" ", text)
    text = _POWER_OF_TEN.sub(r"e\1", _EXPONENT.sub("", re.sub(r"(?<![\w.*] )(?<![\w.*])10\s?\^", "1*10^", text)))
    text = _SHORT_FRACTION.sub(lambda part: f" {part[1] or part[2]}/{part[3] or part[4]} ", text)
    text = re.sub(r"(?<![0-9)] )- (?=[0-9]+/)", "-", text)
    return [_value_of(run) for run in _RUN.finditer(text)]


def _value_of(run: re.Match[str]) -> Fraction | None:
    parts = [run["run"].rstrip(".,"), (run["below"] or "/1").strip()[1:].strip().rstrip(".,")]
    if len(run[0]) > _DIGITS or any(_NUMBER.fullmatch(part) is None for part in parts):
        return None
    above, below = (Fraction(part.replace(",", "").rstrip(".")) for part in parts)
    ten = int((run["ten"] or "e0")[1:])
    if below == 0 or abs(ten) > _DIGITS:
        return None
    value = (int(run["whole"] or 0) + above / below) * Fraction(10) ** ten
    return -value if run["sign"] else value


def expression(text: str) -> tuple[Fraction, list[int]] | None:
    """Value of an arithmetic expression and the integers in it; None if it is anything but + - * / of integers.

    LaTeX's ways of writing them are read, and products without a sign: ``6/2(3)`` is 9, from left to right.
    """
    text = text.strip()[: 4 * _EXPRESSION].translate(_CHARACTERS)
    text = _SPACING.sub(" ", _DRESS.sub("", unwrapped(text))).strip().rstrip(".")
    for written, meant in _SIGNS:
        text = text.replace(written, meant)
    text = re.sub(r"(?:(?<=[1-9)])|(?<=[0-9]0)) ?x ?(?=[0-9(])", "*", text)  # 0x10 is no product
    text = _SHORT_FRACTION.sub(lambda part: f"(({part[1] or part[2]})/({part[3] or part[4]}))", text)
    while (simpler := _FRACTION.sub(r"((\1)/(\2))", text)) != text:
        text = simpler
    text = text.translate(str.maketrans("{}[]", "()()"))
    if len(text) > _EXPRESSION or not re.fullmatch(r"[0-9+\-*/() ]+", text) or "**" in text or "//" in text:
        return None
    text = re.sub(r"(?<=\)) *(?=[0-9(])|(?<=[0-9]) *(?=\()", "*", text)
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        numbers: list[int] = []
        return _value(tree, numbers), numbers
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _value(node: ast.AST, numbers: list[int]) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int and node.value < 10**12:
        numbers.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand, numbers)
        return -value if isinstance(node.op, ast.USub) else value
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
    """Whether ``text`` has an expression that makes ``target`` of each of ``numbers`` exactly once.

    It may stand in an equation, ``64 = ...`` or ``... = 64``, if all of its sides are expressions of that value.
    """
    if len(text) > 8 * _EXPRESSION:
        return False
    sides = [expression(side) for side in text.split("=")]
    if any(side is None or side[0] != target for side in sides):
        return False
    return any(side is not None and sorted(side[1]) == sorted(numbers) for side in sides)


_LABEL = re.compile(r"\b(?:[Rr]ow|ROW)\s*[1-4]\s*[:.)]|\\(?:hline|begin|end|quad|text)(?:\{[^{}]*\})*")
_GRID = re.compile(r"(?<![0-9])[0-9](?:[\s|,;:&+*\[\](){}\\'\"`_-]*[0-9])*")


def grid(text: str, cells: int = 16) -> str | None:
    """The digits of the last grid of ``cells`` cells in ``text``, in its last answer tag if there is one.

    Cells may stand together, in rows, in a table, or as lists; None without a run of so many digits.
    """
    inside = tagged(text)
    part = _LABEL.sub(" ", text[-LONGEST:] if inside is None else inside)
    runs = [(run.end(), re.sub(r"[^0-9]", "", run[0])) for run in _GRID.finditer(part)]
    runs += [(run.end(), run[0]) for run in re.finditer(rf"(?<![0-9])[0-9]{{{cells}}}(?![0-9])", part)]
    found = [run for run in sorted(runs) if len(run[1]) == cells]
    return found[-1][1] if found else None


_PLAIN = re.compile(r"[^\w\s.+-]|\.(?!\d)")
_CUE = re.compile(
    r"\b(?:answer|(?:correct|right|best)\s+(?:option|choice|letter|one))(?:\s+(?:is|would\s+be|should\s+be|must\s+be)\b"
    r"\s?:?|\s?[:=])\s*(?:(?:therefore|thus|clearly|definitely|probably|likely)\b,?\s*)?",
    re.IGNORECASE,
)
_NAMED = re.compile(r"(?:the\s+)?(?:option|choice|letter|answer)\b\s?:?\s*", re.IGNORECASE)
_DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|never|cannot|except|neither|nor|instead\s+of|rather\s+than|rules?\s+out|eliminates?)|n['\u2019]t)"
    r"(?:\s+be)?\s+(?:the\s+)?(?:(?:option|choice|letter|answer)\s+)?\(?\Z",
    re.IGNORECASE,
)
_DENIED_BEHIND = re.compile(
    r"\)?\s*(?:(?:is|would\s+be|must\s+be)\s+(?:\w+ly\s+)?(?:not|wrong|incorrect|false|ruled\s+out)\b|isn['\u2019]t\b"
    r"|can(?:not|['\u2019]t)\b)",
    re.IGNORECASE,
)
_REASON = re.compile(r"\s+(?:because|since|as|is|was|due)\b")
_MARKUP = str.maketrans("", "", '*_`$"\u201c\u201d')


def plain(text: str) -> str:
    """Words and numbers of a text, in lower case."""
    return " ".join(_PLAIN.sub(" ", text[:LONGEST].lower()).split())


def letter(text: str, labels: Sequence[str], options: Sequence[str] = ()) -> str | None:
    """The label of the option a text settles on; None where it names none, or more than one.

    Looked at is the last box, else the last answer tag, else what follows the last "answer is" or "answer:", else the
    label that begins a line or is all of it, else the only letter that stands alone and is not denied ("not B"). The
    words of an option count as its label.
    """
    inside = boxed(text)
    if inside is None:
        inside = tagged(text)
    if inside is not None:
        return _chosen(inside[:LONGEST], labels, options)
    text = text[-LONGEST:].translate(_MARKUP).strip()
    *_, cue = [None, *_CUE.finditer(text)]
    if cue is not None:
        return _chosen(text[cue.end() :].partition("\n")[0], labels, options)
    if "\n" not in text:
        found = _chosen(text, labels, options)
        if found is not None:
            return found
    names = "|".join(map(re.escape, labels))
    begun = set(re.findall(rf"^[ \t]*\(?({names})(?:[).:](?!\w)|[ \t]*$)", text, re.MULTILINE))
    if len(begun) == 1:
        return str(begun.pop())
    letters = "|".join(label for label in labels if label.isalpha())
    for option in options:  # "Vitamin D" does not name option D
        if letters and re.search(rf"(?<!\w)(?:{letters})(?!\w)", option):
            text = re.sub(re.escape(option), " ", text, flags=re.IGNORECASE)
    alone = {
        name[1]
        for name in (re.finditer(rf"(?<![\w'.])({letters})(?![\w'])", text) if letters else ())
        if not (name[1] in "AI" and _is_a_word(text, name)) and not _is_denied(text, name)
    }
    return alone.pop() if len(alone) == 1 else None


def _is_denied(text: str, name: re.Match[str]) -> bool:
    before, behind = text[max(0, name.start() - 40) : name.start()], text[name.end() : name.end() + 40]
    return _DENIED_BEFORE.search(before) is not None or _DENIED_BEHIND.match(behind) is not None


def _is_a_word(text: str, name: re.Match[str]) -> bool:
    """Whether an A or I before a small letter begins a sentence."""
    before = text[max(0, name.start() - 3) : name.start()].rstrip(" ")
    return re.match(r" (?!or |and |because |is )[a-z]", text[name.end() : name.end() + 10]) is not None and before[
        -1:
    ] in (
        "",
        ".",
        "!",
        "?",
        "\n",
        ":",
    )


def _chosen(part: str, labels: Sequence[str], options: Sequence[str]) -> str | None:
    """The label that a short text says."""
    part = re.sub(r"\\[()\[\],;:! ]", " ", unwrapped(part)).translate(_MARKUP).strip()
    cue = _CUE.search(part) or _NAMED.match(part)
    part = part[cue.end() :] if cue else part
    of_name = {label.lower(): label for label in labels}
    names = "|".join(map(re.escape, of_name))
    said = plain(part)
    worded = [label for label, option in zip(labels, options, strict=False) if said and plain(option) == said]
    begun = re.match(rf"[(\[]?\s?({names})(?![\w'])(\s?[)\].:]+)?", part, re.IGNORECASE)
    if begun is not None and not (begun[2] and re.match(r"\w", part[begun.end() :])):
        label, rest = of_name[begun[1].lower()], part[begun.end() :]
        if _DENIED_BEHIND.match(rest):
            return None
        also = re.match(rf"\s*(?:(?:and|or|[,/&;+])\s*)+[(\[]?({names})(?![\w'])", rest, re.IGNORECASE)
        if also is not None and of_name[also[1].lower()] != label and (also[1] in labels or rest[: also.end()] == rest):
            return None
        if begun[2] or not rest.strip():
            return label
        if not worded and begun[1] in labels:
            own = dict(zip(labels, options, strict=False)).get(label)
            if own is not None and plain(own) == plain(rest):
                return label
            if re.match(r"\s*[,;-]", rest) or _REASON.match(rest):
                return label
            return label if label.isalpha() and label not in "AI" else None
    if len(worded) == 1:
        return worded[0]
    behind = re.search(rf"[(\[]({names})[)\]]\.?$", part, re.IGNORECASE)
    return of_name[behind[1].lower()] if behind is not None else None
