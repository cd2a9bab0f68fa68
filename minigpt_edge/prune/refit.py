"""Optimal brain surgeon over whole units, and the least-squares refit of what is kept.

Removing unit j and refitting the rest raises the squared output error by ||W_j||^2 / [G^-1]_jj
(Hassibi and Stork's OBS on a Gram matrix G, as in OSSCAR and SlimGPT). With a metric S over the outputs
it is W_j S W_j^T / [G^-1]_jj, which estimates the rise of the loss when S is the Fisher information.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch  # noqa: TID253 - imported on demand
from torch import Tensor  # noqa: TID253

from minigpt_edge.models.precision import widest
from minigpt_edge.stages.device import CPU, here

DAMPING = 0.01  # This share of each unit's energy keeps the inverse of a Gram matrix tame.
RIDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
DIRECTIONS = 256  # The ridge is chosen on so many random directions of the outputs.


def factor(gram: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Cholesky factor of the Gram matrix scaled to unit diagonal plus `damping`, and the scale.

    Scaling first makes the ridge proportional to each unit's energy: one neuron with a massive
    activation would otherwise set it for all. Returns (lower factor [n, n], scale [n]).
    """
    scale = gram.diagonal().clamp(min=1e-12 * gram.diagonal().max()).rsqrt()
    unit = gram * scale[:, None] * scale
    unit.diagonal().add_(damping)
    return torch.linalg.cholesky(unit), scale


@dataclass(frozen=True)
class Refitted:
    """The least-squares fit of the units that are left, and what it costs to do without more of them.

    Attributes:
        units: their indices among all, int64 [left].
        inverse: of their Gram matrix, scaled and damped by `factor`, float32 [left, left].
        fitted: what the matrix behind them becomes [left, outputs], times 1 / scale.
        weighted: fitted times the metric of the output error [left, outputs].
        scale: float32 [left].
    """

    units: Tensor
    inverse: Tensor
    fitted: Tensor
    weighted: Tensor
    scale: Tensor

    @classmethod
    def of(cls, gram: Tensor, cross: Tensor, metric: Tensor | None) -> Refitted:
        """Of all units: gram [units, units], cross [units, outputs], metric [outputs, outputs] or none."""
        lower, scale = factor(gram, DAMPING)
        fitted = torch.cholesky_solve(cross * scale[:, None], lower)
        weighted = fitted if metric is None else fitted @ metric
        return cls(torch.arange(len(gram)), torch.cholesky_inverse(lower), fitted, weighted, scale)

    def costs(self, group: int = 1) -> Tensor:
        """Rise of the output error when a unit (or group of units) is removed and the others are refitted.

        Returns float32 [left / group]: tr(W_g^T ([G^-1]_gg)^-1 W_g S), OBS for a block of units.
        """
        if group == 1:
            return (self.weighted * self.fitted).sum(1) / self.inverse.diagonal()
        count = len(self.units) // group
        own = self.inverse.view(count, group, count, group).diagonal(dim1=0, dim2=2).movedim(-1, 0)
        fitted, weighted = (part.view(count, group, -1) for part in (self.fitted, self.weighted))
        left = torch.cholesky_solve(fitted, torch.linalg.cholesky(own))
        return (left * weighted).sum((1, 2))

    def without(self, removed: Tensor) -> Refitted:
        """The fit without the units at these positions, by block elimination: as if it were made anew."""
        left = torch.ones(len(self.units), dtype=torch.bool)
        left[removed] = False
        kept = left.nonzero()[:, 0]
        lower = torch.linalg.cholesky(self.inverse[removed[:, None], removed])
        between = self.inverse[removed[:, None], kept]
        change = torch.cholesky_solve(between, lower).t()
        return Refitted(
            self.units[kept],
            self.inverse[kept[:, None], kept].addmm_(change, between, alpha=-1),
            self.fitted[kept].addmm_(change, self.fitted[removed], alpha=-1),
            self.weighted[kept].addmm_(change, self.weighted[removed], alpha=-1),
            self.scale[kept],
        )

    def explained(self, cross: Tensor) -> float:
        """tr(W^T C S), the output's energy that the fit accounts for; cross [units, outputs] is of all."""
        return float((self.weighted * self.scale[:, None] * cross[self.units]).sum())


def refit(gram: Tensor, cross: Tensor, weight: Tensor, ridge: float) -> Tensor:
    """argmin_V ||y - x V||^2 + ridge * sum_j G_jj ||V_j - W_j||^2: least squares drawn to the old weights.

    Args:
        gram: [kept, kept]; cross: [kept, outputs]; weight: [kept, outputs]. Computed in float64.
    """
    lower, scale = factor(widest(gram), ridge)
    right = widest(cross) * scale[:, None] + ridge * widest(weight) / scale[:, None]
    return here((torch.cholesky_solve(right, lower) * scale[:, None]).float())


def best_ridge(gram: Tensor, cross: Tensor, weight: Tensor, held_gram: Tensor, held_cross: Tensor) -> float:
    """The ridge whose `refit` has the lowest output error on held-out tokens.

    Outputs are fitted each by itself, so random directions of them tell the same as all, in less time.

    Args:
        gram, held_gram: [kept, kept]; cross, held_cross and weight: [kept, outputs].
    """
    outputs = cross.shape[1]
    if outputs > DIRECTIONS:
        generator = torch.Generator().manual_seed(0)
        mix = here(torch.randn(outputs, DIRECTIONS, generator=generator, device=CPU))
        cross, weight, held_cross = cross @ mix, weight @ mix, held_cross @ mix
    errors = {r: output_error(held_gram, held_cross, 0.0, refit(gram, cross, weight, r)) for r in RIDGES}
    return min(errors, key=errors.__getitem__)


def output_error(gram: Tensor, cross: Tensor, energy: float, weight: Tensor) -> float:
    """mean ||y - x V||^2 from the statistics of x and y, where energy is mean ||y||^2."""
    product = gram @ weight
    return float((weight * product).sum() - 2 * (weight * cross).sum()) + energy
