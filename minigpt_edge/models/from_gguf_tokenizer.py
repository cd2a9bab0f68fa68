"""The tokenizer inside a GGUF file, as a Hugging Face tokenizer with the same token ids."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from minigpt_edge_export.gguf.pretokenizers import PreTokenizer, to_hugging_face
from minigpt_edge_export.gguf.sentencepiece import BYTES, SPACE
from minigpt_edge_runtime.errors import EdgeError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE


@dataclass(frozen=True)
class WholeTokens:
    """Tokens that are matched whole or put around texts.

    Attributes:
        special: never made from text when specials are off.
        user_defined: always matched.
        bos, eos: put before and after every text that is encoded with special tokens, or None.
    """

    special: list[str]
    user_defined: list[str]
    bos: str | None
    eos: str | None


def build_tokenizer(tokens: list[str], merges: list[str], whole: WholeTokens, pre: PreTokenizer) -> Tokenizer:
    """A byte-level BPE tokenizer whose ids are the positions in `tokens`.

    Args:
        tokens: byte-level symbols, such as "Ġthe"; special tokens as plain text.
        merges: "left right", in order of rank.
        pre: how text is split first.

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
    tokenizer = _with_whole_tokens(model, whole)
    tokenizer.decoder = decoders.ByteLevel()
    data = json.loads(tokenizer.to_str())
    data["pre_tokenizer"] = to_hugging_face(pre)
    return Tokenizer.from_str(json.dumps(data, ensure_ascii=False))


def build_sentencepiece(
    tokens: list[str], scores: list[float], whole: WholeTokens, unknown: str | None, prefix: bool
) -> Tokenizer:
    """A SentencePiece BPE with byte fallback whose ids are the positions in `tokens`.

    Every split of a token into two tokens becomes a merge, the tokens of highest score first, as transformers
    does it.

    Args:
        scores: of every token.
        unknown: the token that stands for what has no token; with byte tokens it is never made.
        prefix: a space is put before every text.

    Raises:
        EdgeError: tokens repeat, or there are not as many scores.
    """
    from tokenizers import decoders, models, normalizers

    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens) or len(scores) != len(tokens):
        raise EdgeError("the vocabulary is damaged: tokens repeat or lack scores", "use another file")
    ranked: list[tuple[float, int, int, str, str]] = []
    for token, score in zip(tokens, scores, strict=True):
        if token in BYTES or token in whole.special:
            continue
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in vocabulary and right in vocabulary:
                ranked.append((score, len(left), len(right), left, right))
    ranked.sort(key=lambda merge: merge[:3], reverse=True)
    merges = [(left, right) for *_, left, right in ranked]
    model = models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token=unknown)
    special = [*whole.special, *([unknown] if unknown else [])]
    tokenizer = _with_whole_tokens(model, replace(whole, special=special))
    first = [normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", SPACE)])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return tokenizer


def _with_whole_tokens(model: BPE, whole: WholeTokens) -> Tokenizer:
    """A tokenizer of a model, with its added tokens and what it puts around every text."""
    from tokenizers import AddedToken, Tokenizer, processors

    tokenizer = Tokenizer(model)
    around = [token for token in (whole.bos, whole.eos) if token is not None]
    if around:
        before, after = ([token] if token is not None else [] for token in (whole.bos, whole.eos))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", *after, *before, "$B", *after],
            special_tokens=[(token, model.token_to_id(token)) for token in dict.fromkeys(around)],
        )
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in whole.special])
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in whole.user_defined])
    return tokenizer
