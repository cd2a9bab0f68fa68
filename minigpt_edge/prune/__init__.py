"""Scores that say which units stay: one file per method, each registered here by name.

A method is a function `UnitStatistics -> scores`: float32 [units / group], the higher the more worth keeping.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minigpt_edge_runtime.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class UnitStatistics:
    """What calibration knows of the units that one matrix W reads: y = x W.

    Attributes:
        gram: mean of x x^T over the calibration tokens, float32 [units, units].
        cross: mean of x y^T with the wanted output y, float32 [units, outputs].
        weight: W in the model as it is, float32 [units, outputs].
        mean_abs: mean |x|, float32 [units], where the method reads it.
        metric: Fisher information of the outputs, float32 [outputs, outputs], or None for the identity.
        group: consecutive units that stay or go together (1 for neurons; a KV group's mixed values).
    """

    gram: Tensor
    cross: Tensor
    weight: Tensor
    mean_abs: Tensor | None
    metric: Tensor | None = None
    group: int = 1


@dataclass(frozen=True)
class Method:
    """A way to score units; `rounds` > 1 scores again after each part of the units is gone."""

    name: str
    summary: str
    module: str
    rounds: int = 1
    reads_mean_abs: bool = False

    def scores(self, statistics: UnitStatistics) -> Tensor:
        """float32 [units / group], the higher the more worth keeping."""
        function: Callable[[UnitStatistics], Tensor] = importlib.import_module(self.module).scores
        return function(statistics)


METHODS = {
    method.name: method
    for method in (
        Method(
            "contextual",
            "normalised mean |activation| (Mini-GPTs, arXiv 2312.12682)",
            "minigpt_edge.prune.contextual",
            reads_mean_abs=True,
        ),
        Method(
            "wanda",
            "mean |weight| x norm of the activation, structured (Wanda-sp, after arXiv 2306.11695)",
            "minigpt_edge.prune.wanda",
        ),
        Method(
            "least_squares",
            "output error that removing a unit leaves after the refit, from the Gram matrix, in rounds",
            "minigpt_edge.prune.least_squares",
            rounds=4,
        ),
    )
}
DEFAULT_METHOD = "least_squares"


def get_method(name: str) -> Method:
    """The method of that name; UsageError listing the known ones."""
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}", f"known methods: {', '.join(METHODS)}")
    return METHODS[name]
