"""Training windows: the same pieces of the training documents are calibrated on and recovered on.

Each begins with the document-start token, as the held-out windows do that quality is measured on.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import TYPE_CHECKING

from minigpt_edge_runtime.errors import EdgeError

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

DOCUMENTS_AT_ONCE = 64


class TrainingWindows:
    """Windows of `length` + 1 token ids (int32), the last id of each being only predicted.

    Documents are cut into pieces of `length` tokens, each behind a document start: a window. What is left at
    their ends shares windows; what does not fit there opens the next one.

    Args:
        texts: the training documents.
        seed: decides the order; the first windows are the same however many are asked for.

    Raises:
        EdgeError: the vocabulary lacks the document-start token.
    """

    def __init__(
        self, texts: Sequence[str], tokenizer: Tokenizer, document_start: str, *, length: int, seed: int
    ) -> None:
        start = tokenizer.token_to_id(document_start)
        if start is None:
            raise EdgeError(f"the vocabulary lacks {document_start!r}, which every text starts from")
        self.texts, self.tokenizer, self.start = texts, tokenizer, start
        self.length, self.seed = length, seed

    def take(self, number: int) -> np.ndarray:
        """The first `number` windows, int32 [number, length + 1]; the text repeats where it is shorter.

        Raises:
            EdgeError: the texts have fewer than `length` tokens in all.
        """
        import numpy as np

        windows: list[np.ndarray] = []
        for turn in count():
            passed = list(islice(self.one_pass(turn), number - len(windows)))
            if not passed:
                raise EdgeError(
                    f"the training text has fewer than the {self.length + 1} tokens of one training sequence",
                    "add text to the corpus",
                )
            windows += passed
            if len(windows) == number:
                return np.stack(windows)
        raise AssertionError("an endless loop has ended")

    def one_pass(self, turn: int = 0) -> Iterator[np.ndarray]:
        """The windows of one pass over all the texts, in an order of its own."""
        import numpy as np

        filled: list[int] = []
        for piece in self._pieces(random.Random(f"{self.seed}:{turn}"), everywhere=turn == 0):
            if len(piece) == self.length:
                yield np.asarray([self.start, *piece], np.int32)
                continue
            filled += [self.start, *piece]
            if len(filled) > self.length:
                yield np.asarray(filled[: self.length + 1], np.int32)
                rest = filled[self.length + 1 :]
                filled = [self.start, *rest] if rest else []

    def _pieces(self, rng: random.Random, *, everywhere: bool) -> Iterator[list[int]]:
        """Pieces of `length` tokens at most: in any order, or one of every document, then a second …

        Many documents with few tokens each are worth more to calibration than few whole ones, and only what
        is needed is tokenized then.
        """
        later: list[list[list[int]]] = []
        for pieces in self._documents(rng):
            rng.shuffle(pieces)
            if everywhere:
                yield pieces.pop()
            if pieces:
                later.append(pieces)
        if everywhere:
            while later:
                for pieces in later:
                    yield pieces.pop()
                later = [pieces for pieces in later if pieces]
            return
        flat = [piece for pieces in later for piece in pieces]
        rng.shuffle(flat)
        yield from flat

    def _documents(self, rng: random.Random) -> Iterator[list[list[int]]]:
        order = rng.sample(range(len(self.texts)), len(self.texts))
        for first in range(0, len(order), DOCUMENTS_AT_ONCE):
            texts = [self.texts[number] for number in order[first : first + DOCUMENTS_AT_ONCE]]
            for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False):
                ids, length = encoding.ids, self.length
                if ids:
                    yield [ids[at : at + length] for at in range(0, len(ids), length)]
