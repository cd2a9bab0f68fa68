from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from tiny_gguf import make_gguf
from tokenizers import Tokenizer

from minigpt_edge_runtime.engines.open import open_engine
from minigpt_edge_runtime.generate import template_bounds
from minigpt_edge_runtime.generate.chat import ChatTemplateError, Conversation, chat_ids, render_chat
from minigpt_edge_runtime.generate.chat_inputs import ChatInputs

MESSAGES = [
    {"role": "system", "content": "Sei kürzer."},
    {"role": "user", "content": "<Hi> 漢\n"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "And?"},
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
DOUBLING = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
GROWING = "{%% set n = namespace(t='aa') %%}{%% for i in range(99) %%}{%% set n.t = %s %%}{%% endfor %%}"
TEMPLATES = {
    "blocks lose their line breaks": (
        "{%- for m in messages %}\n    {% if m.role == 'user' %}\n[{{ m['content'] | trim }}]\n"
        "    {% endif %}\n{% endfor %}{{ eos_token }}"
    ),
    "loop controls": "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{{ m.role }};"
    "{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}",
    "json": "{{ messages[1] | tojson }}{{ messages[:1] | tojson(indent=2) }}",
    "training marks": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% endif %}{% endfor %}",
    "namespaces": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ bos_token }}{{ ns.n }}{% if add_generation_prompt %}go{% endif %}{{ missing }}",
    "loop variables": "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}"
    "{{ loop.previtem is defined }}{% else %}none{% endfor %}"
    "{% for k, v in messages[0].items() %}{{ k }}{% endfor %}",
    "texts and numbers": "{{ '%s 1234567890 {x} {%d' % ('a', 2) }}{{ '100% 7 of {:>4}'.format(1700000000) }}"
    "{{ 1700000000 | string }}{{ [1700000000] | tojson }}{{ '%05.1f' | format(2) }}{{ ['a', 1] | join(' ') }}"
    "{{ {'at': 1700000000}.items() | list }}{{ 'x' | indent(4, true) }}{{ [[1], [2]] | sum(start=[]) }}"
    "{{ 'a-b'.replace('-', '+') }}{{ ', '.join(['a', 'b']) }}{{ 7 + 8.5 }}{{ 'a' ~ 1 ~ none }}",
    "environment": "{{ dict(a=1) }}{{ dict.fromkeys('ab', 0) }}{{ namespace(self=2).self }}"
    "{% generation %}{% set here = 1 %}{% endgeneration %}{{ here is defined }}",
    "operators": "{{ 'ab' * 3 }}{{ 2 ** 10 }}{{ 6 * 7 }}{{ [1] * 2 }}{{ 1.5 * 2 }}",
    "names": "{{ tools is not defined or tools is none }}{{ messages[0].name is defined }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_read_as_in_transformers(name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    expected, _ = render_jinja_template(
        [MESSAGES],
        chat_template=TEMPLATES[name],
        add_generation_prompt=True,
        **SPECIAL,
    )
    assert render_chat(TEMPLATES[name], MESSAGES, SPECIAL) == expected[0] != ""


def test_the_date_is_now() -> None:
    assert render_chat("{{ strftime_now('%Y') }}", MESSAGES, {}) == datetime.now().strftime("%Y")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "template failed"),
        ("{{ messages.x.y }}", "template failed"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for i in range(10**9) %}x{% endfor %}", "template failed"),
        ("{% set r = range(99999) %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}", "seconds"),
        ("{% set minigpt_edge_deadline = 10**30 %}" + DOUBLING, "seconds"),
        ("{{ 9 ** 9999999 }}", "too large"),
        ("{{ 'x' * 10**9 }}{{ [1] * 10**9 }}", "too large"),
        (GROWING % "n.t ~ n.t", "too large"),
        (GROWING % "n.t + n.t", "too large"),
        (GROWING % "n.t | replace('a', n.t)", "too large"),
        (GROWING % "[n.t, n.t] | join", "too large"),
        (GROWING % "n.t.join(['a', n.t])", "too large"),
        ("{{ 'a' | center(10**9) }}", "center is too large"),
        ("{{ 'a'.ljust(10**9) }}", "ljust is too large"),
        ("{{ '%999999999d' % 1 }}", "% is too large"),
        ("{{ '%*d' | format(10**9, 1) }}", "format is too large"),
        ("{{ '{:>{}}'.format(1, 10**9) }}", "format is too large"),
        ("{{ messages | tojson(indent=10**9) }}", "tojson is too large"),
        ("{% set t = 'a' * 10**6 %}{% for i in range(99) %}{{ t }}{% endfor %}", "writes more than"),
        ("{{ dict.fromkeys.__self__ }}{{ namespace(_x=1) }}", "unsafe|underscored"),
        ("{{ " + "(" * 9999, "template failed"),
    ],
)
def test_bad_and_hostile_templates_are_an_error(
    template: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_bounds, "SECONDS", 0.1)
    with pytest.raises(ChatTemplateError, match=message):
        render_chat(template, MESSAGES, {})


def test_variables_may_have_any_name() -> None:
    names = {name: "é" for name in ("self", "context", "loop", "engine", "minigpt_edge_deadline", "a b")}
    text = render_chat("{{ context ~ loop ~ engine }}", MESSAGES, {}, ChatInputs(variables=names))
    assert text == "ééé"


def test_a_conversation_becomes_the_models_tokens(model: Path) -> None:
    with open_engine(model, 256, 1) as engine:
        ids = chat_ids(engine, MESSAGES[:2])
        text = engine.detokenize(ids, special=True).decode()
    assert ids[0] == 1 and text == (
        "<|im_start|>system\nSei kürzer.<|im_end|>\n<|im_start|>user\n<Hi> 漢\n<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_model_without_a_template_says_so(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = make_gguf(tmp_path / "a.gguf", tokenizer, chat_template=None)
    with open_engine(path, 64, 1) as engine:
        with pytest.raises(ChatTemplateError, match="no chat template"):
            chat_ids(engine, MESSAGES)
        with pytest.raises(ChatTemplateError, match="no chat template"):
            Conversation(engine)


def test_history_is_kept_dropped_when_full_and_forgotten(model: Path) -> None:
    with open_engine(model, 160, 1) as engine:
        conversation = Conversation(engine, "Be brief", room=40)

        def ask(text: str) -> tuple[str, int]:
            ids, dropped = conversation.ask(text)
            conversation.answered("said " + text)
            assert len(ids) <= 120
            return engine.detokenize(ids, special=True).decode(), dropped

        first, _ = ask("one")
        assert "one" in first and "said" not in first
        second, dropped = ask("two")
        assert "said one" in second and second.startswith(first) and dropped == 0
        droppings = [ask(text) for text in ("three", "four", "five", "six")]
        text, dropped = droppings[-1]
        assert dropped == 1 and "said five" in text and "one" not in text
        assert text.startswith("<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user")
        conversation.reset()
        assert ask("one") == (first, 0)
