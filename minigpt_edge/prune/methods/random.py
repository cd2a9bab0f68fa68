"""Units drawn at random: the ablation every other score has to beat."""

from __future__ import annotations

import torch  # noqa: TID253 - imported on demand by Method.scores
from torch import Tensor  # noqa: TID253

from minigpt_edge.prune.methods.registry import UnitStatistics


def scores(statistics: UnitStatistics) -> Tensor:
    """Uniform in [0, 1), the same for the same seed. float32 [units / group]."""
    generator = torch.Generator().manual_seed(statistics.seed)
    return torch.rand(len(statistics.weight) // statistics.group, generator=generator)
