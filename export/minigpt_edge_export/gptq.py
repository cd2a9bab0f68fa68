"""GPTQ: a matrix in blocks of few bits, each rounding corrected by the inputs that come after it.

Frantar et al. 2022, arXiv 2210.17323, algorithm 1, in input order. A block's steps (its scale, and a zero
point where the format has one) are chosen when its turn comes, from the weights as they have been corrected
by then: of several the ones with which the block's own roundings cost least.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from scipy.linalg.lapack import dtrtri

# Added to the Gram matrix's diagonal: shares of each input's own energy, and of the median. Inputs will not
# be those measured, since earlier blocks are rounded too; how far off grows with the energy.
_DAMPING, _FLOOR = 0.1, 0.003
_ROWS = 256  # rows that are rounded at once


class BlockGrid(Protocol):
    """What a block of weights can be rounded to.

    Steps are float32 [n, ...], such as a scale and a zero point (n = 2) for each of some blocks.
    """

    @property
    def block(self) -> int:
        """Weights of a block."""

    def proposals(self, values: np.ndarray) -> np.ndarray:
        """Steps [candidates, n, rows] worth trying for one block of each row, values [rows, block]."""

    def codes(self, values: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """The codes uint8 [...] nearest to values [...], with steps [n, ...]."""

    def values(self, codes: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """What codes [...] stand for, float32 [...], with steps [n, ...]."""


def quantize_gptq(
    matrix: np.ndarray, gram: np.ndarray, grid: BlockGrid, threads: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Round a matrix so that its outputs on the calibration inputs change least.

    A weight that is 0, as a mask leaves it, gets the code nearest to 0 and corrects nothing.

    Args:
        matrix: float32 [rows, columns], rows being outputs.
        gram: float32 [columns, columns], mean outer product of the inputs, weighted or not.
        threads: that share the rows; the result does not depend on it.

    Returns:
        codes uint8 [rows, columns], and steps float32 [blocks, n, rows]; the last block may be shorter.
    """
    factor = _inverse_factor(gram)
    parts = [matrix[start : start + _ROWS] for start in range(0, len(matrix), _ROWS)]
    with ThreadPoolExecutor(threads) as pool:
        codes, steps = zip(*pool.map(lambda part: _round_rows(part, factor, grid), parts), strict=True)
    return np.concatenate(codes), np.concatenate(steps, -1)


def _inverse_factor(gram: np.ndarray) -> np.ndarray:
    """The upper Cholesky factor of the damped Gram matrix's inverse: float32 [columns, columns]."""
    damped, energy = gram.astype(np.float64), np.diag(gram)
    diagonal = np.arange(len(damped))
    floor = float(np.median(energy)) or float(energy.mean()) or 1.0
    damped[diagonal, diagonal] += _DAMPING * energy + _FLOOR * floor
    # With the order of the inputs reversed, the inverse's upper factor is the lower factor's inverse.
    lower = np.linalg.cholesky(damped[::-1, ::-1])
    inverse, _ = dtrtri(lower, lower=1)
    return np.ascontiguousarray(inverse[::-1, ::-1], dtype=np.float32)


def _round_rows(matrix: np.ndarray, factor: np.ndarray, grid: BlockGrid) -> tuple[np.ndarray, np.ndarray]:
    """Codes [rows, columns] and steps [blocks, n, rows] of some rows."""
    left = matrix.astype(np.float32, copy=True)  # what the columns to come still have to make up for
    codes, steps = np.empty(left.shape, dtype=np.uint8), []
    for first in range(0, left.shape[1], grid.block):
        block = slice(first, first + grid.block)
        kept = matrix[:, block] != 0
        codes[:, block], found, errors = _round_block(left[:, block], kept, factor[block, block], grid)
        steps.append(found)
        left[:, block.stop :] -= errors @ factor[block, block.stop :]
    return codes, np.stack(steps)


def _round_block(
    values: np.ndarray, kept: np.ndarray, factor: np.ndarray, grid: BlockGrid
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [rows, block], steps [n, rows] and errors [rows, block] of the proposal that costs least."""
    steps = np.ascontiguousarray(grid.proposals(values * kept).swapaxes(0, 1))  # [n, candidates, rows]
    candidates, rows = steps.shape[1:]
    left = np.repeat(values.T[:, None], candidates, axis=1)  # [block, candidates, rows]
    codes, errors = np.empty(left.shape, dtype=np.uint8), np.empty_like(left)
    for at in range(len(left)):
        codes[at] = grid.codes(left[at] * kept[:, at], steps)
        errors[at] = (left[at] - grid.values(codes[at], steps)) / factor[at, at]
        left[at + 1 :] -= factor[at, at + 1 :, None, None] * errors[at]
    best = np.einsum("bcr,bcr->cr", errors, errors).argmin(0)
    taken = np.arange(rows)
    return codes[:, best, taken].T, steps[:, best, taken], errors[:, best, taken].T
