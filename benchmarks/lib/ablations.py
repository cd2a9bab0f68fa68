"""Methods that only benchmarks know: what any score of units has to beat."""

from __future__ import annotations

from torch import Tensor  # noqa: TID253

from minigpt_edge.prune.method import Method
from minigpt_edge.prune.methods import magnitude
from minigpt_edge.prune.methods.registry import METHODS
from minigpt_edge.prune.scores import UnitStatistics
from minigpt_edge.prune.units import UnitPruner


def highest(statistics: UnitStatistics) -> Tensor:
    """The units of highest norm are worth least. float32 [units / group]."""
    return -magnitude.scores(statistics)


def drawn(statistics: UnitStatistics) -> Tensor:
    """Uniform in [0, 1), the same for the same seed. float32 [units / group]."""
    import torch

    generator = torch.Generator().manual_seed(statistics.seed)
    return torch.rand(len(statistics.weight) // statistics.group, generator=generator)


def register() -> None:
    """Let recipes of this process name the ablations `magnitude_high` and `random`."""
    paper = "ablation of Mini-GPTs, arXiv 2312.12682"
    for name, summary, scores in (
        ("magnitude_high", "the units of highest norm are removed", highest),
        ("random", "units drawn with the recipe's seed are removed", drawn),
    ):
        METHODS[name] = Method(name, summary, paper, (UnitPruner(scores),), code=(__name__,))
