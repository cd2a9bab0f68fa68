"""Magnitude: small weights are removed, whatever they are multiplied with. Every pruning paper's baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minigpt_edge.prune.masks import MaskPruner, Pattern
from minigpt_edge.prune.method import Method
from minigpt_edge.prune.scores import UnitStatistics
from minigpt_edge.prune.units import UnitPruner

if TYPE_CHECKING:
    from torch import Tensor


def scores(statistics: UnitStatistics) -> Tensor:
    """L2 norm of the weights that read each unit: its column of down_proj or o_proj.

    What a unit itself reads is not in the statistics. A group's score is the norm over all its units'
    weights. float32 [units / group].
    """
    return statistics.weight.norm(dim=1).view(-1, statistics.group).norm(dim=1)


def mask(weight: Tensor, _: None, pattern: Pattern, sparsity: float) -> Tensor:
    """True where a weight [outputs, inputs] is removed: the lowest |W| of the matrix, or n:m block."""
    sizes = weight.abs().reshape(1, -1)
    return pattern.lowest(sizes, sparsity).view_as(weight)


METHOD = Method(
    "magnitude",
    "norm of the weights that read a unit, the lowest are removed; masks: |weight|, by matrix",
    "Han et al., arXiv 1506.02626",
    (UnitPruner(scores), MaskPruner(mask=mask)),
)
