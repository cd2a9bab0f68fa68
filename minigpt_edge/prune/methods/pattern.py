"""Which weights of a matrix a mask removes: unstructured, or n of every m."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch  # noqa: TID253 - imported by the pipeline's prune stage only
from torch import Tensor  # noqa: TID253

from minigpt_edge.prune.methods.registry import UNSTRUCTURED
from minigpt_edge_runtime.errors import UsageError


@dataclass(frozen=True)
class Pattern:
    """Which weights may go: any (m = 0), or n of every m that follow each other in an output's row."""

    n: int = 0
    m: int = 0

    def lowest(self, scores: Tensor, sparsity: float) -> Tensor:
        """True at floor(columns * sparsity) lowest scores of each row, or at the n lowest of every m.

        Args:
            scores: float32 [rows, columns], columns a multiple of m. Among equals the first go.
        """
        rows, count = scores, int(scores.shape[1] * sparsity + 1e-9)
        if self.m:
            rows, count = scores.reshape(-1, self.m), self.n
        if not count:
            return torch.zeros_like(scores, dtype=torch.bool)
        limit = rows.kthvalue(count, dim=1, keepdim=True).values
        below, equal = rows < limit, rows == limit
        missing = count - below.sum(1, keepdim=True)
        return (below | (equal & (equal.cumsum(1) <= missing))).view_as(scores)


def parse_pattern(text: str) -> Pattern:
    """The pattern of "unstructured" or "n:m" (n of every m are zero); UsageError for anything else."""
    if text == UNSTRUCTURED:
        return Pattern()
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or not 0 < int(found[1]) < int(found[2]):
        raise UsageError(
            f"unknown pattern {text!r}", f"give {UNSTRUCTURED}, 2:4, 4:8 or another n:m with n < m"
        )
    return Pattern(int(found[1]), int(found[2]))
