"""Wanda-sp: Wanda's |W_ij| * ||X_j||_2 (arXiv 2306.11695) averaged over the outputs of each unit."""

from __future__ import annotations

from torch import Tensor  # noqa: TID253 - imported on demand by Method.scores

from minigpt_edge.prune import UnitStatistics


def scores(statistics: UnitStatistics) -> Tensor:
    """float32 [units / group]; a group's score is the sum of its units'."""
    single = statistics.weight.abs().mean(1) * statistics.gram.diagonal().clamp(min=0).sqrt()
    return single.view(-1, statistics.group).sum(1)
