"""Added tokens whose flags llama.cpp has not, and those that it takes for special because of their text."""

from __future__ import annotations

import copy
from typing import Any

from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.formats.end_tokens import special_by_text

_MEANING = {
    "lstrip": "takes the spaces before it",
    "rstrip": "takes the spaces after it",
    "single_word": "is only found between words",
    "normalized": "is found after a space was put before the text",
}


def check_added_tokens(tokenizer: dict[str, Any]) -> None:
    """Raise EdgeError for a token of a tokenizer.json (parsed) that llama.cpp would find elsewhere in a text.

    GGUF has no field for the flags. `normalized` only counts where a normalizer puts something before texts.
    """
    normalizer = tokenizer.get("normalizer") or {}
    prepends = any(step.get("type") == "Prepend" for step in (normalizer.get("normalizers") or [normalizer]))
    for token in tokenizer.get("added_tokens") or []:
        for flag, meaning in _MEANING.items():
            if token.get(flag) and (flag != "normalized" or prepends):
                raise EdgeError(
                    f"the added token {token['content']!r} has the flag {flag} (it {meaning}), "
                    "which GGUF can't express",
                    f'if no text of yours needs it, set "{flag}": false for this token in tokenizer.json, '
                    "and in tokenizer_config.json if it is there",
                )


def with_fixed_types(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json in which tokens are special where llama.cpp takes them for that by their text."""
    vocabulary, added = tokenizer["model"]["vocab"], copy.deepcopy(tokenizer.get("added_tokens") or [])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    known = {token["content"]: token for token in added}
    for text, special in special_by_text(vocabulary.keys() | known.keys()).items():
        if text in known:
            known[text]["special"] = special
        elif special:
            added.append({"id": vocabulary[text], "content": text, **flags, "special": True})
    return {**tokenizer, "added_tokens": sorted(added, key=lambda token: token["id"])}
