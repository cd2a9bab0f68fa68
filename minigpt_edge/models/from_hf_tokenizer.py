"""A Hugging Face tokenizer in a form that llama.cpp has too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_TRIED = ("The tenant may", "  two spaces", "Zu\u0308rich")


def read_hf_tokenizer(source: Path) -> dict[str, Any]:
    """The tokenizer.json (parsed) of a directory as our checkpoints have it.

    llama.cpp takes text as it comes, so NFC is dropped. Where a ▁ is put before some texts only, it is
    put before all or none, whichever gives the same prompts as before.

    Raises:
        EdgeError: it is damaged, or does what llama.cpp has not.
    """
    path = source / TOKENIZER
    tokenizer = read_json(path)
    with understanding(path):
        if (tokenizer.get("normalizer") or {}).get("type") == "NFC":
            tokenizer["normalizer"] = None
        if loaded := _by_transformers(source):
            _take_flags(tokenizer, json.loads(loaded.backend_tokenizer.to_str()), source)
        if is_sentencepiece(tokenizer) and spaces_of(tokenizer):
            tokenizer = with_spaces(tokenizer, _needs_prefix(tokenizer, source))
        check_tokenizer(tokenizer)
        return tokenizer


def _by_transformers(source: Path) -> Any:
    """The tokenizer as transformers loads it; None where that needs code of a stranger."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(source), local_files_only=True)
    except Exception:  # transformers and what it uses raise many kinds; tokenizer.json can do without
        return None


def _take_flags(tokenizer: dict[str, Any], loaded: dict[str, Any], source: Path) -> None:
    """Give added tokens the flags that tokenizer_config.json or their class gives them, and add its own."""
    rows = read_json(source / "config.json").get("vocab_size") or 0
    ours = {token["content"]: token for token in tokenizer.setdefault("added_tokens", [])}
    for token in loaded["added_tokens"]:
        known = ours.get(token["content"])
        if known is not None:
            # Without a normalizer, as LLaMA's own class has it, the flag has no effect.
            normalized = token["normalized"] and loaded["normalizer"] is not None
            known.update({**token, "id": known["id"], "normalized": normalized})
        elif token["id"] < rows:
            tokenizer["added_tokens"].append(token)


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
    return rendered(chat_templates(directory, settings).get(DEFAULT), special_texts(settings))


def _ids(tokenizer: dict[str, Any], texts: list[str]) -> list[list[int]]:
    return _ids_of(open_tokenizer(tokenizer), texts)


def _ids_of(opened: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [opened.encode(text, add_special_tokens=False).ids for text in texts]


def complete_settings(source: Path, target: Path) -> list[str]:
    """Write out what tokenizer_config.json leaves to a tokenizer's class: the checkpoint has another class.

    Returns:
        what transformers does otherwise with the base than with the checkpoint.
    """
    settings, config = read_tokenizer_config(target), read_json(target / "config.json")
    loaded, tokenizer = _by_transformers(source), open_tokenizer(target / TOKENIZER)
    for name, text in (loaded.special_tokens_map if loaded else {}).items():
        index = tokenizer.token_to_id(text) if isinstance(text, str) else None
        if name not in settings and index is not None:
            settings[name] = text
            if name in ("bos_token", "eos_token") and config.get(f"{name}_id") is None:
                config[f"{name}_id"] = index
    write_json(target / TOKENIZER_CONFIG, settings)
    write_json(target / "config.json", config)
    _begin_with_space(source, target)
    texts = [*_TRIED, *_prompts(target)]
    theirs = [loaded(text, add_special_tokens=False).input_ids for text in texts] if loaded else []
    differ = [
        repr(text[:40])
        for text, a, b in zip(texts, theirs, _ids_of(tokenizer, texts), strict=False)
        if a != b
    ]
    return [f"transformers makes other tokens of {differ[0]} with the base's own tokenizer"] if differ else []


def _begin_with_space(source: Path, target: Path) -> None:
    """Let the chat template write the space that only the base's tokenizer puts before a prompt."""
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
