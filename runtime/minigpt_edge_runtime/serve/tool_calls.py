"""How models write calls of functions: found in an answer, and asked for by a grammar."""

from __future__ import annotations

import json
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

from minigpt_edge_runtime.engines.engine import Engine
from minigpt_edge_runtime.formats.tokenizer_files import choose_template
from minigpt_edge_runtime.generate.chat import ChatTemplateError, chat_ids
from minigpt_edge_runtime.generate.grammar import json_rule, text_rule
from minigpt_edge_runtime.generate.streaming import TextStream
from minigpt_edge_runtime.serve.tools import Tool, Tools


@dataclass(frozen=True)
class CallFormat:
    """Calls as JSON objects with a name and arguments.

    Attributes:
        sign: what a chat template that asks for this format has in it.
        before, after: what stands around a call.
        arguments: the key of the arguments.
        listed: whether the calls stand in a list.
    """

    sign: str
    before: str = ""
    after: str = ""
    arguments: str = "arguments"
    listed: bool = False


FORMATS = (
    CallFormat("<tool_call>", "<tool_call>\n", "\n</tool_call>"),  # Hermes, Qwen, SmolLM
    CallFormat("[TOOL_CALLS]", "[TOOL_CALLS]", listed=True),  # Mistral
    CallFormat("<|tool_call|>", "<|tool_call|>", listed=True),  # Granite
    CallFormat('"parameters": dictionary', arguments="parameters"),  # Llama 3
)


def call_format(engine: Engine) -> CallFormat | None:
    """The format that the model's chat template teaches, None if it is not known.

    A template that has the sign of a format may still write calls as something else than JSON: where it
    writes those of earlier answers, one is read back.
    """
    template = choose_template(engine.chat_templates, with_tools=True) or ""
    format = next((format for format in FORMATS if format.sign in template), None)
    answer = {"role": "assistant", "content": ""}
    called = {**answer, "tool_calls": [{"id": "000000001", "type": "function", "function": _PROBE}]}
    asked, silent, written = (_rendered(engine, more) for more in ([], [answer], [called]))
    if format is None or written is None or written == silent:
        return format
    sign = format.before.strip()
    # What asks for an answer may begin like the sign.
    start = len(commonprefix([asked or "", written])) - len(sign)
    stream = CallStream(format, several=True)
    stream.push(written[max(start, 0) :])
    return format if [call.name for call in stream.end()[1]] == [_PROBE["name"]] else None


def _rendered(engine: Engine, answers: list[dict[str, Any]]) -> str | None:
    """A question and what follows, None if the template refuses it."""
    try:
        ids = chat_ids(engine, [{"role": "user", "content": "a"}, *answers])
    except ChatTemplateError:
        return None
    return engine.detokenize(ids, special=True).decode(errors="replace")


_PROBE = {"name": "probe", "arguments": {"a": "b"}}


def tokens_around(engine: Engine, format: CallFormat) -> frozenset[int]:
    """The special tokens around a call, which belong to the answer's text."""
    tokens = engine.tokenize(format.before + format.after, special=True)
    return frozenset(token for token in tokens if not engine.piece(token))


def calls_grammar(engine: Engine, format: CallFormat, tools: Tools, content: str | None) -> str:
    """A Lark grammar by which an answer calls one allowed function, or is text where no call is required.

    Args:
        content: the rule of that text, None for any.
    """
    names = [f"call_{number}" for number in range(len(tools.allowed))]
    before, after = (text_rule(engine, text) for text in (format.before, format.after))
    opening, closing = ('"["', '"]"') if format.listed else ("", "")
    lines = [
        f"body: {opening} ({' | '.join(names)}) {closing} {after}",
        *(f"{name}: {_call(tool, format)}" for name, tool in zip(names, tools.allowed, strict=True)),
    ]
    if tools.required:
        start = [f"start: {before} body"]
    elif content:
        start = [f"start: {before} body | {content}"]
    elif not format.before:
        start = ["start: body | TEXT?", r"TEXT: /[^{\s](.|\n)*/"]
    elif before.startswith("<["):  # a special token is never part of a text
        start = [f"start: TEXT? ({before} body)?", r"TEXT: /(.|\n)+/"]
    else:
        start = [r"start: TEXT | head body", f"head[lazy]: TEXT {before}", r"TEXT: /(.|\n)*/"]
    return "\n".join(start + lines)


def _call(tool: Tool, format: CallFormat) -> str:
    head = f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "{format.arguments}": '
    return f'{json.dumps(head, ensure_ascii=False)} {json_rule(tool.parameters)} "}}"'


@dataclass(frozen=True)
class Call:
    """A call that a model made; `arguments` is JSON."""

    name: str
    arguments: str


class CallStream:
    """Divides an answer into text, as it comes, and calls, when it has ended."""

    def __init__(self, format: CallFormat, several: bool) -> None:
        self._format, self._several = format, several
        self._sign = format.before.strip()
        self._stream = TextStream([self._sign] if self._sign else [])
        self._held = ""

    def push(self, text: str) -> str:
        """Add text; what of it is surely no call."""
        self._held += text
        if self._sign:
            shown = self._stream.push(text.encode("utf-8", errors="replace"))
        else:
            shown = "" if self._held.lstrip()[:1] in ("", "{") else self._held
        self._held = self._held[len(shown) :]
        return shown

    def end(self) -> tuple[str, list[Call]]:
        """The rest of the text, and the calls."""
        try:
            rest, calls = self._calls(self._held)
        except (ValueError, RecursionError):  # it began like a call
            return self._held, []
        return rest, calls if self._several else calls[:1]

    def _calls(self, text: str) -> tuple[str, list[Call]]:
        """ValueError if something is not a call as it should be."""
        if not self._sign and not text.strip():
            return text, []
        rest, calls = "", []
        while text:
            at = text.find(self._sign)
            if at < 0 or (not self._sign and not text.lstrip(" ;\n").startswith("{")):
                break
            rest += text[:at]
            text = text[at + len(self._sign) :].lstrip(" ;\n")
            value, end = json.JSONDecoder().raw_decode(text)
            calls += [_read(call) for call in (value if isinstance(value, list) else [value])]
            text = text[end:].lstrip().removeprefix(self._format.after.strip())
        rest += text
        return (rest if rest.strip() else ""), calls


def _read(value: Any) -> Call:
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str):
        raise ValueError("a call has no name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = json.loads(arguments or "{}")
    if not isinstance(arguments, dict):
        raise ValueError("a call's arguments are not an object")
    return Call(name, json.dumps(arguments, ensure_ascii=False))
