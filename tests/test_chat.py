"""Chat templates: what transformers makes of them, or one line within bounds."""

from __future__ import annotations

import subprocess
import time
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from wino.chat import LONGEST_TEMPLATE, is_plain, render_chats
from wino.models import end_token_ids
from wino.pretrain import CHAT_TEMPLATE

# Of GSAI-ML/LLaDA-8B-Instruct.
LLADA = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
OTHERS = (
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ m | tojson }}{% endfor %}",
    "{% for m in messages %}\n  {% if loop.first %}{{ bos_token }}{% endif %}\n  {{ m.content | upper }}\n{% endfor %}",
    "{% macro say(m) %}[{{ m.role }}]{{ m.content }}{% endmacro %}{% for m in messages %}{{ say(m) }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}{{ tools }}",
)


def tokenizer_with(template: Any) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({"<s>": 0, "<eos>": 1}, unk_token="<eos>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<eos>")
    tokenizer.chat_template = template
    return tokenizer


CHATS = [
    [{"role": "user", "content": " What is 2 + 2? \n"}],
    [{"role": "user", "content": "é\u2028 {{ 7 }}"}, {"role": "assistant", "content": "<|x|>\U0001f600"}],
]


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, LLADA, *OTHERS])
@pytest.mark.parametrize("for_answer", [True, False])
def test_it_is_what_transformers_makes(template: str, for_answer: bool) -> None:
    tokenizer = tokenizer_with(template)
    made = render_chats(tokenizer, CHATS, for_answer=for_answer)
    assert made == [tokenizer.apply_chat_template(c, add_generation_prompt=for_answer, tokenize=False) for c in CHATS]


def test_only_plain_templates_are_rendered_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_plain(CHAT_TEMPLATE) and not any(is_plain(template) for template in (LLADA, *OTHERS))
    monkeypatch.setattr(subprocess, "run", None)
    assert render_chats(tokenizer_with(CHAT_TEMPLATE), CHATS[:1]) == ["<|user|> What is 2 + 2? \n<|assistant|>"]


def test_what_ends_an_answer_costs_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked at every decode that is given a tokenizer."""
    runs: list[Any] = []
    run = subprocess.run

    def counted(*arguments: Any, **options: Any) -> Any:
        runs.append(arguments)
        return run(*arguments, **options)

    monkeypatch.setattr(subprocess, "run", counted)
    model = SimpleNamespace(config=SimpleNamespace(eos_token_id=7))
    template = "{% for m in messages %}{{ m.content | trim }}{{ eos_token }}{% endfor %}"
    for _ in range(3):
        assert end_token_ids(model, tokenizer_with(template)) == (7, 1)
    assert len(runs) == 1
    assert end_token_ids(model, tokenizer_with(template.replace("eos_token", "bos_token"))) == (7, 1, 0)
    assert len(runs) == 2


HOSTILE = {
    "loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "range": "{% for i in range(10**12) %}x{% endfor %}",
    "power": "{{ 10 ** (10 ** 9) }}",
    "times": "{{ 'x' * 10 ** 11 }}",
    "doubled": "{% set x = 'x' * 1000 %}" + "{% set x = x ~ x %}" * 40 + "{{ x }}",
    "width": "{{ 'x'.ljust(10 ** 11) }}",
    "format": "{{ '%999999999999d' % 1 }}",
    "macro": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "underscores": "{{ messages.__class__.__mro__ }}{{ ''.__class__.__base__.__subclasses__() }}",
    "include": "{% include '/etc/passwd' %}",
    "refusal": "{{ raise_exception('no such\nrole') }}",
    "syntax": "{% for %}",
    "nested": "{% if a %}" * 3000,
    "parentheses": "{{ " + "(" * 20_000,
    "long": "x" * (LONGEST_TEMPLATE + 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates(name: str) -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match=r"^chat template: ") as caught:
        render_chats(tokenizer_with(HOSTILE[name]), CHATS[:1])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert time.process_time() - began < 3  # the other process has limits of its own
