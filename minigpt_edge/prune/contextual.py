"""Mini-GPTs' contextual score (arXiv 2312.12682): m_j = mean ||a_j||_1 over the calibration text."""

from __future__ import annotations

from torch import Tensor  # noqa: TID253 - imported on demand by Method.scores

from minigpt_edge.prune import UnitStatistics


def scores(statistics: UnitStatistics) -> Tensor:
    """Mean |activation| of each unit divided by the block's mean, so that blocks compare; a group's
    score is the mean of its units'. float32 [units / group]."""
    mean_abs = statistics.mean_abs
    if mean_abs is None:
        raise ValueError("the contextual score needs mean |activation|")
    return (mean_abs / mean_abs.mean()).view(-1, statistics.group).mean(1)
