"""Wanda (arXiv 2306.11695): a weight counts by |W_ij| * ||X_j||_2, its size times that of what it reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minigpt_edge.prune.masks import NORMS, MaskPruner, Pattern
from minigpt_edge.prune.method import Method
from minigpt_edge.prune.scores import UnitStatistics
from minigpt_edge.prune.units import UnitPruner

if TYPE_CHECKING:
    from torch import Tensor


def scores(statistics: UnitStatistics) -> Tensor:
    """Wanda-sp: the score averaged over the outputs of each unit; a group's is the sum of its units'.

    float32 [units / group].
    """
    single = statistics.weight.abs().mean(1) * statistics.energy.clamp(min=0).sqrt()
    return single.view(-1, statistics.group).sum(1)


def mask(weight: Tensor, norms: Tensor, pattern: Pattern, sparsity: float) -> Tensor:
    """True where a weight [outputs, inputs] is removed: the lowest scores of each output's row, or n:m block.

    Args:
        norms: ||X_j||_2 of each input over the calibration tokens, in any unit, float32 [inputs].
    """
    return pattern.lowest(weight.abs() * norms, sparsity)


METHOD = Method(
    "wanda",
    "|weight| x norm of its input, by row; structured: averaged over a unit's outputs",
    "Wanda, arXiv 2306.11695; structured as Wanda-sp in FLAP, arXiv 2312.11983",
    (UnitPruner(scores), MaskPruner(NORMS, mask)),
)
