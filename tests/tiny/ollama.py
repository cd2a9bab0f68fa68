"""How ollama reads a Modelfile and renders its TEMPLATE: as much of both languages as is written here."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

ACTION = re.compile(r"\{\{(- )?\s*(.*?)\s*( -)?\}\}", re.DOTALL)


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """(command, value) of each line, by ollama's parser: a port of its states, rune by rune."""
    found: list[tuple[str, str]] = []
    state, name, held = "nil", "", ""
    for rune in text:
        space, newline = rune in " \t", rune in "\r\n"
        if state == "comment":
            state = "nil" if newline else state
        elif state == "nil":
            if rune == "#":
                state = "comment"
            elif not (space or newline):
                state, name = "name", rune
        elif state == "name":
            if space:
                state, held = ("name" if name == "PARAMETER" else "value"), ""
                name = "PARAMETER " if name == "PARAMETER" else name
            else:
                assert rune.isalpha() or rune == "_", f"invalid command {name!r}"
                name += rune
        elif (newline or space) and (space or unquote(held.strip()) is None):
            held += rune
        elif newline:
            found.append((name, unquote(held.strip()) or ""))
            state = "nil"
        elif rune.isprintable():
            held += rune
    assert state == "nil", "the file ends in a value"
    return found


def unquote(text: str) -> str | None:
    """A value without its quotation marks; None if they are not closed yet."""
    if text[:3] == '"""':
        return text[3:-3] if len(text) >= 6 and text[-3:] == '"""' else None
    if text[:1] == '"':
        return text[1:-1] if len(text) >= 2 and text[-1:] == '"' else None
    return text


def prompt(modelfile: str, messages: Sequence[tuple[str, str]]) -> str:
    """What the model gets of messages, (role, text) each, before ollama puts a BOS token in front."""
    commands = dict(read_modelfile(modelfile))
    if "SYSTEM" in commands and messages[0][0] != "system":
        messages = [("system", commands["SYSTEM"]), *messages]
    if commands["TEMPLATE"] == "{{ .Prompt }}":
        return "".join(text for role, text in messages)
    return execute(parse(commands["TEMPLATE"]), messages)


def parse(template: str) -> list[str]:
    """Texts and actions in turn, the white space beside a minus taken away."""
    parts, at, trim = [], 0, False
    for action in ACTION.finditer(template):
        text = template[at : action.start()]
        text = text.lstrip() if trim else text
        parts += [text.rstrip() if action[1] else text, action[2]]
        at, trim = action.end(), bool(action[3])
    return [*parts, template[at:].lstrip() if trim else template[at:]]


def execute(parts: list[str], messages: Sequence[tuple[str, str]], dot: tuple[str, str] | None = None) -> str:
    written, at = [], 0
    while at < len(parts):
        if at % 2 == 0:
            written.append(parts[at])
        elif parts[at] == "range .Messages":
            end = block(parts, at)[-1]
            written += [execute(parts[at + 1 : end], messages, message) for message in messages]
            at = end
        elif parts[at].startswith("if "):
            marks = block(parts, at)
            for begin, end in zip([at, *marks], marks, strict=False):
                if parts[begin] == "else" or holds(parts[begin].removeprefix("else "), messages, dot):
                    written.append(execute(parts[begin + 1 : end], messages, dot))
                    break
            at = marks[-1]
        elif parts[at] in (".Role", ".Content"):
            assert dot
            written.append(dot[parts[at] == ".Content"])
        else:
            written.append(ast.literal_eval(parts[at]))  # a string of Go with escapes that Python has too
        at += 1
    return "".join(written)


def block(parts: list[str], start: int) -> list[int]:
    """The places of an action's own else and end."""
    depth, found = 0, []
    for at in range(start, len(parts)):
        if at % 2 and parts[at].split()[0] in ("if", "range"):
            depth += 1
        if at % 2 and depth == 1 and parts[at].split()[0] in ("else", "end"):
            found.append(at)
        if at % 2 and parts[at] == "end":
            depth -= 1
            if not depth:
                return found
    raise AssertionError("an action is not ended")


def holds(condition: str, messages: Sequence[tuple[str, str]], dot: tuple[str, str] | None) -> bool:
    if found := re.fullmatch(r'if eq \.Role "(\w+)"', condition):
        return dot is not None and dot[0] == found[1]
    found = re.fullmatch(r'if ne \(index \.Messages 0\)\.Role "(\w+)"', condition)
    assert found, condition
    return messages[0][0] != found[1]
