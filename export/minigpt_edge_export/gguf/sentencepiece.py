"""SentencePiece BPE with byte fallback (LLaMA 2, TinyLlama): the form of its tokenizer.json, and its scores.

llama.cpp merges any two neighbours whose text is a token, the token of highest score first. `tokenizers`
merges pairs of a list in order. Both do the same if the list has every pair that makes a token and keeps the
pairs of one token together; then a token's score is minus the rank of its pairs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from minigpt_edge_runtime.errors import EdgeError

SPACE = "\u2581"
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_PREPEND = {"type": "Prepend", "prepend": SPACE}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_HINT = "use a model with LLaMA's tokenizer, or a byte-level BPE"


def is_sentencepiece(tokenizer: dict[str, Any]) -> bool:
    """Whether a tokenizer.json (parsed) is a SentencePiece BPE that spells unknown characters as bytes."""
    model = tokenizer.get("model") or {}
    return bool(model.get("type") == "BPE" and model.get("byte_fallback"))


def check_sentencepiece(tokenizer: dict[str, Any]) -> None:
    """Raise EdgeError unless llama.cpp makes the same tokens of every text."""
    model = tokenizer["model"]
    lacking = [token for token in BYTES if token not in model["vocab"]]
    if lacking:
        raise EdgeError(f"the tokenizer lacks {lacking[0]}, so text would be lost", _HINT)
    if spaces_of(tokenizer) not in ("prefix", "none") or model.get("ignore_merges") or model.get("dropout"):
        raise EdgeError(
            "the tokenizer treats spaces in a way that llama.cpp has not (it writes them as \u2581, and puts "
            "one before every text or before none)",
            _HINT,
        )
    ranks = _ranks(model)
    vocabulary = model["vocab"]
    for token in vocabulary.keys() - set(BYTES):
        pairs = ((token[:at], token[at:]) for at in range(1, len(token)))
        for pair in pairs:
            if pair not in ranks and pair[0] in vocabulary and pair[1] in vocabulary:
                raise EdgeError(f"the merges lack {pair}, which llama.cpp would use", _HINT)
    # runs of spaces have one score in LLaMA's model; both ways they grow from the left
    made = [token for token in map("".join, ranks) if token.strip(SPACE)]
    starts = [token for index, token in enumerate(made) if index == 0 or made[index - 1] != token]
    if len(starts) != len(set(starts)):
        raise EdgeError("the merges are in an order that scores of tokens can't express", _HINT)


def scores(tokenizer: dict[str, Any], tokens: Sequence[str]) -> list[float]:
    """A score for each token, the higher the earlier it is merged; what nothing merges comes last."""
    best: dict[str, int] = {}
    ranks = _ranks(tokenizer["model"])
    for pair, rank in ranks.items():
        best.setdefault("".join(pair), rank)
    return [-float(best.get(token, len(ranks))) for token in tokens]


def _ranks(model: dict[str, Any]) -> dict[tuple[str, str], int]:
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return {(left, right): rank for rank, (left, right) in enumerate(pairs)}


def spaces_of(tokenizer: dict[str, Any]) -> str | None:
    """Where a \u2581 is put that stands for no space of the text.

    Returns:
        "prefix": before every text, and before what follows an added token; llama.cpp's `add_space_prefix`.
        "none": nowhere.
        "always": as "prefix", but not before a space. "first": as "always", but only at a text's beginning.
        None: the text is split or changed in another way.
    """
    normalizer, pre = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    steps = [] if normalizer is None else (normalizer.get("normalizers") or [normalizer])
    prepends, replaces = _PREPEND in steps, _REPLACE in steps
    if steps != [step for step in (_PREPEND, _REPLACE) if step in steps] or not (pre or replaces):
        return None
    if pre is None:
        return "prefix" if prepends else "none"
    if pre.get("type") != "Metaspace" or pre.get("replacement") != SPACE or pre.get("split", True):
        return None
    scheme = pre.get("prepend_scheme") or ("always" if pre.get("add_prefix_space", True) else "never")
    return "prefix" if prepends else {"never": "none"}.get(scheme, str(scheme))


def with_spaces(tokenizer: dict[str, Any], prefix: bool) -> dict[str, Any]:
    """A tokenizer.json (parsed) that treats spaces as llama.cpp does, with or without `add_space_prefix`."""
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
    ]
    added = copy.deepcopy(tokenizer.get("added_tokens") or [])
    if tokenizer.get("normalizer") is None:  # the flag had no effect, and shall have none
        for token in added:
            token["normalized"] = False
    return {
        **tokenizer,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [_PREPEND, _REPLACE] if prefix else [_REPLACE]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": steps},
    }
