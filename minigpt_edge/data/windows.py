"""Evaluation windows: pieces of held-out documents, each scored on its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json, sha256_text, write_json
from minigpt_edge_runtime.scoring.held_out import Window, read_held_out

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_BYTES = 4_000
MAX_TOKENS = 1_000
MIN_BYTES = 200
PER_DOCUMENT = 2
MIN_WINDOWS = 4  # Fewer in a split say too little about a domain.


def choose_windows(
    documents: Iterable[dict[str, str]], tokenizer: Tokenizer, tokens: int, longest: int = MAX_TOKENS
) -> list[Window]:
    """At least four windows with at least `tokens` base tokens in all, or all there are if they hold fewer.

    Each has at most 4,000 bytes and `longest` tokens of `tokenizer`, and ends at a line end where there is
    one; at most two come from one document. Content hashes decide which ones, so that only the texts matter.

    Args:
        documents: {"text", "id"}; the ids decide which windows of a document count.
        tokenizer: the base model's.
        tokens: how many base tokens are enough.

    Returns:
        The windows in the order of their hashes.
    """
    candidates: list[tuple[str, str]] = []
    for document in documents:
        pieces = [piece for piece in cut(document["text"]) if len(piece.encode()) >= MIN_BYTES]
        hashed = sorted((sha256_text(f"{document['id']} {piece}"), piece) for piece in pieces)
        candidates += hashed[:PER_DOCUMENT]
    windows: list[Window] = []
    total = 0
    for _, piece in sorted(candidates):
        if total >= tokens and len(windows) >= MIN_WINDOWS:
            break
        text, count = _fitted(piece, tokenizer, longest)
        windows.append(Window(text, len(text.encode()), count))
        total += count
    return windows


def cut(text: str, limit: int = MAX_BYTES) -> list[str]:
    """A text as pieces of at most `limit` bytes of UTF-8, without blank space at their ends.

    A piece ends at the last line end that fits, else at the last space, else between two characters.
    """
    data = text.encode()
    pieces, start = [], 0
    while start < len(data):
        end = start + limit
        if end >= len(data):
            end = len(data)
        else:
            while data[end] & 0xC0 == 0x80:  # This byte is inside of a character.
                end -= 1
            for mark in (b"\n", b" "):
                if (last := data.rfind(mark, start + 1, end)) > 0:
                    end = last
                    break
        pieces.append(data[start:end].decode().strip())
        start = end
    return [piece for piece in pieces if piece]


def _fitted(piece: str, tokenizer: Tokenizer, longest: int) -> tuple[str, int]:
    """The beginning of a piece, up to a line end or space, that has at most `longest` tokens."""
    encoding = tokenizer.encode(piece, add_special_tokens=False)
    while len(encoding.ids) > longest:
        fitting = piece[: encoding.offsets[longest - 1][1]]
        shorter = cut(fitting, max(4, len(fitting.encode()) - 1))[0]
        piece = shorter if len(shorter) < len(piece) else piece[: len(piece) // 2]
        encoding = tokenizer.encode(piece, add_special_tokens=False)
    return piece, len(encoding.ids)


class Texts(NamedTuple):
    """An evaluation text file (`*.texts.json`): windows, each scored from the token `document_start` on."""

    document_start: str
    windows: list[Window]

    def content(self, count: int) -> dict[str, Any]:
        """The file's keys, with the first `count` windows."""
        return {
            "document_start": self.document_start,
            "windows": [asdict(window) for window in self.windows[:count]],
        }


def write_texts(path: Path, document_start: str, split: str, windows: Sequence[Window]) -> None:
    """Write an evaluation text file, which the runtime reads too."""
    texts = [asdict(window) for window in windows]
    write_json(path, {"document_start": document_start, "split": split, "windows": texts})


def read_texts(path: Path) -> Texts:
    """An evaluation text file; EdgeError if it is missing, damaged or has no windows."""
    content = read_json(path)
    try:
        found = read_held_out(content)
    except EdgeError as error:
        raise EdgeError(f"{path}: {error.message}", error.hint) from error
    if found.document_start is None:
        raise EdgeError(f"{path} does not name its document-start token", "make the corpus again")
    return Texts(found.document_start, found.windows)
