"""A small tokenizer of LLaMA 2's kind: pieces with scores, spaces as pieces, other characters as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SPACE = "\u2581"


def sentencepiece_json(texts: Sequence[str], size: int = 600) -> dict[str, Any]:
    """A tokenizer.json as transformers makes it from a SentencePiece model: a merge for every split."""
    import json

    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    trainer = trainers.BpeTrainer(vocab_size=size - 259, show_progress=False)
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(texts, trainer)
    learned = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    pieces = [piece for piece, _ in learned if len(piece) > 1] + [SPACE * n for n in (2, 3, 4)]
    characters = sorted({piece for piece, _ in learned if len(piece) == 1} | {SPACE})
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *characters]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    merges = [
        (piece[:at], piece[at:])
        for piece in pieces
        for at in range(len(piece) - 1, 0, -1)
        if piece[:at] in vocabulary and piece[at:] in vocabulary
    ]
    model = models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return json.loads(tokenizer.to_str())  # type: ignore[no-any-return]
