"""FLAP (arXiv 2312.11983): the fluctuation of a unit's activation, and a bias for the mean of removed units.

What a unit adds to the output is its mean, which a bias can give, and its fluctuation, which is lost:
WIFV_j = var(x_j) * ||W_j||^2 (the paper's weighted input feature variance).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minigpt_edge.prune.method import Method
from minigpt_edge.prune.scores import UnitStatistics
from minigpt_edge.prune.units import UnitPruner

if TYPE_CHECKING:
    from torch import Tensor


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
    deviation = grouped.std() if len(grouped) > 1 else grouped.new_ones(())
    return (grouped - grouped.mean()) / deviation.clamp(min=1e-12)


METHOD = Method(
    "flap",
    "fluctuation of the activation x norm of its weights, one cut over all blocks, bias for the mean",
    "FLAP, arXiv 2312.11983",
    (UnitPruner(scores, reads=("mean",), compensation="bias", widths="global"),),
)
