"""Magnitude: small weights go, whatever they are multiplied with. The baseline of every pruning paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor  # noqa: TID253 - imported on demand by Method.scores and mask_blocks

from minigpt_edge.prune.methods.registry import UnitStatistics

if TYPE_CHECKING:
    from minigpt_edge.prune.methods.pattern import Pattern


def scores(statistics: UnitStatistics) -> Tensor:
    """L2 norm of the weights that read each unit: its column of down_proj or o_proj.

    What a unit itself reads is not in the statistics. A group's score is the norm over all its units'
    weights. float32 [units / group].
    """
    return statistics.weight.norm(dim=1).view(-1, statistics.group).norm(dim=1)


def scores_high(statistics: UnitStatistics) -> Tensor:
    """The ablation: the units of highest norm are worth least. float32 [units / group]."""
    return -scores(statistics)


def mask(weight: Tensor, pattern: Pattern, sparsity: float) -> Tensor:
    """True where a weight [outputs, inputs] goes: the lowest |W| of the matrix, or of each n:m block."""
    sizes = weight.abs().reshape(1, -1)
    return pattern.lowest(sizes, sparsity).view_as(weight)
