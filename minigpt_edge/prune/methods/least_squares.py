"""Least squares: a unit is scored by the error that a refit of the others leaves; see `prune.refit`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minigpt_edge.prune.method import Method
from minigpt_edge.prune.scores import UnitStatistics
from minigpt_edge.prune.units import UnitPruner

if TYPE_CHECKING:
    from torch import Tensor

    from minigpt_edge.prune.refit import Refitted

ROUNDS = 4  # Single units are chosen in so many rounds.


def scores(statistics: UnitStatistics) -> Tensor:
    """float32 [units / group]."""
    return _all_of(statistics).costs(statistics.group)


def rounds(statistics: UnitStatistics, keep: int) -> Tensor:
    """Ascending indices of the `keep` units left when the others are removed in `ROUNDS` parts, cheapest
    first."""
    left = _all_of(statistics)
    total = len(left.units)
    for part in range(1, ROUNDS):
        kept = total - (total - keep) * part // ROUNDS
        left = left.without(left.costs().argsort()[: len(left.units) - kept])
    return left.units[left.costs().topk(keep).indices.sort().values]


def _all_of(statistics: UnitStatistics) -> Refitted:
    from minigpt_edge.prune.refit import Refitted

    if statistics.gram is None or statistics.cross is None:
        raise ValueError("the least-squares score needs Gram matrices")
    return Refitted.of(statistics.gram, statistics.cross, statistics.metric)


METHOD = Method(
    "least_squares",
    "error that is left after a least-squares refit, in rounds; sizes by estimated loss",
    "ours, after OBS and OSSCAR (arXiv 2403.12983)",
    (UnitPruner(scores, rounds, reads=("gram",), compensation="least_squares", widths="free"),),
)
