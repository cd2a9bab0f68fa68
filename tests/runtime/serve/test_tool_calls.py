"""Calls of functions in the forms that models write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_gguf import make_gguf
from tokenizers import Tokenizer

from minigpt_edge_runtime.engines.open import open_engine
from minigpt_edge_runtime.serve.tool_calls import FORMATS, CallStream, call_format

HERMES, MISTRAL, GRANITE, LLAMA = FORMATS
BODY = '{"name": "f", "arguments": {"a": "é}"}}'
OBJECT = {"a": "é}"}


def heard(
    text: str, format: object, several: bool = True, step: int = 3
) -> tuple[str, str, list[tuple[str, dict]]]:
    """Text shown while it came, shown at its end, and calls."""
    stream = CallStream(format, several)  # type: ignore[arg-type]
    shown = "".join(stream.push(text[at : at + step]) for at in range(0, len(text), step))
    rest, calls = stream.end()
    return shown, rest, [(call.name, json.loads(call.arguments)) for call in calls]


@pytest.mark.parametrize(
    ("text", "format", "content", "count"),
    [
        (f"<tool_call>\n{BODY}\n</tool_call>", HERMES, "", 1),
        (f"I ask. <tool_call>{BODY}</tool_call>\n<tool_call>\n{BODY}\n</tool_call>", HERMES, "I ask. ", 2),
        (f"<tool_call>[{BODY}, {BODY}]</tool_call>", HERMES, "", 2),  # SmolLM2
        (f"<tool_call>\n{BODY}", HERMES, "", 1),
        (f"[TOOL_CALLS][{BODY}, {BODY}]", MISTRAL, "", 2),
        (f"<|tool_call|>[{BODY}]", GRANITE, "", 1),
        (BODY.replace("arguments", "parameters"), LLAMA, "", 1),
        (f"{BODY}; {BODY}", LLAMA, "", 2),
        ("\n" + BODY, LLAMA, "", 1),
        (json.dumps({"name": "f", "arguments": json.dumps(OBJECT)}), LLAMA, "", 1),
    ],
)
def test_calls_are_found(text: str, format: object, content: str, count: int) -> None:
    for step in (1, 4, 1000):
        shown, rest, calls = heard(text, format, step=step)
        assert shown + rest == content and calls == [("f", OBJECT)] * count
    assert len(heard(text, format, several=False)[2]) == 1


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a < b {c} [d]",
        "<tool_call>\n{",
        '<tool_call>\n{"name": 5}',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        "[TOOL_CALLS]f",
        "<|tool_call|>[{]",
        '{"a": 1}',
        "{" * 5000,
    ],
)
def test_what_is_no_call_is_text(text: str, format: object) -> None:
    shown, rest, calls = heard(text, format)
    assert shown + rest == text and calls == []


def test_text_comes_while_it_is_no_call() -> None:
    stream = CallStream(HERMES, True)
    assert [stream.push(piece) for piece in ("Let me ", "see <to", "ols> <tool", "_call>")] == [
        "Let me ",
        "see ",
        "<tools> ",
        "",
    ]


START = "{{ '<|im_start|>assistant\n' if add_generation_prompt else '' }}"
TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content }}CALLS{{ '<|im_end|>\n' }}"
TURNS = "{% for m in messages %}" + TURN + "{% endfor %}"
EACH = "{% for c in m.tool_calls or [] %}CALL{% endfor %}"
JSON = '{{ \'{"name": "\' + c.function.name + \'", "KEY": \' }}{{ c.function.arguments | tojson }}}'


def template(call: str, before: str = "") -> str:
    return before + TURNS.replace("CALLS", EACH.replace("CALL", call) if call else "") + START


@pytest.mark.parametrize(
    ("written", "format"),
    [
        (template("<tool_call>\n" + JSON.replace("KEY", "arguments") + "\n</tool_call>"), HERMES),
        (template("", "Write <tool_call>[]</tool_call>. "), HERMES),  # it forgets what was called
        (
            template("<tool_call>" + JSON.replace("KEY", "arguments"), "<tool_call>\n{name}\n</tool_call>"),
            HERMES,
        ),
        (template(JSON.replace("KEY", "parameters"), 'As {"name": n, "parameters": dictionary}. '), LLAMA),
        (template("[TOOL_CALLS][" + JSON.replace("KEY", "arguments") + "]"), MISTRAL),
        (template("[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}"), None),
        (template("<tool_call>{{ c.function.name }}\n<arg_key>a</arg_key></tool_call>"), None),
        (template("<tool_call>\n<function={{ c.function.name }}></function></tool_call>"), None),
        (template("call {{ c.function.name }}"), None),
        ("{% if messages[1] %}{{ raise_exception('no') }}{% endif %}<tool_call>" + START, HERMES),
    ],
)
def test_the_format_is_what_the_template_writes(
    written: str, format: object, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    model = make_gguf(tmp_path / "tiny.gguf", tokenizer, chat_template=written)
    with open_engine(model, 64, 1) as engine:
        assert call_format(engine) is format
