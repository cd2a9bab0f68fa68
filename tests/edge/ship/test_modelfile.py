"""Ollama's Modelfile: its prompts are transformers', on every day, and the parser reads what is meant."""

from __future__ import annotations

from pathlib import Path

import ollama
import pytest

from minigpt_edge.ship.modelfile import modelfile
from minigpt_edge.ship.turns import turns_of
from minigpt_edge_runtime.generate import template_bounds

TEMPLATES = {path.stem: path for path in (Path(__file__).parents[2] / "tiny" / "templates").glob("*.jinja")}
# What they do with roles or the date can't be said in ollama's language.
UNWRITTEN = {
    *("llama2", "mistral-v3", "gemma2", "gemma3"),  # the system message is part of a question, or refused
    *("llama3.2", "smollm3", "gpt-oss"),  # the date is in every prompt
    "deepseek-coder",  # its own system message ends otherwise than a given one
    *("command-r.rag", "command-r.tool_use", "hermes.tool_use"),  # never the default
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CHATS = [
    [("user", "Hi")],
    [("system", "Be brief"), ("user", "Hi")],
    [("user", "Hi"), ("assistant", "Hello!"), ("user", "{{ .Role }} <|im_end|>")],
    [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")],
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def with_default(system: str) -> str:
    """ChatML with a message of its own, an expression of Jinja."""
    own = "{{ '<|im_start|>system\n' + " + system + " + '<|im_end|>\n' }}"
    return "{% if messages[0]['role'] != 'system' %}" + own + "{% endif %}" + CHATML


def in_transformers(template: str, chat: list[tuple[str, str]]) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": role, "content": text} for role, text in chat]
    given = {"chat_template": template, "add_generation_prompt": True, **SPECIAL}
    return render_jinja_template([messages], **given)[0][0]


@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - UNWRITTEN))
def test_ollamas_prompts_are_those_of_transformers(name: str) -> None:
    template = TEMPLATES[name].read_text()
    text = modelfile("m.gguf", template, special=SPECIAL)
    for chat in CHATS:
        if name != "granite3" or chat[0][0] == "system":  # its own message has the date in it
            assert ollama.prompt(text, chat) == in_transformers(template, chat)
    before = modelfile("m.gguf", template, special=SPECIAL, adds_bos=True)
    expected = in_transformers(template, CHATS[1])
    assert ollama.prompt(before, CHATS[1]) == expected.removeprefix("<s>")


@pytest.mark.parametrize("name", sorted(UNWRITTEN))
def test_other_templates_are_left_to_ollama(name: str) -> None:
    text = modelfile("m.gguf", TEMPLATES[name].read_text(), ["</s>"], SPECIAL)
    assert ollama.read_modelfile(text) == [("FROM", "./m.gguf"), ("PARAMETER stop", "</s>")]
    assert text.splitlines()[1].startswith("# TEMPLATE is left for ollama")


def test_chatml() -> None:
    template = "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n"
    template += "{{ end }}<|im_start|>assistant\n"
    assert modelfile("m.gguf", with_default("'Be kind'"), stop=["<|endoftext|>", "<|im_end|>", ""]) == (
        f'FROM ./m.gguf\nTEMPLATE """{template}"""\nSYSTEM """Be kind"""\n'
        'PARAMETER stop "<|im_end|>"\nPARAMETER stop "<|endoftext|>"\n'
    )


def test_chatml_whose_bos_begins_every_turn() -> None:
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    text = modelfile("m.gguf", TEMPLATES["smollm2"].read_text(), special=special)
    assert text == modelfile("m.gguf", TEMPLATES["smollm2"].read_text())
    assert text.splitlines()[1] == 'TEMPLATE """{{- range .Messages }}<|im_start|>{{ .Role }}'


def test_without_a_template_the_prompt_is_as_it_is() -> None:
    text = modelfile("m.gguf", None, ["<|endoftext|>"])
    assert text == 'FROM ./m.gguf\nTEMPLATE """{{ .Prompt }}"""\nPARAMETER stop "<|endoftext|>"\n'


@pytest.mark.parametrize("date", ["strftime_now('%d %B %Y')", "strftime_now('%H')", "strftime_now('%Y')[:2]"])
def test_a_system_message_with_the_date_is_left_out(date: str) -> None:
    text = modelfile("m.gguf", with_default(f"'Today is ' + {date} + '.'"))
    assert "SYSTEM" not in text and ollama.prompt(text, CHATS[1]) == in_transformers(CHATML, CHATS[1])


@pytest.mark.parametrize(
    "system",
    [
        'Say "yes"', '"', 'It ends with "', 'two""', '"""', 'a"""b', 'a """ \nb', '"""\nlines', "a\n\nb\n",
        " x ", "# no comment", "nbsp\u00a0, \u200b and \u2028", "tab\t", "\r\nx", "{{ .Role }}",
        "漢 \U0001f642", "\\n \\", '{{ "\u00a0""" }}', "SYSTEM x",
    ],
)  # fmt: skip
def test_the_system_message_is_read_as_it_is(system: str) -> None:
    template = with_default("'" + system.replace("\\", "\\\\").replace("'", "\\'") + "'")
    text = modelfile("m.gguf", template)
    assert [name for name, _ in ollama.read_modelfile(text)][:2] == ["FROM", "TEMPLATE"]
    for chat in CHATS:
        assert ollama.prompt(text, chat) == in_transformers(template, chat)


@pytest.mark.parametrize("stop", ['"', '""', '"""', 'a"b', '<"end">', "\n", "\n\n", 'x"\ny', "</s> "])
def test_stops_are_read_as_they_are_or_left_out(stop: str) -> None:
    read = ollama.read_modelfile(modelfile("m.gguf", None, [stop, "<end>"]))
    assert [value for name, value in read if name == "PARAMETER stop"] in ([stop, "<end>"], ["<end>"])
    if stop not in ('x"\ny',):
        assert ("PARAMETER stop", stop) in read


def test_templates_that_fail_take_long_or_reach_out_have_no_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_bounds, "SECONDS", 0.1)
    loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"
    macro = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"
    reach = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    for template in (loops, "{{ 1 // 0 }}", macro, reach, "{% broken", "{{ raise_exception('no') }}", "same"):
        assert turns_of(template, SPECIAL) is None
