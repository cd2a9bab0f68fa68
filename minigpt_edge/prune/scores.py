"""Scores of units: what calibration knows of KV groups and neurons, and what a method makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from minigpt_edge.models.archs.base import Arch
    from minigpt_edge.prune.context import Done

    BlockScores = list[tuple[Tensor, Tensor]]  # of every block: (KV groups, neurons)


@dataclass(frozen=True)
class UnitStatistics:
    """What calibration knows of the units that one matrix W reads: y = x W.

    Attributes:
        weight: W in the model as it is, float32 [units, outputs].
        energy: mean x^2 over the calibration tokens, float32 [units].
        mean, mean_abs: mean x and mean |x|, float32 [units], where the method reads them.
        gram: mean of x x^T, float32 [units, units], where the method reads it or a refit follows.
        cross: mean of x y^T with the wanted output y, float32 [units, outputs], with `gram`.
        metric: Fisher information of the outputs, float32 [outputs, outputs], or None for the identity.
        seed: for what is drawn at random; different for every matrix.
        group: consecutive units that are kept or removed together (1 for neurons; a KV group's mixed values).
    """

    weight: Tensor
    energy: Tensor
    mean: Tensor | None = None
    mean_abs: Tensor | None = None
    gram: Tensor | None = None
    cross: Tensor | None = None
    metric: Tensor | None = None
    seed: int = 0
    group: int = 1

    def mean_output(self, units: Tensor) -> Tensor:
        """What units (indices) add to the output on average: sum_j mean(x_j) W_j, float32 [outputs]."""
        if self.mean is None:
            raise ValueError("a mean output needs the mean activation")
        return self.mean[units] @ self.weight[units]


@dataclass(frozen=True)
class UnitScores:
    """How a structured method scores units, and what follows from it.

    Attributes:
        scores: float32 [units / group], the higher the more worth keeping.
        rounds: (statistics, number to keep) -> ascending indices of the neurons to keep, for a method that
            scores them again after each part of them is removed.
        of_model: (model, arch, windows, progress) -> the scores of all blocks at once, in place of `scores`.
        threshold_scores: what `PruneSettings.threshold` is compared with, for a method that has one.
        reads: what it needs beyond the energy: "mean", "mean_abs", "gram".
        compensation: what the kept weights that read the units become: "none", "bias" (the mean of what was
            removed) or "least_squares".
        widths: how blocks share the cut unless --widths says: "equal", "free" (by estimated loss per
            parameter) or "global" (one cut over all blocks' scores).
    """

    scores: Callable[[UnitStatistics], Tensor] | None = None
    rounds: Callable[[UnitStatistics, int], Tensor] | None = None
    of_model: Callable[[Any, Arch, Tensor, Done], BlockScores] | None = None
    threshold_scores: Callable[[UnitStatistics], Tensor] | None = None
    reads: tuple[str, ...] = ()
    compensation: str = "none"
    widths: str = "equal"

    @property
    def needs_refit(self) -> bool:
        """Whether the scores are errors that are left after a refit."""
        return "gram" in self.reads

    def select(self, statistics: UnitStatistics, keep: int) -> Tensor:
        """Ascending indices of the `keep` units (or groups) that are kept."""
        if self.rounds and statistics.group == 1:
            return self.rounds(statistics, keep)
        if self.scores is None:
            raise ValueError("the method scores all blocks at once")
        return self.scores(statistics).topk(keep).indices.sort().values
