"""FLAP (arXiv 2312.11983): the fluctuation of a unit's activation, and a bias for the mean of what goes.

What a unit adds to the output is its mean, which a bias can give, and its fluctuation, which is lost:
WIFV_j = var(x_j) * ||W_j||^2 (the paper's weighted input feature variance).
"""

from __future__ import annotations

import torch  # noqa: TID253 - imported on demand by Method.scores
from torch import Tensor  # noqa: TID253

from minigpt_edge.prune.methods.registry import UnitStatistics


def scores(statistics: UnitStatistics) -> Tensor:
    """WIFV standardised over the matrix's units; a group's is the mean of its units'.

    float32 [units / group]. Standardising (zero mean, unit variance) is what makes one threshold over all
    blocks possible.
    """
    if statistics.mean is None:
        raise ValueError("FLAP's score needs the mean activation")
    variance = (statistics.energy - statistics.mean.square()).clamp(min=0)
    fluctuation = variance * statistics.weight.square().sum(1)
    grouped = fluctuation.view(-1, statistics.group).mean(1)
    deviation = grouped.std() if len(grouped) > 1 else torch.ones(())
    return (grouped - grouped.mean()) / deviation.clamp(min=1e-12)


def bias(statistics: UnitStatistics, gone: Tensor) -> Tensor:
    """The mean output of the units that go (indices `gone`): sum_j mean(x_j) W_j, float32 [outputs]."""
    if statistics.mean is None:
        raise ValueError("FLAP's bias needs the mean activation")
    return statistics.mean[gone] @ statistics.weight[gone]
