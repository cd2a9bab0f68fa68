"""How often each token will occur in text that was not seen, estimated by cross-fitting over documents.

A token that occurs 50 times in one document is not 50 times as likely in the next as one that occurs once,
and one that never occurred may still come. So documents are left out in turns, and tokens that occur alike
in the rest are compared with how often they occur in what was left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

FOLDS = 10
# Tokens are alike that occur in as many documents, and as often in each: lower ends of the classes.
DOCUMENTS = (1, 2, 3, 4, 5, 7, 10, 15, 25, 50, 100)
BURSTS = (1.0, 1.5, 3.0, 8.0)
PRIOR = 20.0  # occurrences by which a class is drawn to all tokens of as many documents


@dataclass(frozen=True)
class Occurrences:
    """Where tokens occur: parallel arrays, one entry for each token of each document.

    Attributes:
        token, document: int64 [entries].
        count: int64 [entries], at least 1.
        rows: highest token id + 1.
    """

    token: np.ndarray
    document: np.ndarray
    count: np.ndarray
    rows: int

    @property
    def counts(self) -> np.ndarray:
        """How often each token occurs, int64 [rows]."""
        import numpy as np

        return np.bincount(self.token, self.count, self.rows).astype(np.int64)


def find_occurrences(documents: Sequence[np.ndarray], rows: int) -> Occurrences:
    """Where each token occurs; a single document is taken as FOLDS of its consecutive tokens.

    Args:
        documents: token ids of each, int64.
        rows: highest token id + 1.
    """
    import numpy as np

    if len(documents) == 1:
        documents = np.array_split(documents[0], FOLDS)
    found = [np.unique(ids, return_counts=True) for ids in documents]
    token, count = (np.concatenate([np.zeros(0, np.int64), *parts]) for parts in zip(*found, strict=True))
    lengths = [len(tokens) for tokens, _ in found]
    return Occurrences(token, np.repeat(np.arange(len(found)), lengths), count, rows)


def expected_occurrences(found: Occurrences, ids: Sequence[int]) -> np.ndarray:
    """Expected occurrences of each token in unseen text, per token of it: float64 [rows].

    Every fold of the documents is left out once. Classes of tokens that occur in about as many of the other
    documents, about as often in each, get the ratio of occurrences left out to those seen; a token in more
    documents is not expected less often. Tokens that the others lack share evenly what they are of the text
    left out.

    Args:
        found: in the training documents.
        ids: of the tokens there are; the rest of the rows expect nothing.
    """
    import numpy as np

    fold = found.document % FOLDS
    total = int(found.count.sum())
    seen, left = np.zeros((2, len(BURSTS), len(DOCUMENTS)))
    new = weight = 0.0
    known = np.zeros(found.rows, dtype=bool)
    known[list(ids)] = True
    for out in range(min(FOLDS, int(found.document.max(initial=0)) + 1)):
        part = fold == out
        length = int(found.count[part].sum())
        if not 0 < length < total:
            continue
        counts, documents = _sums(found, ~part)
        held = np.bincount(found.token[part], found.count[part], found.rows)
        burst, spread = _classes(counts, documents)
        there = documents > 0
        scale = length / (total - length)
        np.add.at(seen, (burst[there], spread[there]), counts[there] * scale)
        np.add.at(left, (burst[there], spread[there]), held[there])
        new += held[~there].sum() / length
        weight += (known & ~there).sum()
    counts, documents = _sums(found, np.ones(len(fold), dtype=bool))
    burst, spread = _classes(counts, documents)
    expected = counts * _ratios(seen, left)[burst, spread] / max(1, total)
    unseen = known & (documents == 0)
    expected[unseen] = new / max(1.0, weight)
    return expected


def _sums(found: Occurrences, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Occurrences, and documents that have one, of each token among the entries; float64 [rows]."""
    import numpy as np

    token = found.token[entries]
    return np.bincount(token, found.count[entries], found.rows), np.bincount(
        token, minlength=found.rows
    ).astype(np.float64)


def _classes(counts: np.ndarray, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each token's place in BURSTS and in DOCUMENTS; those of tokens that do not occur mean nothing."""
    import numpy as np

    burst = np.searchsorted(BURSTS, counts / np.maximum(documents, 1), side="right") - 1
    spread = np.searchsorted(DOCUMENTS, documents, side="right") - 1
    return np.maximum(burst, 0), np.maximum(spread, 0)


def _ratios(seen: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Left out ÷ seen for each class, float64 [bursts, documents]; times the documents, it does not fall.

    Args:
        seen, left: occurrences of each class, those seen scaled to as much text as was left out.
    """
    import numpy as np

    whole = seen.sum(0)
    common = np.divide(left.sum(0), whole, out=np.ones_like(whole), where=whole > 0)
    drawn = (left + PRIOR * common) / (seen + PRIOR)
    spread = np.array(DOCUMENTS)
    rows = zip(drawn * spread, (seen + 1e-9) / spread, strict=True)
    return np.stack([_rising(row, weights) / spread for row, weights in rows])


def _rising(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The closest values, by weighted squares, of which none is below the one before (pooled neighbours)."""
    import numpy as np

    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        pool = (float(value), float(weight), 1)
        while pools and pools[-1][0] > pool[0]:
            before = pools.pop()
            both = before[1] + pool[1]
            pool = ((before[0] * before[1] + pool[0] * pool[1]) / both, both, before[2] + pool[2])
        pools.append(pool)
    return np.repeat([value for value, _, _ in pools], [length for _, _, length in pools])
