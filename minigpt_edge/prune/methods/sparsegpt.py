"""SparseGPT (arXiv 2301.00774): prune a matrix column by column, the columns to the right make up for it.

Removing w_i and refitting only the columns after it raises the squared output error by w_i^2 / U_ii^2, where
U^T U = H^-1 with U upper triangular: row i of U is what optimal brain surgeon needs once the columns before i
are settled, for all rows of the matrix at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minigpt_edge.prune.masks import DAMPING, GRAM, MaskPruner, Pattern
from minigpt_edge.prune.method import Method

if TYPE_CHECKING:
    from torch import Tensor

DAMPINGS = (
    DAMPING,
    0.1,
    1.0,
)  # Shares of the mean diagonal: the paper's first, then what is tried where that fails.
BLOCK_COLUMNS = 128  # The lowest scores among these are removed, and the columns beyond are updated once.
STEP_COLUMNS = 16  # Inside a block the update goes by so many, so that most work is products of matrices.


def solve(weight: Tensor, hessian: Tensor, pattern: Pattern, sparsity: float) -> tuple[Tensor, float]:
    """A pruned weight, what is left of it updated, and the damping that was needed (of the mean diagonal).

    Args:
        weight: float32 [outputs, inputs].
        hessian: sum or mean of x x^T over the calibration tokens, float32 [inputs, inputs]. An input that
            is always zero loses all its weights.

    Raises:
        ValueError: the Hessian is not finite, or not positive semidefinite by far.
    """
    upper, damping = _inverse_factor(hessian)
    columns = weight.t().contiguous()  # a column is one piece of memory
    columns[hessian.diagonal() == 0] = 0
    unit = pattern.m or 1
    width = max(BLOCK_COLUMNS // unit, 1) * unit
    for start in range(0, len(columns), width):
        block = slice(start, start + width)
        errors = _solve_block(columns[block], upper[block, block], pattern, sparsity)
        columns[start + width :].addmm_(upper[block, start + width :].t(), errors, alpha=-1)
    return columns.t().contiguous(), damping


def _inverse_factor(hessian: Tensor) -> tuple[Tensor, float]:
    """U upper triangular with U^T U = (H + damping * mean diagonal)^-1, and the damping.

    H = R R^T with R upper triangular, by a Cholesky factorization from the last column to the first; U is
    R^-1. That never forms H^-1, whose own factorization is what fails first in float32.
    """
    import torch

    diagonal = hessian.diagonal()
    dead = (diagonal == 0).float()
    mean = diagonal.mean() + dead.mean()
    for damping in DAMPINGS:
        damped = hessian + torch.diag(dead + damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not failed and bool(lower.isfinite().all()):
            identity = torch.eye(len(hessian), dtype=hessian.dtype)
            return torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True), damping
    raise ValueError("the Hessian is not finite or far from positive semidefinite")


def _solve_block(columns: Tensor, upper: Tensor, pattern: Pattern, sparsity: float) -> Tensor:
    """Prune columns [block, outputs] in place; their scaled errors [block, outputs], for those beyond.

    `upper` is their part of the factor.
    """
    import torch

    scale = upper.diagonal()[:, None]
    # The mask is chosen from the weights at the start of the block, or of each m columns.
    removed = torch.empty_like(columns, dtype=torch.bool)
    if not pattern.m:
        scores = (columns / scale).square().reshape(1, -1)
        removed = pattern.lowest(scores, sparsity).view_as(columns)
    errors = torch.zeros_like(columns)
    unit = pattern.m or 1
    step = max(STEP_COLUMNS // unit, 1) * unit
    for start in range(0, len(columns), step):
        end = min(start + step, len(columns))
        for i in range(start, end):
            if pattern.m and i % pattern.m == 0:
                now = slice(i, i + pattern.m)
                scores = (columns[now] / scale[now]).square()
                removed[now] = pattern.lowest(scores.t().contiguous(), sparsity).t()
            torch.mul(columns[i] / scale[i], removed[i], out=errors[i])
            columns[i + 1 : end].addr_(upper[i, i + 1 : end], errors[i], alpha=-1)
        columns[end:].addmm_(upper[start:end, end:].t(), errors[start:end], alpha=-1)
    columns.masked_fill_(removed, 0)
    return errors


METHOD = Method(
    "sparsegpt",
    "masks with the update of the kept weights, from the inverse Hessian",
    "SparseGPT, arXiv 2301.00774",
    (MaskPruner(GRAM, solve=solve),),
)
