r"""Whether two answers are the same mathematics, as ``math-verify`` sees it.

The library reads LaTeX into SymPy and compares. It runs in a process of its own with limits on processor time and
memory, so that an answer like ``9^{9^{9^9}}`` is wrong soon and takes nothing with it. Around it stands only what it
does not read: words, the base of a number, clock times, and a few ways of setting LaTeX.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import re
import select
import subprocess
import sys
import threading
import time
from functools import lru_cache
from pathlib import Path

#: Characters of an answer that is compared as mathematics; a longer one is right only if it is the same text.
LONGEST = 500
_SECONDS = 3.0  # of processor time for one comparison
_PATIENCE = 120.0  # seconds for a reply, on a machine that is busy with other work
_NEEDS = "answers in mathematics are compared by math-verify: pip install 'wino-kernels[eval]'"

_CHARACTERS = str.maketrans(
    {"\u2212": "-", "\u2013": "-", "\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u00b0": r"^\circ "}
)
_TIDY = (
    (re.compile(r"\\\\\s?\[\s?-?[0-9.]{1,8}\s?(?:pt|em|ex|mm|cm|in|mu)\s?\]"), r"\\\\"),  # space after a matrix row
    (re.compile(r",\\!\s?"), ","),
    (re.compile(r"\\?\$|[\u20ac\u00a3\u00a5]|(?<!\\)\\(?:[()\[\]!]|(?:displaystyle|pounds)(?![a-zA-Z]))"), ""),
    (re.compile(r"\\varnothing(?![a-zA-Z])"), r"\\emptyset"),
    (re.compile(r"(?<![\w.}])([0-9]+(?:\.[0-9]+)?)[eE]([+-]?[0-9]{1,4})(?!\w)"), r"\1\\cdot10^{\2}"),
    (re.compile(r"(?<!\\)\\[,;: ]|~"), " "),
    (re.compile(r"(?<=[0-9]) (?=[0-9]{3}(?![0-9]))"), ""),  # thousands
    (re.compile(r"\b(cm|mm|km|ft|in|yd|mi|units?|inches|feet|meters)\s?\^\s?\{?[23]\}?$"), r"\1"),
)
_REPEATING = re.compile(r"([0-9]{0,30})\.([0-9]{0,30})\\overline\s?\{([0-9]{1,30})\}")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mbox)\s?\{([^{}]*)\}")
_SENTENCE = re.compile(r"\A\\(?:text|mbox)\s?\{([^{},]*)\}\Z")
_WORDS = re.compile(r"\(?[^\W\d_][^\W\d_ .'-]*(?:[ .'-]+[^\W\d_]+)*[.)]*")
_BASED = re.compile(r"([0-9A-Z]{1,60})_\{?([0-9]{1,2})\}?")
_CLOCK = re.compile(r"([0-9]{1,2}:[0-5][0-9])([ap]m)?")


def check_installed() -> None:
    """Raise ``ValueError`` unless ``math-verify`` is installed, with what it needs."""
    missing = [name for name in ("math_verify", "antlr4") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{_NEEDS} ({', '.join(missing)} missing)")


def same_mathematics(given: str, wanted: str) -> bool:
    """Whether ``given`` says the same as ``wanted``, the right answer.

    Units, currency signs and percent signs are not compared, as in the field; bases are. Decimals agree to six digits
    behind their leading zeros. Takes bounded time and memory, whatever the texts are.

    Raises:
        ValueError: ``math-verify`` is not installed.
    """
    given, wanted = _tidy(given), _tidy(wanted)
    return bool(given and wanted) and _same(given, wanted)


@lru_cache(4096)
def _same(given: str, wanted: str) -> bool:
    if "".join(given.split()) == "".join(wanted.split()):
        return True
    if max(len(given), len(wanted)) > LONGEST:
        return False
    said, right = _TEXT.sub(r"\1", given), _TEXT.sub(r"\1", wanted)
    if right != wanted and _plain(said) == _plain(right):
        return True
    if _WORDS.fullmatch(right) and (right != wanted or re.search(r"[^\W\d_]{4}", right)):
        if _plain(said) == _plain(right):
            return True
        if _WORDS.fullmatch(said):
            return False
    based = [_based(said), _based(right)]
    if based[0] or based[1]:
        return _same_based(said, based[0], right, based[1])
    clocks = [_CLOCK.fullmatch(_plain(text).replace(" ", "")) for text in (said, right)]
    if clocks[0] and clocks[1]:
        return clocks[0][1] == clocks[1][1] and len({clock[2] for clock in clocks if clock and clock[2]}) < 2
    return _WORKER.same(*(_SENTENCE.sub(r"\1", text) for text in (wanted, given)))


def _tidy(text: str) -> str:
    if len(text) > 2 * LONGEST:
        return text
    text = text.translate(_CHARACTERS)
    for pattern, meant in _TIDY:
        text = pattern.sub(meant, " ".join(text.split()))
    return _REPEATING.sub(_fraction, text).strip().rstrip(".").strip()


def _fraction(repeating: re.Match[str]) -> str:
    r"""``0.1\overline{6}`` as a fraction."""
    whole, first, period = repeating.groups()
    above, below = int(whole + first + period) - int(f"0{whole}{first}"), (10 ** len(period) - 1) * 10 ** len(first)
    return rf"\frac{{{above}}}{{{below}}}"


def _plain(text: str) -> str:
    """Words alone: no case, no stops, no parentheses around them."""
    return " ".join(re.sub(r"[.()]", "", text).lower().split())


def _based(text: str) -> tuple[str, int] | None:
    """Digits and base of a number like ``4210_5``."""
    match = _BASED.fullmatch("".join(text.split()))
    if match is None or not 2 <= int(match[2]) <= 36 or any(int(digit, 36) >= int(match[2]) for digit in match[1]):
        return None
    return match[1], int(match[2])


def _same_based(said: str, given: tuple[str, int] | None, right: str, wanted: tuple[str, int] | None) -> bool:
    if given and wanted:
        return given == wanted
    if wanted:  # the question named the base
        return "".join(said.split()) == wanted[0]
    assert given is not None
    return right.isdecimal() and int(right) == int(*given)


class _Worker:
    """The process that compares: started when first asked, and again after one that was ended."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """A fork's child has neither the process nor who held the lock."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        file = str(Path(__file__).with_name("mathematics_worker.py"))
        code = "import runpy, sys; sys.path[:] = sys.argv[2:]; runpy.run_path(sys.argv[1], run_name='__main__')"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, file, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONHASHSEED": "0"},  # one order of sets, one verdict
            bufsize=0,
        )
        said = self._line()
        if said != "ready":
            self.stop()
            raise ValueError(f"{_NEEDS} ({said or 'its process ended at once'})")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def same(self, wanted: str, given: str) -> bool:
        with self._lock:
            self._start()
            assert self._process is not None and self._process.stdin is not None
            try:
                self._process.stdin.write(json.dumps([wanted, given, _SECONDS]).encode() + b"\n")
                said = self._line()
            except BrokenPipeError:
                said = ""
            except BaseException:  # interrupted: a late reply would be taken for the next one's
                self.stop()
                raise
            if said not in ("0", "1"):
                self.stop()
            return said == "1"

    def _line(self) -> str:
        """What the process says next; "" if it ended or takes too long."""
        assert self._process is not None and self._process.stdout is not None
        said, until = b"", time.monotonic() + _PATIENCE
        while not said.endswith(b"\n"):
            left = until - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                return ""
            more = self._process.stdout.read(4096)
            if not more:
                return ""
            said += more
        return said.decode().strip()


_WORKER = _Worker()
atexit.register(_WORKER.stop)
os.register_at_fork(after_in_child=_WORKER.forget)
