"""What it costs to spell a token in pieces, measured on the dense model before its vocabulary is trimmed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch  # noqa: TID253 - imported by the pipeline's prune stage only

from minigpt_edge.models.chunked_loss import chunked_nll
from minigpt_edge.models.forward import head_of, hidden_states
from minigpt_edge.prune.context import Done, unwatched
from minigpt_edge.prune.vocabulary.choose import FURTHER

if TYPE_CHECKING:
    from torch import Tensor

    from minigpt_edge.prune.vocabulary.choose import RemovalOrder, Vocabulary

MISSES = 64  # occurrences to measure on; with fewer than a quarter of them NATS is taken
LEAST = 1.0  # nats; a model that knows nothing of the text would lose none
NATS = 8.0  # SmolLM2-135M, economics: 7.7 for two pieces


def spelling_cost(
    model: Any, windows: Tensor, vocabulary: Vocabulary, order: RemovalOrder, on_window: Done = unwatched
) -> float:
    """Nats that the first split of an occurrence costs, where the tokens removed first are spelled in pieces.

    So many tokens are removed that MISSES occurrences of the windows miss theirs. What the rest of the text
    loses behind them is counted; what it gains when removed tokens take no probability is not, since rare
    tokens are missed less in the windows, which are among the texts that they are rare in, than elsewhere.

    Args:
        model: dense, its vocabulary whole.
        windows: token ids of the base vocabulary, int64 [n, s].
        order: of removal.
    """
    used = np.bincount(windows.flatten().cpu(), minlength=vocabulary.rows)
    misses = np.cumsum(used[order.removed])
    count = int(np.searchsorted(misses, MISSES)) + 1
    kept = order.tokens(len(order.kept) + max(0, len(order.removed) - count))
    speller = _Speller(vocabulary, set(kept))
    pairs = []
    for window in windows.tolist():
        whole, spelled, splits = speller.spell(window)
        if splits:
            pairs.append((whole, spelled, splits))
    if sum(splits for *_, splits in pairs) < MISSES / 4:
        return NATS
    rise = total = 0.0
    for index, (whole, spelled, splits) in enumerate(pairs):
        rise += _loss(model, spelled) - _loss(model, whole)
        total += splits
        on_window(index + 1, len(pairs))
    return max(LEAST, rise / total)


class _Speller:
    def __init__(self, vocabulary: Vocabulary, kept: set[int]) -> None:
        self.vocabulary, self.kept = vocabulary, kept

    def spell(self, window: list[int]) -> tuple[list[int], list[int], float]:
        """A window's first tokens, the same text in kept ones, as many as the window has, and its splits: 1
        for the first of an occurrence, FURTHER for each other."""
        whole, spelled, splits = list[int](), list[int](), 0.0
        for token in window:
            pieces = self._pieces(token)
            if len(spelled) + len(pieces) > len(window):
                break
            whole.append(token)
            spelled += pieces
            splits += 1 + FURTHER * (len(pieces) - 2) if len(pieces) > 1 else 0
        return whole, spelled, splits

    def _pieces(self, token: int) -> list[int]:
        if token in self.kept:
            return [token]
        return [kept for piece in self.vocabulary.pieces[token] for kept in self._pieces(piece)]


def _loss(model: Any, ids: list[int]) -> float:
    """Summed nats of all but the first of these ids."""
    with torch.no_grad():  # blocks from the disk must remain able to have gradients
        hidden, weight = head_of(model, hidden_states(model, torch.tensor([ids]))[0, :-1])
        return float(chunked_nll(hidden, weight, torch.tensor(ids[1:])).cpu().sum(dtype=torch.float64))
