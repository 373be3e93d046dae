"""Renders chat templates for :mod:`wino.chat`, in a process of its own that imports nothing of ``wino``.

Reads JSON ``[template, chats, variables, seconds]``; writes a list of texts, or one text that says what is wrong.
"""

from __future__ import annotations

import contextlib
import json
import math
import resource
import sys

_MEMORY = 1 << 30
_LONGEST = 1 << 26


def main() -> None:
    sys.path[:] = sys.argv[1:]
    content = sys.stdin.buffer.read()
    template, chats, given, seconds = json.loads(content)
    processor = math.ceil(seconds + seconds * len(content) / 1e6)
    for kind, limit in ((resource.RLIMIT_AS, _MEMORY + 20 * len(content)), (resource.RLIMIT_CPU, processor)):
        with contextlib.suppress(ValueError, OSError):  # the system has no such limit, or a lower one
            resource.setrlimit(kind, (limit, limit))
    from datetime import datetime

    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Marked(Extension):
        """``{% generation %}`` marks what a model is trained on and changes no text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser):  # type: ignore[no-untyped-def]
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    def refuse(message: object) -> None:
        raise TemplateError(str(message))

    def to_json(value: object, ensure_ascii: bool = False, indent: int | None = None, **others: object) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **others)  # type: ignore[arg-type]

    # The environment of transformers' apply_chat_template.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Marked, loopcontrols])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    settings = {"tools": None, "documents": None, **given}
    try:
        compiled = environment.from_string(template)
        texts = [compiled.render(messages=chat, **settings) for chat in chats]
        if sum(map(len, texts)) > _LONGEST:
            raise ValueError(f"it makes more than {_LONGEST} characters")
        answer: object = texts
    except (Exception, RecursionError, MemoryError) as error:
        answer = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    sys.stdout.write(json.dumps(answer))


main()
