"""SentencePiece BPE with byte fallback (LLaMA 2, TinyLlama): the form of its tokenizer.json, and its scores.

llama.cpp merges any two neighbours whose text is a token, the token of highest score first. `tokenizers`
merges pairs of a list in order. Both do the same if the list has every pair that makes a token and keeps the
pairs of one token together; then a token's score is minus the rank of its pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minigpt_edge_runtime.errors import EdgeError

SPACE = "\u2581"
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
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
    if not _writes_spaces(tokenizer):
        raise EdgeError(
            "the tokenizer treats spaces in a way that llama.cpp has not (it puts one before every text and "
            "writes them as \u2581)",
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


def _writes_spaces(tokenizer: dict[str, Any]) -> bool:
    """Whether a space is put before the text and spaces become \u2581, without splitting the text."""
    normalizer, pre = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    if pre is None and normalizer and normalizer.get("type") == "Sequence":
        steps = normalizer.get("normalizers") or []
        return steps == [
            {"type": "Prepend", "prepend": SPACE},
            {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        ]
    return bool(
        normalizer is None
        and pre
        and pre.get("type") == "Metaspace"
        and pre.get("replacement") == SPACE
        and pre.get("prepend_scheme") == "always"
        and pre.get("split") is False
    )
