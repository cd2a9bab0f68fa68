"""Mini-GPTs' contextual score (arXiv 2312.12682): m_j = 1/n sum_b ||a_j,b||_1 over the calibration text.

The paper prunes unit j where m_j is below a threshold. What is a unit of a decoder whose tensors really
shrink: an FFN neuron (the paper's activation and linear pruning meet in it: its activation is the input of
the linear layer that follows), a KV group (linear pruning of the attention: the input of its output matrix),
and a token (embedding pruning, by its share of the calibration tokens; `prune.vocabulary`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minigpt_edge.prune.method import Method
from minigpt_edge.prune.scores import UnitStatistics
from minigpt_edge.prune.units import UnitPruner

if TYPE_CHECKING:
    from torch import Tensor


def mean_l1(statistics: UnitStatistics) -> Tensor:
    """m_j, the L1 norm of each unit's activations divided by the number of tokens; a group's is the mean of
    its units'. float32 [units / group]: what the paper's threshold is compared with."""
    if statistics.mean_abs is None:
        raise ValueError("the contextual score needs mean |activation|")
    return statistics.mean_abs.view(-1, statistics.group).mean(1)


def scores(statistics: UnitStatistics) -> Tensor:
    """m_j divided by the mean over the block's units, so that blocks compare. float32 [units / group]."""
    norm = mean_l1(statistics)
    return norm / norm.mean()


METHOD = Method(
    "contextual",
    "mean |activation| below a threshold or among the lowest; rare tokens",
    "Mini-GPTs, arXiv 2312.12682",
    (UnitPruner(scores, threshold_scores=mean_l1, reads=("mean_abs",)),),
)
