"""A Hugging Face tokenizer in a form that llama.cpp has too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minigpt_edge.models.hf_tokenizer import by_own_class
from minigpt_edge_export.gguf.pretokenizers import check_tokenizer
from minigpt_edge_export.gguf.sentencepiece import is_sentencepiece, spaces_of, with_spaces
from minigpt_edge_export.tokens.prompts import rendered
from minigpt_edge_runtime.engines.text import open_tokenizer
from minigpt_edge_runtime.files import read_json, understanding, write_json
from minigpt_edge_runtime.formats.tokenizer_files import (
    DEFAULT,
    TOKENIZER,
    TOKENIZER_CONFIG,
    chat_templates,
    read_tokenizer_config,
    special_texts,
    write_chat_templates,
)


def fit_tokenizer(tokenizer: dict[str, Any], source: Path) -> dict[str, Any]:
    """A directory's tokenizer.json (parsed) as our checkpoints have it.

    llama.cpp takes text as it comes, so NFC is dropped. Where a ▁ is put before some texts only, it is
    put before all or none, whichever gives the same prompts as before.

    Raises:
        EdgeError: it does what llama.cpp has not.
    """
    with understanding(source / TOKENIZER):
        normalizer = tokenizer.get("normalizer") or {}
        if all(step.get("type") == "NFC" for step in normalizer.get("normalizers") or [normalizer]):
            tokenizer = {**tokenizer, "normalizer": None}
        if is_sentencepiece(tokenizer) and spaces_of(tokenizer):
            tokenizer = with_spaces(tokenizer, _needs_prefix(tokenizer, source))
            loaded = by_own_class(source)
            if loaded and loaded.backend_tokenizer.normalizer is None:
                # The class of LLaMA's tokenizer has none, with which the flag has no effect.
                tokens = [{**token, "normalized": False} for token in tokenizer["added_tokens"]]
                tokenizer = {**tokenizer, "added_tokens": tokens}
        check_tokenizer(tokenizer)
    return tokenizer


def _needs_prefix(tokenizer: dict[str, Any], source: Path) -> bool:
    """Whether a space before every text, after special tokens too, is what the tokenizer does, or nearest."""
    spaces = spaces_of(tokenizer)
    if spaces in ("prefix", "none"):
        return spaces == "prefix"
    texts = _prompts(source)
    was = _ids(tokenizer, texts)
    prefixed, bare, spaced = (
        sum(a == b for a, b in zip(was, ids, strict=True))
        for ids in (
            _ids(with_spaces(tokenizer, True), texts),
            _ids(with_spaces(tokenizer, False), texts),
            _ids(with_spaces(tokenizer, False), [f" {text}" for text in texts]),
        )
    )
    return prefixed >= max(bare, spaced)


def _prompts(directory: Path) -> list[str]:
    settings = read_tokenizer_config(directory)
    template = chat_templates(directory, settings).get(DEFAULT)
    return [text for _, text in rendered(template, special_texts(settings))]


def _ids(tokenizer: dict[str, Any], texts: list[str]) -> list[list[int]]:
    opened = open_tokenizer(tokenizer)
    return [opened.encode(text, add_special_tokens=False).ids for text in texts]


def complete_settings(source: Path, target: Path) -> None:
    """Write out what tokenizer_config.json leaves to a tokenizer's class: the checkpoint has another class.

    The chat template gets the space that only the base's tokenizer puts before a prompt.
    """
    settings, config = read_tokenizer_config(target), read_json(target / "config.json")
    loaded, tokenizer = by_own_class(source), open_tokenizer(target / TOKENIZER)
    for name, text in (loaded.special_tokens_map if loaded else {}).items():
        index = tokenizer.token_to_id(text) if isinstance(text, str) else None
        if name not in settings and index is not None:
            settings[name] = text
            if name in ("bos_token", "eos_token") and config.get(f"{name}_id") is None:
                config[f"{name}_id"] = index
    write_json(target / TOKENIZER_CONFIG, settings)
    write_json(target / "config.json", config)
    _begin_with_space(source, target)


def _begin_with_space(source: Path, target: Path) -> None:
    was, now = (read_json(directory / TOKENIZER) for directory in (source, target))
    texts = _prompts(target)
    if not texts or not is_sentencepiece(was):
        return
    ids, spaced = _ids(was, texts), [f" {text}" for text in texts]
    if ids != _ids(now, texts) and ids == _ids(now, spaced):
        settings = read_tokenizer_config(target)
        templates = {n: f"{{{{ ' ' }}}}{text}" for n, text in chat_templates(target, settings).items()}
        write_chat_templates(target, settings, templates)
        write_json(target / TOKENIZER_CONFIG, settings)
