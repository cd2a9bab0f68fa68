"""Translation as text: how a pair of sentences is written, so that a language model learns to translate."""

from __future__ import annotations

import re
from collections.abc import Iterable

PAIRS_PER_DOCUMENT = 8
_SOURCE, _TARGET = "English: ", "Traditional Chinese: "
_PAIR = re.compile(rf"^{_SOURCE}(.+)\n{_TARGET}(.+)$", re.MULTILINE)


def format_pair(source: str, target: str) -> str:
    """Two lines, a sentence and its translation."""
    return f"{prompt(source)} {target}"


def prompt(source: str) -> str:
    """What a translation goes on from, with the space before it."""
    return f"{_SOURCE}{source}\n{_TARGET.rstrip()}"


def pair_documents(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Documents of a few pairs each; blank space is made single, pairs with an empty side are left out."""
    found = []
    for source, target in pairs:
        source, target = " ".join((source or "").split()), " ".join((target or "").split())
        if source and target:
            found.append(format_pair(source, target))
    steps = range(0, len(found), PAIRS_PER_DOCUMENT)
    return ["\n\n".join(found[at : at + PAIRS_PER_DOCUMENT]) for at in steps]


def read_pairs(documents: Iterable[str]) -> list[tuple[str, str]]:
    """The pairs in documents that `format_pair` wrote."""
    return [(found[1], found[2]) for text in documents for found in _PAIR.finditer(text)]
