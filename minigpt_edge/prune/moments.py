"""Sums over tokens of what a matrix reads and should give: Gram matrices, and means of single units."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch  # noqa: TID253 - imported by the pipeline's prune stage only
from torch import Tensor  # noqa: TID253

from minigpt_edge.models.precision import products_of
from minigpt_edge.stages import parallel
from minigpt_edge.stages.device import CPU

GRAM_COLUMNS = 256
CHUNK_TOKENS = 4096


def add_gram(sums: Tensor, x: Tensor) -> None:
    """Add x^T x of x [tokens, units], bfloat16 or float32, to the upper triangle of `sums` [units, units].

    What is below the diagonal means nothing until `mirror` fills it.
    """
    wide = x.float()
    with products_of(x):
        for start in range(0, wide.shape[1], GRAM_COLUMNS):  # it is symmetric: only the upper blocks
            rows = slice(start, start + GRAM_COLUMNS)
            sums[rows, start:].addmm_(wide[:, rows].t(), wide[:, start:])


def mirror(gram: Tensor) -> None:
    """Fill a symmetric matrix below its diagonal, in place and without a copy: they can be gigabytes."""
    for start in range(0, len(gram), GRAM_COLUMNS):
        end = start + GRAM_COLUMNS
        corner = gram[start:end, start:end]
        corner.copy_(corner.triu() + corner.triu(1).t())
        gram[end:, start:end] = gram[start:end, end:].t()


@dataclass
class Moments:
    """Sums over tokens of what a matrix reads, x [tokens, units], and should give, y [tokens, outputs].

    Below the diagonal `gram` is filled by `mean` alone.
    """

    gram: Tensor
    cross: Tensor
    energy: float = 0.0
    tokens: int = 0

    @classmethod
    def zeros(cls, units: int, outputs: int) -> Moments:
        return cls(torch.zeros(units, units), torch.zeros(units, outputs))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add x [tokens, units], bfloat16 or float32, and float32 y [tokens, outputs]."""
        add_gram(self.gram, x)
        with products_of(x):
            self.cross.addmm_(x.float().t(), y)
        self.energy += float(y.square().sum())
        self.tokens += len(x)

    def all_reduce(self) -> None:
        """Sum over the processes, each of which has added its own tokens."""
        scalars = torch.tensor([self.energy, self.tokens], dtype=torch.float64, device=CPU)
        parallel.all_reduce(self.gram, self.cross, scalars)
        self.energy, self.tokens = float(scalars[0]), int(scalars[1])

    def mean(self, units: Tensor | None = None) -> tuple[Tensor, Tensor, float]:
        """(gram, cross, energy) per token, of some units."""
        mirror(self.gram)
        if units is None:
            return self.gram / self.tokens, self.cross / self.tokens, self.energy / self.tokens
        gram, cross = self.gram[units[:, None], units], self.cross[units]
        return gram.div_(self.tokens), cross.div_(self.tokens), self.energy / self.tokens

    def draw(self, weight: Tensor, share: float) -> None:
        """Make y, what x should give, share * y + (1 - share) * x @ weight [units, outputs], in place."""
        mirror(self.gram)
        before = float((weight * self.cross).sum())
        self.cross.addmm_(self.gram, weight, beta=share, alpha=1 - share)
        now = float((weight * self.cross).sum())
        self.energy = share**2 * self.energy + (1 - share) * (share * before + now)

    def merge(self, other: Moments) -> Moments:
        """The sums over both sets of tokens."""
        return Moments(
            self.gram + other.gram,
            self.cross + other.cross,
            self.energy + other.energy,
            self.tokens + other.tokens,
        )


@dataclass(frozen=True)
class Means:
    """Of every unit over all tokens, float32 [units]: mean x^2, mean x, mean |x|."""

    energy: Tensor
    mean: Tensor
    mean_abs: Tensor

    @classmethod
    def of(cls, values: Iterable[Tensor]) -> Means:
        """From values [..., units], in parts, and those of the other processes."""
        sums: Tensor | float = 0.0
        tokens = 0
        for some in values:
            for part in some.flatten(0, -2).split(CHUNK_TOKENS):
                wide = part.float()
                sums = sums + torch.stack((wide.square().sum(0), wide.sum(0), wide.abs().sum(0)))
                tokens += len(part)
        summed, count = torch.as_tensor(sums), torch.tensor(float(tokens), dtype=torch.float64, device=CPU)
        parallel.all_reduce(summed, count)
        return cls(*(summed / count.item()))
