"""Translation as text: how a pair of sentences is written, so that a language model learns to translate."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial

from minigpt_edge.data.near_duplicates import NearDuplicates

PAIRS_PER_DOCUMENT = 8
SIMILARITY = 0.6
_SOURCE, _TARGET = "English: ", "Traditional Chinese: "
_PAIR = re.compile(rf"^{_SOURCE}(.+)\n{_TARGET}(.+)$", re.MULTILINE)


def format_pair(source: str, target: str) -> str:
    """Two lines, a sentence and its translation."""
    return f"{prompt(source)} {target}"


def prompt(source: str) -> str:
    """What a translation goes on from, with the space before it."""
    return f"{_SOURCE}{source}\n{_TARGET.rstrip()}"


def pair_document(pairs: Iterable[tuple[str, str]]) -> str:
    """One document of pairs; blank space is made single, pairs with an empty side are left out."""
    single = (
        (" ".join((source or "").split()), " ".join((target or "").split())) for source, target in pairs
    )
    return "\n\n".join(format_pair(source, target) for source, target in single if source and target)


def pair_documents(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Documents of eight pairs each, where nothing tells which pairs belong together."""
    steps = range(0, len(pairs), PAIRS_PER_DOCUMENT)
    return [pair_document(pairs[at : at + PAIRS_PER_DOCUMENT]) for at in steps]


def read_pairs(documents: Iterable[str]) -> list[tuple[str, str]]:
    """The pairs in documents that `format_pair` wrote."""
    return [(found[1], found[2]) for text in documents for found in _PAIR.finditer(text)]


def distinct_pairs(documents: Iterable[str]) -> tuple[list[str], dict[str, int]]:
    """Documents of pairs without those whose source is like an earlier one, and {"read", "near_duplicate"}.

    Alike are sources that share 60 % of their different words, all numbers being one word: one of them could
    be trained on and the other asked about. MinHash finds whom to compare.
    """
    near = NearDuplicates(SIMILARITY - 0.1)
    seen: list[set[str]] = []
    kept, read = [], 0

    def is_alike(words: set[str], number: int) -> bool:
        return len(words & seen[number]) >= SIMILARITY * len(words | seen[number])

    for document in documents:
        fresh = []
        for source, target in read_pairs([document]):
            read += 1
            words = set(re.findall(r"\w+", re.sub(r"\d+", "0", source.lower()))) or {source}
            if near.add(words, partial(is_alike, words)):
                seen.append(words)
                fresh.append((source, target))
        kept += [pair_document(fresh)] if fresh else []
    return kept, {"read": read, "near_duplicate": read - len(seen)}
