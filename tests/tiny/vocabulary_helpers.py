"""A small byte-level BPE tokenizer and texts to try it on."""

from __future__ import annotations

import json
import random
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from minigpt_edge.prune.vocabulary.choose import open_tokenizer, read_vocabulary

BYTES = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
END, START, STOP, ARTICLE = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<article>"
TRAINING = [
    "Permission is hereby granted, free of charge, to any person obtaining a copy of this software and "
    "associated documentation files, to deal in the software without restriction, including the rights to "
    "use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the software.",
    "Neither the name of the copyright holder nor the names of its contributors may be used to endorse or "
    "promote products derived from this software without specific prior written permission in 2024.",
    "Dieser Vertrag unterliegt dem Recht der Schweiz; Artikel 97 gilt. aaaa aaaaaaaa -------- ========",
    "Закон есть закон, и право есть право. 法律面前人人平等。法律は法律です。 القانون فوق الجميع",
]
CORPUS = [
    "Permission is granted to use, copy and distribute this software.",
    "The name of the software 1,345.",
]
SCRIPTS = [
    "Latin: Żółć, naïve façade 1,234.50", "Закон есть закон", "Ο νόμος είναι νόμος", "法律面前人人平等。",
    "法律は法律です", "법 앞의 평등", "القانون فوق الجميع", "החוק הוא החוק", "कानून सबके लिए", "กฎหมายคือกฎหมาย",
    "🙂👩‍⚖️⚖️🏛️", "\x00\x01\x04\x13\x1f\x7f tab\t\r\n\u200b\u2028", "0123456789 ٣٤٥ ½ Ⅷ", "  \n\n   x  ",
]  # fmt: skip


def train(ignore_merges: bool = False) -> dict[str, Any]:
    """A byte-level BPE of 593 tokens that splits digits, with three specials and one added token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=592,
        special_tokens=[END, START, STOP],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING * 3, trainer)
    tokenizer.add_tokens([AddedToken(ARTICLE, special=False, normalized=False)])
    data = json.loads(tokenizer.to_str())
    data["model"]["ignore_merges"] = ignore_merges
    return data


def ids_of(data: dict[str, Any]) -> dict[str, int]:
    return open_tokenizer(data).get_vocab(with_added_tokens=True)


def must_stay(data: dict[str, Any]) -> set[int]:
    vocabulary = read_vocabulary(data)
    return set(vocabulary.byte_symbols | vocabulary.added)


def mixtures(count: int, seed: int = 0) -> list[str]:
    """Texts put together from words, scripts and random characters."""
    chance = random.Random(seed)
    words = " ".join(TRAINING).split() + [f" {s}" for s in SCRIPTS] + [ARTICLE, END]

    def noise() -> str:
        return "".join(
            chr(chance.choice([chance.randrange(0xD800), chance.randrange(128)])) for _ in range(3)
        )

    return [
        "".join(chance.choice([chance.choice(words), f" {chance.choice(words)}", noise()]) for _ in range(12))
        for _ in range(count)
    ]


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def decode(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False)
