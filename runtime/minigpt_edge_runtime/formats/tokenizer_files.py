"""The files of a tokenizer, and which chat template counts: what all three packages know about them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json, read_text

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
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


def chat_template(directory: Path, settings: Mapping[str, Any], hint: str | None = None) -> str | None:
    """A directory's chat template: chat_template.jinja, else the one in its tokenizer's settings.

    Args:
        settings: of tokenizer_config.json; of several templates there, the one named default counts.

    Raises:
        EdgeError: the file can't be read.
    """
    path = directory / CHAT_TEMPLATE
    if path.is_file():
        return read_text(path, hint)
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    return template if isinstance(template, str) else None
