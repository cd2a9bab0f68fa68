"""Calls of functions in the forms that models write them."""

from __future__ import annotations

import json

import pytest

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


def test_the_format_is_what_the_template_teaches() -> None:
    assert call_format("within <tool_call></tool_call> XML tags") is HERMES
    assert call_format('"parameters": dictionary of argument name and its value') is LLAMA
    assert call_format("{{ '[TOOL_CALLS]' }}") is MISTRAL
    for unknown in ("{{ messages }}", "<tool_call>\n<function=name>", "[TOOL_CALLS]name[ARGS]"):
        assert call_format(unknown) is None
