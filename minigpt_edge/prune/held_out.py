"""What a removal costs on text that its refit has not seen, by fitting on either half of the windows.

A least-squares refit explains the tokens that it was made on too well, most of all where a text repeats
itself: removing 23 % of SmolLM2-135M's neurons raises the loss by an estimated 0.11 nats on the economics
windows that were fitted, by 0.24 on the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch  # noqa: TID253 - imported by the pipeline's prune stage only
from torch import Tensor  # noqa: TID253

from minigpt_edge.prune.moments import mirror
from minigpt_edge.prune.refit import DAMPING, refit

POINTS = 3  # of a path on which both halves are tried
Tried = list[tuple[int, Tensor]]  # places in a path's costs, ascending, and the units kept there, int64


@dataclass(frozen=True)
class Halves:
    """Gram matrices of what a matrix reads, per token, float32 [units, units].

    Attributes:
        whole: of all windows.
        first: of every second one, times their share of the tokens.
    """

    whole: Tensor
    first: Tensor

    @classmethod
    def of(cls, sums: Sequence[Tensor], tokens: int) -> Halves:
        """From the sums over each half, upper triangles, the second of which becomes the whole's."""
        first, whole = sums
        whole.add_(first)
        for gram in (first, whole):
            mirror(gram)
            gram.div_(tokens)
        return cls(whole, first)

    def cost(self, weight: Tensor, metric: Tensor, kept: Tensor) -> float:
        """Half the output error, by the metric, of fitting `kept` units on a half, on the other; their mean.

        Args:
            weight: [units, outputs]; metric: [outputs, outputs]; kept: indices int64.
        """
        second = self.whole - self.first
        total = 0.0
        for fitted, other in ((self.first, second), (second, self.first)):
            rows = fitted[kept]
            change = weight.clone()
            change[kept] -= refit(rows[:, kept], rows @ weight, weight[kept], DAMPING)
            total += float(((other @ change) * (change @ metric)).sum())
        return total / 2  # 1/2 of the error per token; each half has half of the tokens


def raised(
    costs: Sequence[float], tried: Tried, halves: Halves, weight: Tensor, metric: Tensor
) -> list[float]:
    """A path's costs, times what they are higher on unseen windows: at least 1, measured at POINTS of it.

    Args:
        costs: of ever more removed; the first is 0.
        tried: places where it can be measured.
    """
    import numpy as np

    chosen = {round(at) for at in np.linspace(0, len(tried) - 1, POINTS)} if tried else set()
    places = [(at, kept) for at, kept in (tried[i] for i in sorted(chosen)) if costs[at] > 0]
    if not places or torch.equal(halves.whole, halves.first):  # a single window has no other half
        return list(costs)
    ratios = [max(1.0, halves.cost(weight, metric, kept) / costs[at]) for at, kept in places]
    ratio = np.interp(range(len(costs)), [at for at, _ in places], ratios)
    return [float(cost) for cost in np.maximum.accumulate(ratio * costs)]
