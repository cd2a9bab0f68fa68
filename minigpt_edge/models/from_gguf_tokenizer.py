"""The tokenizer inside a GGUF file, as a Hugging Face tokenizer with the same token ids."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from minigpt_edge_export.gguf.pretokenizers import PreTokenizer, to_hugging_face
from minigpt_edge_export.gguf.sentencepiece import BYTES, SPACE
from minigpt_edge_runtime.errors import EdgeError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE


def build_tokenizer(
    tokens: list[str],
    merges: list[str],
    special: list[str],
    user_defined: list[str],
    pre: PreTokenizer,
    bos: str | None,
) -> Tokenizer:
    """A byte-level BPE tokenizer whose ids are the positions in `tokens`.

    Args:
        tokens: byte-level symbols, such as "Ġthe"; special tokens as plain text.
        merges: "left right", in order of rank.
        special: tokens that are never made from text when specials are off.
        user_defined: tokens that are always matched whole.
        pre: how text is split first.
        bos: a token to put before every text that is encoded with special tokens, or None.

    Raises:
        EdgeError: tokens repeat, or a merge makes a token that is not there.
    """
    from tokenizers import Tokenizer, decoders, models

    vocabulary = {token: index for index, token in enumerate(tokens)}
    parts = [merge.split(" ") for merge in merges]
    if len(vocabulary) != len(tokens) or any(len(part) != 2 for part in parts):
        raise EdgeError(
            "the vocabulary is damaged: tokens repeat or a merge has not two parts", "use another file"
        )
    try:
        model = models.BPE(
            vocabulary, [(left, right) for left, right in parts], ignore_merges=pre.ignore_merges
        )
    except Exception as error:  # tokenizers raises plain Exception
        raise EdgeError(f"the vocabulary is damaged: {error}", "use another file") from error
    tokenizer = _with_added_tokens(model, special, user_defined, bos)
    tokenizer.decoder = decoders.ByteLevel()
    data = json.loads(tokenizer.to_str())
    data["pre_tokenizer"] = to_hugging_face(pre)
    return Tokenizer.from_str(json.dumps(data, ensure_ascii=False))


def build_sentencepiece(
    tokens: list[str],
    scores: list[float],
    special: list[str],
    user_defined: list[str],
    unknown: str | None,
    bos: str | None,
) -> Tokenizer:
    """A SentencePiece BPE with byte fallback whose ids are the positions in `tokens`.

    Every split of a token into two tokens becomes a merge, the tokens of highest score first, as transformers
    does it.

    Args:
        scores: of every token.
        unknown: the token that stands for what has no token; with byte tokens it is never made.

    Raises:
        EdgeError: tokens repeat, or there are not as many scores.
    """
    from tokenizers import decoders, models, normalizers

    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens) or len(scores) != len(tokens):
        raise EdgeError("the vocabulary is damaged: tokens repeat or lack scores", "use another file")
    ranked: list[tuple[float, int, int, str, str]] = []
    for token, score in zip(tokens, scores, strict=True):
        if token in BYTES or token in special:
            continue
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in vocabulary and right in vocabulary:
                ranked.append((score, len(left), len(right), left, right))
    ranked.sort(key=lambda merge: merge[:3], reverse=True)
    merges = [(left, right) for *_, left, right in ranked]
    model = models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token=unknown)
    tokenizer = _with_added_tokens(model, [*special, *([unknown] if unknown else [])], user_defined, bos)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return tokenizer


def _with_added_tokens(model: BPE, special: list[str], user_defined: list[str], bos: str | None) -> Tokenizer:
    """A tokenizer of a model, with its added tokens and, before every text, its BOS token."""
    from tokenizers import AddedToken, Tokenizer, processors

    tokenizer = Tokenizer(model)
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", bos, "$B"], special_tokens=[(bos, model.token_to_id(bos))]
        )
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in user_defined])
    return tokenizer
