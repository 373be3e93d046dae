"""Run a program that a model wrote, and the tests that judge it, where neither reaches this machine or the other.

Two processes in two sandboxes. The tester runs the tests of the data set; the functions of the program are stand-ins
there, and every call of one goes to the process that runs the program, and comes back, as plain data
(:mod:`~wino.tasks.execution.guest.wire`). What the tests compare is what the tester built itself, so an object that
claims to be equal to everything is equal to nothing. The verdict leaves by a pipe that the program's process does not
have. :mod:`~wino.tasks.execution.sandbox` says what a sandbox is; SECURITY.md what is promised and what is not.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
from collections.abc import Sequence

from .sandbox import Means, Sandbox, find_means, watch

__all__ = ["Means", "find_means", "passes"]

_SECONDS = 10


def passes(
    program: str,
    tests: str,
    *,
    names: Sequence[str] | None = None,
    helpers: Sequence[str] = (),
    before: Sequence[str] = (),
    seconds: float = _SECONDS,
    means: Means | None = None,
) -> bool:
    """Whether ``tests`` run to their very end, without an exception, against ``program``.

    Args:
        program: the candidate's source.
        tests: statements that call it. A list, dict or set that the program changes in place is changed for them too.
        names: what the tests use of the program, all of which it has to define; ``None``: every name of theirs that
            neither they, nor ``helpers``, nor Python define. One that begins with a capital is taken for a class.
        helpers: sources that are run before the tests, in their process.
        before: sources that are run before the program, in its process; what fails of them is passed over.
        seconds: of wall time, for everything.
        means: of isolation, by default the best that this machine has.

    Whatever goes wrong is the program's failure; only a machine without isolation raises, ``ValueError``.
    """
    means = means or find_means()
    nonce = secrets.token_hex(16)
    judged = {"tests": tests, "names": None if names is None else list(names), "before": list(helpers), "nonce": nonce}
    try:
        with contextlib.ExitStack() as stack:
            ends = [stack.enter_context(end) for end in socket.socketpair()]
            reader, writer = os.pipe()
            verdict = stack.enter_context(os.fdopen(reader, "rb", buffering=0))
            writing = stack.enter_context(os.fdopen(writer, "wb", buffering=0))
            core = secrets.randbelow(1 << 16)
            tester = stack.enter_context(
                Sandbox(means, "tester", json.dumps(judged), seconds, core, ends[0].fileno(), writer)
            )
            tested = {"source": program, "before": list(before)}
            candidate = stack.enter_context(
                Sandbox(means, "candidate", json.dumps(tested), seconds, core, ends[1].fileno())
            )
            for end in ends:
                end.close()
            writing.close()
            return watch(verdict, [tester, candidate], seconds) == nonce.encode()
    except OSError:
        return False
