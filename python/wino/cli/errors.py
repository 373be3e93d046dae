"""How the command line fails: one line on stderr and an exit code, never a traceback for bad input."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

BAD_INPUT = 2
INTERRUPTED = 128 + 2
BROKEN_PIPE = 128 + 13
_LONGEST_MESSAGE = 500


class BadInputError(ValueError):
    """What the user asked for cannot be done; the message says what was expected and what came."""


class OneLineErrors(TyperGroup):
    """The root command: turns every foreseeable failure into one line.

    Exit codes: 2 bad input, 130 interrupted, 141 the reader of our output went away. An error that no input should
    cause keeps its traceback; ``WINO_TRACEBACK=1`` keeps all of them.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            _discard_stdout()
            raise typer.Exit(BROKEN_PIPE) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        kwargs["standalone_mode"] = False
        code: Any = 0
        try:
            code = super().main(*args, **kwargs)
            sys.stdout.flush()
        except BrokenPipeError:
            _discard_stdout()
            code = BROKEN_PIPE
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        except Exception as error:
            message = describe(error)
            if message is None or os.environ.get("WINO_TRACEBACK"):
                raise
            _complain(message)
            code = BAD_INPUT
        if code == INTERRUPTED:
            _complain("interrupted")
        sys.exit(code)


def describe(error: Exception) -> str | None:
    """The line for an error that input can cause; None for any other."""
    if hasattr(error, "format_message"):  # Typer's usage errors; their class moved between its versions
        return one_line(error.format_message())
    if isinstance(error, OSError) and error.strerror:
        return one_line(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    if isinstance(error, ValueError | OSError | FloatingPointError):
        return one_line(str(error))
    if isinstance(error, RuntimeError) and "wino_kernels" in sys.modules:
        from wino_kernels.backends import BackendUnavailableError

        return one_line(str(error)) if isinstance(error, BackendUnavailableError) else None
    return None


def one_line(text: str) -> str:
    """``text`` without line breaks or control characters, shortened if it is very long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _LONGEST_MESSAGE else line[: _LONGEST_MESSAGE - 3] + "..."


def _complain(message: str) -> None:
    print(f"wino: {message}", file=sys.stderr)


def _discard_stdout() -> None:
    """Point stdout nowhere, so that flushing it at exit does not complain a second time."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
