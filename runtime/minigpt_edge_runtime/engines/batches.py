"""A text with several continuations laid out for one batch, so that llama.cpp computes them together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from minigpt_edge_runtime.engines.engine import Fork

if TYPE_CHECKING:
    import numpy as np


class Row(NamedTuple):
    """A token of a batch.

    Attributes:
        sequences: that it is part of: its branch's, or those of all branches for a token of the beginning.
        predicts: (fork, branch, token in the branch) that its logits are read for.
    """

    token: int
    position: int
    sequences: range
    predicts: list[tuple[int, int, int]]


def packs(forks: Sequence[Fork], sequences: int, context_length: int) -> Iterator[list[Row]]:
    """Rows to be computed together from an empty cache: a fork's, never of several.

    What shares a batch changes the last bits of what is computed, and a question's answer must not depend on
    the others that are asked. A fork whose branches are too many for the cache comes in parts, each with the
    beginning. `sequences` is at least 1, and each branch fits.
    """
    for index, fork in enumerate(forks):
        for part in _parts(fork, sequences, context_length):
            yield list(_rows(index, fork, part))


def runs(rows: Sequence[Row], logits: np.ndarray) -> Iterator[tuple[int, int, int, np.ndarray]]:
    """`Engine.forks`' items, from the logits [n, vocab] of those rows that predict something."""
    at = 0
    wanted = [row.predicts for row in rows if row.predicts]
    while at < len(wanted):
        end = at + 1
        if len(wanted[at]) == 1:
            (fork, branch, _) = wanted[at][0]
            while end < len(wanted) and len(wanted[end]) == 1 and wanted[end][0][:2] == (fork, branch):
                end += 1
        for place in wanted[at]:
            yield *place, logits[at:end]
        at = end


def _evaluated(branch: Sequence[int]) -> int:
    """Nothing is predicted from a branch's last token."""
    return max(0, len(branch) - 1)


def _parts(fork: Fork, sequences: int, context_length: int) -> Iterator[list[int]]:
    """Indices of branches that the cache holds together."""
    part: list[int] = []
    used = len(fork.beginning)
    for index, branch in enumerate(fork.branches):
        more = _evaluated(branch)
        if part and (len(part) == sequences or used + more > context_length):
            yield part
            part, used = [], len(fork.beginning)
        part.append(index)
        used += more
    yield part


def _rows(index: int, fork: Fork, part: Sequence[int]) -> Iterator[Row]:
    everyone = range(max(1, len(part)))
    last = len(fork.beginning) - 1
    for position, token in enumerate(fork.beginning):
        predicts = [(index, at, 0) for at in part if fork.branches[at]] if position == last else []
        yield Row(token, position, everyone, predicts)
    for sequence, at in enumerate(part):
        for offset, token in enumerate(fork.branches[at][:-1], 1):
            yield Row(token, last + offset, range(sequence, sequence + 1), [(index, at, offset)])
