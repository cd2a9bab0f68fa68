"""Chat templates as fields of a GGUF file, which render there as they do in transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from minigpt_edge_runtime.formats.tokenizer_files import DEFAULT, GGUF_CHAT_TEMPLATE, GGUF_TOKENS

if TYPE_CHECKING:
    from gguf import GGUFWriter


def write_templates(writer: GGUFWriter, templates: Mapping[str, str]) -> None:
    """Add templates under their names, in an order that, unlike the library's, is the same in every run."""
    names = sorted(templates.keys() - {DEFAULT})
    for name in names:
        writer.add_string(f"{GGUF_CHAT_TEMPLATE}.{name}", templates[name])
    if names:
        writer.add_array(f"{GGUF_CHAT_TEMPLATE}s", names)
    if DEFAULT in templates:
        writer.add_chat_template(templates[DEFAULT])


def self_contained(
    templates: Mapping[str, str], special: Mapping[str, str], stored: Mapping[str, str]
) -> dict[str, str]:
    """Templates that set the special tokens which a reader of the file would take for others or not know.

    llama.cpp gives a template bos_token and eos_token, and takes tokens of its own choice for them where a
    file names none; transformers gives it every special token that the settings name, and no other.

    Args:
        special: the variables that transformers gives: name -> text.
        stored: those that llama.cpp will know from the file.
    """
    return {name: _self_contained(text, special, stored) for name, text in templates.items()}


def _self_contained(template: str, special: Mapping[str, str], stored: Mapping[str, str]) -> str:
    from minigpt_edge_runtime.generate.chat_template import variables

    try:
        used = variables(template)
    except Exception:  # a template is foreign code and may raise anything
        return template  # it is as broken in transformers
    known = {**dict.fromkeys(GGUF_TOKENS, ""), **special}
    missing = {name: known[name] for name in sorted(used & known.keys()) if stored.get(name) != known[name]}
    # The line break after a block is not part of the text.
    lines = [
        f"{{%- set {name} = {json.dumps(text, ensure_ascii=False)} %}}\n" for name, text in missing.items()
    ]
    return "".join(lines) + template
