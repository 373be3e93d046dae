"""Chat templates, which are programs that a checkpoint brings: rendered in bounded time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes

#: Characters of a template; published ones have up to 20,000.
LONGEST_TEMPLATE = 1 << 17
_SECONDS = 2.0  # of processor time, and as much for each megabyte of prompts
_PATIENCE = 60.0  # seconds for a reply, on a machine that is busy with other work
_PLAIN = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.Getattr, nodes.Getitem),
    *(nodes.If, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.For),
)


def render_chats(tokenizer: Any, chats: Sequence[list[dict[str, str]]], *, for_answer: bool = True) -> list[str]:
    """Each chat through the tokenizer's template.

    A template that can only put texts one behind the other is rendered here; any other one in a process of its own,
    with limits.

    Args:
        tokenizer: of transformers.
        chats: messages with ``role`` and ``content``.
        for_answer: with what comes before an answer at the end.

    Raises:
        ValueError: there is no template, it is too long or no template, it refuses the messages, or takes more than
            its processor time or memory.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several by name
        template = tokenizer.get_chat_template()
    if not isinstance(template, str) or is_plain(template):
        return [tokenizer.apply_chat_template(chat, add_generation_prompt=for_answer, tokenize=False) for chat in chats]
    settings = {**tokenizer.special_tokens_map, "add_generation_prompt": for_answer}
    return list(_rendered_apart(json.dumps([template, list(chats), settings, _SECONDS]).encode()))


@lru_cache(8)  # what ends an answer is asked again with every batch
def _rendered_apart(request: bytes) -> tuple[str, ...]:
    """The texts of a request to ``chat_worker``."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(Path(__file__).with_name("chat_worker.py")), *sys.path],
            input=request,
            capture_output=True,
            timeout=_PATIENCE + len(request) / 1e5,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(_unending()) from None
    if done.returncode or not done.stdout:
        raise ValueError(_unending())
    answer = json.loads(done.stdout)
    if isinstance(answer, str):
        raise ValueError(f"chat template: {answer}")
    return tuple(answer)


def _unending() -> str:
    return f"chat template: it takes more than {_SECONDS:g} seconds or the memory allowed for it; is it meant to end?"


@lru_cache(16)
def is_plain(template: str) -> bool:
    """Whether what ``template`` makes is no longer than its own text and the messages, once a message.

    Raises:
        ValueError: it is too long, or no template.
    """
    if len(template) > LONGEST_TEMPLATE:
        raise ValueError(f"chat template: expected at most {LONGEST_TEMPLATE} characters, got {len(template)}")
    try:
        tree = jinja2.Environment().parse(template)
    except jinja2.TemplateSyntaxError:
        return False  # it may use more of the language; if not, its process says what is wrong
    except RecursionError:
        raise ValueError("chat template: nested too deeply") from None
    return _is_plain(tree, False)


def _is_plain(node: nodes.Node, is_inside: bool) -> bool:
    if not isinstance(node, _PLAIN):
        return False
    if isinstance(node, nodes.For):
        iterates_messages = isinstance(node.iter, nodes.Name) and node.iter.name == "messages"
        if is_inside or not iterates_messages or node.recursive:
            return False
    inside = is_inside or isinstance(node, nodes.For)
    return all(_is_plain(child, inside) for child in node.iter_child_nodes())
