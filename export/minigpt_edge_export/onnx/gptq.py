"""GPTQ: blocks of integers, each rounding corrected by the inputs that come after it.

Frantar et al. 2022, arXiv 2210.17323, algorithm 1, in input order, with a block's scale and zero point taken
when its turn comes, from the weights as they have been corrected by then.
"""

from __future__ import annotations

import numpy as np

from minigpt_edge_export.onnx.weights import Packed, pack

_SHARES = (
    1.15,
    1.1,
    1.05,
    1.0,
    0.95,
    0.9,
    0.85,
    0.8,
    0.75,
    0.7,
    0.65,
    0.6,
)
_DAMPING = 0.01  # share of the mean energy of the inputs, as in the paper


def quantize_gptq(
    matrix: np.ndarray, gram: np.ndarray, bits: int, block_size: int, symmetric: bool
) -> Packed:
    """Quantize a matrix so that its outputs on the calibration inputs change least.

    Args:
        matrix: float32 [N, K], rows being outputs.
        gram: float32 [K, K], mean outer product of the inputs.
        bits: 4 or 8.
    """
    rows, columns = matrix.shape
    blocks = -(-columns // block_size)
    half = 2 ** (bits - 1)
    factor = _inverse_factor(gram)
    left = matrix.astype(np.float32, copy=True)  # what the columns to come still have to make up for
    codes = np.full((rows, blocks * block_size), half, dtype=np.uint8)
    scales = np.zeros((rows, blocks), dtype=np.float32)
    zeros = np.full((rows, blocks), half, dtype=np.uint8)
    for block in range(blocks):
        first, last = block * block_size, min((block + 1) * block_size, columns)
        within = factor[first:last, first:last]
        scale, zero = _grid(left[:, first:last], np.diag(within) ** -2, half, symmetric)
        scales[:, block], zeros[:, block] = scale, zero
        part = np.ascontiguousarray(left[:, first:last].T)
        errors = np.empty_like(part)
        for at in range(last - first):
            code = np.clip(np.rint(part[at] / scale + zero), 0, 2 * half - 1)
            codes[:, first + at] = code
            errors[at] = (part[at] - (code - zero) * scale) / within[at, at]
            part[at + 1 :] -= np.outer(within[at, at + 1 :], errors[at])
        left[:, last:] -= errors.T @ factor[first:last, last:]
    return Packed(
        pack(codes.reshape(rows, blocks, block_size), bits),
        scales,
        None if symmetric else pack(zeros, bits),
    )


def _inverse_factor(gram: np.ndarray) -> np.ndarray:
    """The upper Cholesky factor of the damped Gram matrix's inverse: float32 [K, K]."""
    damped = gram.astype(np.float64)
    diagonal = np.arange(len(damped))
    damped[diagonal, diagonal] += _DAMPING * (float(np.diag(gram).mean()) or 1.0)
    return np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)


def _grid(
    values: np.ndarray, weights: np.ndarray, half: int, symmetric: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The scale and zero point of least weighted squared error, of each row of a block: float32 [N] both."""
    found = []
    for share in map(np.float32, _SHARES):
        if symmetric:
            peak = np.take_along_axis(values, np.abs(values).argmax(1)[:, None], 1)
            scale, zero = -share * peak / half, np.full_like(peak, half)
        else:
            low = np.minimum(values.min(1, keepdims=True), 0)
            high = np.maximum(values.max(1, keepdims=True), 0)
            scale = share * (high - low) / (2 * half - 1)
            zero = np.clip(np.rint(-share * low / np.where(scale == 0, 1, scale)), 0, 2 * half - 1)
        scale = np.where(scale == 0, np.float32(1e-8), scale)
        codes = np.clip(np.rint(values / scale + zero), 0, 2 * half - 1) - zero
        found.append(((codes * scale - values) ** 2 @ weights, scale[:, 0], zero[:, 0]))
    errors, scales, zeros = map(np.stack, zip(*found, strict=True))
    best = errors.argmin(0)[None]
    return np.take_along_axis(scales, best, 0)[0], np.take_along_axis(zeros, best, 0)[0]
