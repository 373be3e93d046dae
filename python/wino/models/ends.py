"""Which tokens end an answer: one definition for the loop, for counting, for grading and for printing."""

from __future__ import annotations

from typing import Any

from ..chat import render_chats

_END_OF_TURN = "<|eot_id|>"
_REPLY = "reply"
_LARGEST = 2**31


def end_token_ids(model: Any, tokenizer: Any = None) -> tuple[int, ...]:
    """Ids of every token that ends an answer, each once; the one to fill up with comes first.

    They are ``eos_token_id``, an id or a list, of the model's configuration and of its ``generation_config``; with
    ``tokenizer`` also its ``eos_token_id``, ``<|eot_id|>`` where it has that token, and the special token that its
    chat template puts behind an assistant's message.

    Args:
        model: anything with a ``config``, and perhaps a ``generation_config``.
        tokenizer: of transformers, or a :class:`wino.multimodal.Processor`; None: what the model alone says.

    Raises:
        ValueError: an ``eos_token_id`` is neither an id nor a list of ids; says whose.
    """
    found = _ids_of(model.config, "the model's configuration")
    found += _ids_of(getattr(model, "generation_config", None), "generation_config.json")
    if tokenizer is not None:
        found += _ids_of(tokenizer, "the tokenizer") + _end_of_turn(tokenizer)
    return tuple(dict.fromkeys(found))


def _ids_of(owner: Any, name: str) -> list[int]:
    given = getattr(owner, "eos_token_id", None)
    ids = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < _LARGEST for i in ids):
        raise ValueError(f"eos_token_id of {name}: expected a token id or a list of them, got {str(given)[:80]}")
    return ids


def _end_of_turn(tokenizer: Any) -> list[int]:
    ids = []
    known = tokenizer.convert_tokens_to_ids(_END_OF_TURN)
    if known is not None and tokenizer.convert_ids_to_tokens(known) == _END_OF_TURN:
        ids.append(known)
    if tokenizer.chat_template:
        behind = tokenizer(_behind_reply(tokenizer), add_special_tokens=False)["input_ids"][:1]
        ids += [i for i in behind if i in tokenizer.all_special_ids or i in tokenizer.added_tokens_decoder]
    return ids


def _behind_reply(tokenizer: Any) -> str:
    """What the chat template writes behind an assistant's message; "" where it has no place for one."""
    chat = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _REPLY}]
    try:
        text: str = render_chats(tokenizer, [chat], for_answer=False)[0]
    except Exception:  # a template raises what it likes, and one for questions alone says nothing of an answer's end
        return ""
    before, _, behind = text.rpartition(_REPLY)
    return behind.lstrip() if before else ""
