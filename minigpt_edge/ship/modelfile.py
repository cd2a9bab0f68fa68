"""Ollama's Modelfile of a bundle, with the chat template in ollama's language.

The template itself is written into the GGUF file by `minigpt_edge_export.gguf.tokenizer`, and copied into the
bundle by `bundling`. Ollama's parser has no escapes: what can't be quoted is put into the template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from minigpt_edge.ship.turns import Turns, turns_of
from minigpt_edge_export.tokens.special_tokens import end_ids
from minigpt_edge_runtime.engines.text import open_tokenizer
from minigpt_edge_runtime.formats.tokenizer_files import TOKENIZER

_UNWRITTEN = "# TEMPLATE is left for ollama to find: the model's own does what ollama's language can't say."
_CHATML = "<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n"
_CHATML_TURNS = {role: (f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ("system", "user", "assistant")}


def modelfile(
    model_file: str,
    chat_template: str | None,
    stop: Sequence[str] = (),
    special: Mapping[str, str] | None = None,
    adds_bos: bool = False,
) -> str:
    """The Modelfile's text, which depends on nothing but the arguments, on no day either.

    A template that treats each message by its role is written in ollama's language, with the system message
    it adds of its own accord unless that has the date in it. Any other is left for ollama to recognise in the
    GGUF file. Without one the prompt goes to the model as it is.

    Args:
        chat_template: the model's Jinja template; None for a model without one.
        stop: texts of the tokens that end an answer.
        special: the variables that hold special tokens in the template.
        adds_bos: ollama puts the begin-of-sequence token before the prompt, by what the GGUF file says.
    """
    lines, stops, special = [f"FROM ./{model_file}"], list(stop), special or {}
    if chat_template is None:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    elif turns := turns_of(chat_template, special):
        lines += _template_lines(turns, special.get("bos_token", "") if adds_bos else "")
        if _is_chatml(turns):
            stops.insert(0, "<|im_end|>")
    if chat_template is not None and len(lines) == 1:
        lines.append(_UNWRITTEN)
    for text in dict.fromkeys(stops):
        if text and (quoted := _quoted(text, '"') or _quoted(text, '"""')):
            lines.append(f"PARAMETER stop {quoted}")
    return "\n".join(lines) + "\n"


def _template_lines(turns: Turns, bos: str) -> list[str]:
    """TEMPLATE and SYSTEM; nothing for a template that ollama's language would write otherwise."""
    if not _is_chatml(turns) and "system" not in turns.around:
        return []
    start, system = _go(turns.start.removeprefix(bos)), []
    if turns.system and (quoted := _quoted(turns.system, '"""')):
        system = [f"SYSTEM {quoted}"]
    elif turns.system:
        before, after = turns.around["system"]
        message = _go(before + turns.system + after)
        start += '{{ if ne (index .Messages 0).Role "system" }}' + message + "{{ end }}"
    turn = _CHATML
    if not _is_chatml(turns):
        user, answer, other = (_turn(turns.around[role]) for role in ("user", "assistant", "system"))
        turn = f'{{{{ if eq .Role "user" }}}}{user}{{{{ else if eq .Role "assistant" }}}}{answer}'
        turn += f"{{{{ else }}}}{other}{{{{ end }}}}"
    # The minus takes away white space before it, of which there is none without a start.
    loop = "{{ range .Messages }}" if start else "{{- range .Messages }}"
    template = _quoted(f"{start}{loop}{turn}{{{{ end }}}}{_go(turns.answer)}", '"""')
    return [f"TEMPLATE {template}", *system] if template else []


def _is_chatml(turns: Turns) -> bool:
    return turns.answer == _CHATML_TURNS["assistant"][0] and turns.around.items() <= _CHATML_TURNS.items()


def _turn(around: tuple[str, str]) -> str:
    return f"{_go(around[0])}{{{{ .Content }}}}{_go(around[1])}"


def _go(text: str) -> str:
    """A text in ollama's template language: as it is, or what would be read otherwise as a string of Go's."""
    plain = all(line.isprintable() for line in text.split("\n"))
    if plain and not any(sign in text for sign in ("{{", "}}", '"""')):
        return text
    escaped = (sign if sign.isprintable() and sign not in '"\\{}' else f"\\U{ord(sign):08x}" for sign in text)
    return f'{{{{ "{"".join(escaped)}" }}}}'


def _quoted(text: str, mark: str) -> str | None:
    """A text as a value of a Modelfile in these quotation marks; None if the parser would read another."""
    written = f"{mark}{text}{mark}"
    return written if _as_read(written) == text else None


def _as_read(written: str) -> str | None:
    """What ollama's parser takes for a value that is followed by a line break; None if it goes on reading.

    The parser ends a value at the first line break behind which the quotation is closed, and drops what can't
    be printed.
    """
    held = ""
    for sign in f"{written}\n":
        if sign in "\r\n" and (value := _unquoted(held.strip())) is not None:
            return value
        if sign.isprintable() or sign in "\r\n\t":
            held += sign
    return None


def _unquoted(text: str) -> str | None:
    for mark in ('"""', '"'):
        if text.startswith(mark):
            closed = len(text) >= 2 * len(mark) and text.endswith(mark)
            return text[len(mark) : len(text) - len(mark)] if closed else None
    return text


def stop_texts(checkpoint: Path) -> list[str]:
    """The texts of all tokens that end an answer, for programs that stop by text."""
    tokenizer = open_tokenizer(checkpoint / TOKENIZER)
    return [tokenizer.decode([index], skip_special_tokens=False) for index in end_ids(checkpoint)]
