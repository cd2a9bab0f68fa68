"""Which tokens of a checkpoint begin and end texts: one answer for every format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge_runtime.engines.engine import END_OF_TEXT
from minigpt_edge_runtime.engines.text import open_tokenizer
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json
from minigpt_edge_runtime.formats.end_tokens import ends_by_text
from minigpt_edge_runtime.formats.tokenizer_files import (
    GENERATION_CONFIG,
    TOKENIZER,
    read_tokenizer_config,
    special_texts,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ROLES = ("bos", "eos", "unk", "pad")


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of special tokens.

    Attributes:
        ids: "bos", "eos", "unk", "pad" -> id, where there is one; "bos" and "eos" always.
        ends: all that end a generation, "eos" first: what the tokenizer and the configs say, and what
            llama.cpp takes for an end by its text.
    """

    ids: Mapping[str, int]
    ends: tuple[int, ...]


def special_tokens(directory: Path, tokenizer: Tokenizer, size: int) -> SpecialTokens:
    """The special tokens of a checkpoint; llama.cpp would take token 11 for a BOS or EOS that is not stated.

    Where there is no EOS, another end token stands for it, else the token that documents start with; where
    there is no BOS, that one.

    Args:
        size: tokens of the vocabulary.

    Raises:
        EdgeError: a token that is named does not exist, or there is none to begin a document with.
    """
    settings, config = read_tokenizer_config(directory), read_json(directory / "config.json")
    generation = directory / GENERATION_CONFIG
    configs = [read_json(generation) if generation.exists() else {}, config]
    ids, texts = {}, special_texts(settings)
    for role in ROLES:
        stated = [index for given in configs for index in _listed(given, role, size)]
        if text := texts.get(f"{role}_token"):
            ids[role] = _by_text(tokenizer, role, text, directory)
        elif stated:
            ids[role] = stated[0]
    # transformers asks generation_config.json, and config.json where that says nothing.
    ends = set(next(filter(None, (_listed(given, "eos", size) for given in configs)), []))
    ends |= ends_by_text(tokenizer.token_to_id)
    if "eos" in ids:
        ends.add(ids["eos"])
    start = tokenizer.token_to_id(END_OF_TEXT)
    start = ids.get("bos", ids.get("eos", min(ends, default=None))) if start is None else start
    if start is None:
        raise EdgeError(
            f"the tokenizer of {directory} names no token that could start a text",
            "set bos_token_id in config.json",
        )
    eos = ids.setdefault("eos", min(ends, default=start))
    ids.setdefault("bos", start)
    ordered = (eos, *sorted(ends - {eos}))
    return SpecialTokens({role: ids[role] for role in ROLES if role in ids}, ordered)


def end_ids(directory: Path) -> tuple[int, ...]:
    """The tokens of a checkpoint that end a generation, EOS first; EdgeError as `special_tokens`."""
    tokenizer = open_tokenizer(directory / TOKENIZER, "use an undamaged tokenizer.json")
    rows = int(read_json(directory / "config.json")["vocab_size"])
    return special_tokens(directory, tokenizer, rows).ends


def _by_text(tokenizer: Tokenizer, role: str, text: str, directory: Path) -> int:
    found: int | None = tokenizer.token_to_id(text)
    if found is None:
        raise EdgeError(
            f"{directory} has no token {text!r}, which tokenizer_config.json names as {role}_token",
            "correct the name, or add the token to tokenizer.json",
        )
    return found


def _listed(config: Mapping[str, Any], role: str, size: int) -> list[int]:
    """The ids that a config gives a role; -1 stands for none."""
    stated = config.get(f"{role}_token_id")
    ids = [index for index in (stated if isinstance(stated, list) else [stated]) if index not in (None, -1)]
    for index in ids:
        if type(index) is not int:
            raise EdgeError(f"{role}_token_id {index!r} is not the id of a token", "correct config.json")
        if not 0 <= index < size:
            raise EdgeError(
                f"{role}_token_id {index} is outside the vocabulary of {size}", "correct config.json"
            )
    return ids
