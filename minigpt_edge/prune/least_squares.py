"""Optimal brain surgeon over whole units, and the least-squares refit of what is kept.

Removing unit j and refitting the rest raises the squared output error by ||W_j||^2 / [G^-1]_jj
(Hassibi and Stork's OBS on a Gram matrix G, as in OSSCAR and SlimGPT). With a metric S over the outputs
it is W_j S W_j^T / [G^-1]_jj, which estimates the rise of the loss when S is the Fisher information.
"""

from __future__ import annotations

import torch  # noqa: TID253 - imported on demand
from torch import Tensor  # noqa: TID253

from minigpt_edge.prune import UnitStatistics

DAMPING = 0.01  # of each unit's own energy: keeps the inverse of a Gram matrix from few tokens tame
RIDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


def factor(gram: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Cholesky factor of the Gram matrix scaled to unit diagonal plus `damping`, and the scale.

    Scaling first makes the ridge proportional to each unit's energy: one neuron with a massive
    activation would otherwise set it for all. Returns (lower factor [n, n], scale [n]).
    """
    scale = gram.diagonal().clamp(min=1e-12 * gram.diagonal().max()).rsqrt()
    unit = gram * scale[:, None] * scale
    unit.diagonal().add_(damping)
    return torch.linalg.cholesky(unit), scale


def removal_costs(gram: Tensor, cross: Tensor, metric: Tensor | None, group: int = 1) -> Tensor:
    """Rise of the output error when a unit (or group of units) goes and the others are refitted.

    Returns float32 [units / group]: tr(W_g^T ([G^-1]_gg)^-1 W_g S), OBS for a block of units.
    """
    lower, scale = factor(gram, DAMPING)
    fitted = torch.cholesky_solve(cross * scale[:, None], lower)
    weighted = fitted if metric is None else fitted @ metric
    inverse = torch.cholesky_inverse(lower)
    if group == 1:
        return (weighted * fitted).sum(1) / inverse.diagonal()
    count = len(gram) // group
    own = inverse.view(count, group, count, group)[range(count), :, range(count)]
    left = torch.cholesky_solve(fitted.view(count, group, -1), torch.linalg.cholesky(own))
    return (left * weighted.view(count, group, -1)).sum((1, 2))


def scores(statistics: UnitStatistics) -> Tensor:
    """float32 [units / group]."""
    if statistics.gram is None or statistics.cross is None:
        raise ValueError("the least-squares score needs Gram matrices")
    return removal_costs(statistics.gram, statistics.cross, statistics.metric, statistics.group)


def refit(gram: Tensor, cross: Tensor, weight: Tensor, ridge: float) -> Tensor:
    """argmin_V ||y - x V||^2 + ridge * sum_j G_jj ||V_j - W_j||^2: least squares drawn to the old weights.

    Args:
        gram: [kept, kept]; cross: [kept, outputs]; weight: [kept, outputs]. Computed in float64.
    """
    lower, scale = factor(gram.double(), ridge)
    right = cross.double() * scale[:, None] + ridge * weight.double() / scale[:, None]
    return (torch.cholesky_solve(right, lower) * scale[:, None]).float()


def output_error(gram: Tensor, cross: Tensor, energy: float, weight: Tensor) -> float:
    """mean ||y - x V||^2 from the statistics of x and y, where energy is mean ||y||^2."""
    product = gram @ weight
    return float((weight * product).sum() - 2 * (weight * cross).sum()) + energy
