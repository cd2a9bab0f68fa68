"""Documents from what a file holds: long texts are divided, short rows are gathered."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

MIN_CHARACTERS = 200  # of a document: less teaches nothing about how a text goes on
# (bytes above which a text is divided, bytes of each part); the next pair where that makes too few documents.
SIZES = ((32_000, 16_000), (16_000, 8_000), (8_000, 4_000), (4_000, 2_000))
GATHER = 2_000  # characters of short rows that make a document
SHORT_SHARE = 0.25  # of a file's characters in short rows: more, and they are gathered rather than dropped
MIN_REPEATED = 30  # characters: a shorter row says nothing about another when it comes again

# Where a text may be divided: blank lines, line ends, sentences, spaces.
_ENDS = (r"(?<=\n)(?=\n)", r"(?<=\n)", r"(?<=[.!?…]\s)|(?<=[。！？])", r"(?<=\s)")


def divide(text: str, above: int = SIZES[0][0], part: int = SIZES[0][1]) -> list[str]:
    """A text as it is, or, if it is longer than `above` bytes, as parts of up to `part` bytes.

    Parts end at blank lines where there are any, else at line ends, sentences, spaces, or between two
    characters; nothing is lost.
    """
    if _bytes(text) <= above:
        return [text]
    parts: list[str] = []
    held: list[str] = []
    size = 0
    for unit in _units(text, part, _ENDS):
        if held and size + _bytes(unit) > part:
            parts.append("".join(held))
            held, size = [], 0
        held.append(unit)
        size += _bytes(unit)
    return [*parts, "".join(held)]


def _units(text: str, most: int, ends: Sequence[str]) -> Iterator[str]:
    """A text in units of at most `most` bytes, as large as the first of the ends makes them."""
    if _bytes(text) <= most:
        yield text
    elif not ends:
        step = most // 4  # bytes of a character at most
        yield from (text[at : at + step] for at in range(0, len(text), step))
    else:
        for unit in re.split(ends[0], text):
            yield from _units(unit, most, ends[1:])


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def gather(rows: Sequence[str]) -> tuple[list[str], int]:
    """Rows as documents, and how many repeated rows were left out.

    Rows under 200 characters that hold a quarter of the characters or more make documents of about 2,000
    characters with the rows between them, in their order; else every row is a document. Of gathered rows that
    say the same (but for numbers, case and marks) one is taken: another could be asked about after training.
    """
    short = sum(len(row) for row in rows if len(row) < MIN_CHARACTERS)
    if short < SHORT_SHARE * sum(map(len, rows)) or len(rows) < 2:
        return list(rows), 0
    seen: set[str] = set()
    distinct = [row for row in rows if not _is_repeated(row, seen)]
    between = "\n\n" if any("\n" in row.strip() for row in distinct) else "\n"
    documents: list[str] = []
    held: list[str] = []
    for row in distinct:
        held.append(row.strip())
        if sum(map(len, held)) >= GATHER:
            documents.append(between.join(held))
            held = []
    rest = between.join(held)
    if documents and 0 < len(rest) < MIN_CHARACTERS:
        documents[-1] += between + rest
    elif rest:
        documents.append(rest)
    return documents, len(rows) - len(distinct)


def _is_repeated(row: str, seen: set[str]) -> bool:
    """Whether an earlier row has the same words; the row is seen from now on."""
    words = " ".join(re.findall(r"\w+", re.sub(r"\d+", "0", row.casefold())))
    repeated = len(row) >= MIN_REPEATED and words in seen
    seen.add(words)
    return repeated
