"""The files of a tokenizer, and which chat template counts: what all three packages know about them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json, read_text, write_text

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
MORE_CHAT_TEMPLATES = "additional_chat_templates"  # a folder of NAME.jinja
GGUF_CHAT_TEMPLATE = "tokenizer.chat_template"  # named ones follow after a dot
GGUF_TOKENS = ("bos_token", "eos_token")  # those that llama.cpp gives a template
DEFAULT, TOOL_USE = "default", "tool_use"  # names of chat templates
SPECIAL_TOKENS = "special_tokens_map.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER_FILES = (TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE)  # what a device reads
CHECKPOINT_TOKENIZER_FILES = (GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS, CHAT_TEMPLATE)


def read_tokenizer_config(directory: Path, hint: str | None = None) -> dict[str, Any]:
    """The settings of a directory's tokenizer_config.json, {} without the file.

    Raises:
        EdgeError: it is damaged.
    """
    path = directory / TOKENIZER_CONFIG
    settings = read_json(path) if path.is_file() else {}
    if not isinstance(settings, dict):
        raise EdgeError(f"{path} holds no settings", hint)
    return settings


def chat_templates(directory: Path, settings: Mapping[str, Any], hint: str | None = None) -> dict[str, str]:
    """A directory's chat templates by name, as transformers finds them; a single one is called "default".

    The file chat_template.jinja and those of additional_chat_templates come before what is in the settings.

    Args:
        settings: of tokenizer_config.json.

    Raises:
        EdgeError: a file can't be read.
    """
    more = sorted((directory / MORE_CHAT_TEMPLATES).glob("*.jinja"))
    found = {path.name.removesuffix(".jinja"): read_text(path, hint) for path in more}
    if (directory / CHAT_TEMPLATE).is_file():
        found = {DEFAULT: read_text(directory / CHAT_TEMPLATE, hint), **found}
    stored = settings.get("chat_template")
    if found or stored is None:
        return found
    if isinstance(stored, list):
        entries = [entry for entry in stored if isinstance(entry, dict)]
        stored = {str(entry.get("name")): entry.get("template") for entry in entries}
    named = stored if isinstance(stored, dict) else {DEFAULT: stored}
    return {str(name): text for name, text in named.items() if isinstance(text, str)}


def write_chat_templates(directory: Path, settings: dict[str, Any], templates: Mapping[str, str]) -> None:
    """Put chat templates where `chat_templates` and transformers find them.

    A lone one gets a file of its own, several go into the settings.

    Args:
        settings: of the directory's tokenizer_config.json, which are changed, not written.
    """
    settings.pop("chat_template", None)
    if templates.keys() == {DEFAULT}:
        write_text(directory / CHAT_TEMPLATE, templates[DEFAULT])
    elif templates:
        named = sorted(templates.items())
        settings["chat_template"] = [{"name": name, "template": text} for name, text in named]


def gguf_chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates by name in the fields of a GGUF file."""
    fields = {key: text for key, text in metadata.items() if isinstance(text, str)}
    named = {
        key.removeprefix(f"{GGUF_CHAT_TEMPLATE}."): text
        for key, text in fields.items()
        if key.startswith(f"{GGUF_CHAT_TEMPLATE}.")
    }
    default = fields.get(GGUF_CHAT_TEMPLATE)
    return named if default is None else {DEFAULT: default, **named}


def choose_template(templates: Mapping[str, str], with_tools: bool = False) -> str | None:
    """The template that transformers takes: "tool_use" for a conversation with tools, else "default".

    Returns:
        None if there is none.

    Raises:
        EdgeError: there are some, but not one of that name.
    """
    if with_tools and TOOL_USE in templates:
        return templates[TOOL_USE]
    if templates and DEFAULT not in templates:
        names = ", ".join(sorted(templates))
        raise EdgeError(
            f"the model has no default chat template, only named ones ({names})",
            "call one of them default in tokenizer_config.json and export the model again",
        )
    return templates.get(DEFAULT)


def special_texts(settings: Mapping[str, Any]) -> dict[str, str]:
    """The variables by which a chat template knows special tokens, "bos_token" and so on: name -> text.

    Args:
        settings: of tokenizer_config.json.
    """
    named = {name: value for name, value in settings.items() if name.endswith("_token")}
    extra = settings.get("extra_special_tokens")
    named |= extra if isinstance(extra, dict) else {}
    texts = {
        name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}
