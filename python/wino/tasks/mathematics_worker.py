"""Compares answers for :mod:`wino.tasks.mathematics`, in a process of its own that imports nothing of ``wino``.

Reads a line of JSON ``[wanted, given, seconds]``, writes ``1`` or ``0``. A comparison that takes more than its
processor time ends the process, which no exception handler of a library can keep from happening.
"""

from __future__ import annotations

import contextlib
import json
import math
import resource
import signal
import sys

_MEMORY = 2 << 30
_PLACES = 6


def main() -> None:
    with contextlib.suppress(ValueError, OSError):  # the system has no such limit, or a lower one
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    import logging

    try:
        from math_verify import LatexExtractionConfig, parse, verify
        from sympy import Float
    except ImportError as error:
        print(str(error).splitlines()[0], flush=True)
        return
    logging.disable(logging.CRITICAL)
    latex = [LatexExtractionConfig(boxed_match_priority=0)]

    def same(wanted: str, given: str) -> bool:
        # Without the library's own time limits: they are signals, which hide errors as verdicts.
        gold, answer = (
            parse(rf"\boxed{{{text}}}", latex, fallback_mode="no_fallback", parsing_timeout=None)
            for text in (wanted, given)
        )
        if not gold or not answer:
            return False
        # The library rounds decimals to places; small ones need as many digits as others.
        found = [abs(float(number)) for side in (*gold, *answer) for number in side.atoms(Float)]
        smallest = min((size for size in found if 0 < size < 1), default=1.0)
        places = _PLACES - 1 - math.floor(math.log10(smallest)) if smallest < 0.1 else _PLACES
        return verify(gold, answer, float_rounding=places, allow_set_relation_comp=True, timeout_seconds=None)

    print("ready", flush=True)
    for line in sys.stdin:
        wanted, given, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            verdict = same(wanted, given)
        except Exception:  # nothing that the library can read
            verdict = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(int(verdict), flush=True)


if __name__ == "__main__":
    main()
