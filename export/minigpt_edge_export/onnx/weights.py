"""Matrices as the integers of the ONNX targets, by onnxruntime's block quantizers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnxruntime.capi import _pybind_state as onnxruntime

_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)  # of a block's range, tried with the importance matrix
_LEAST_BLOCK = 32
_ROWS = 2**20  # weights whose candidates are held at once


@dataclass(frozen=True)
class Packed:
    """A matrix [N, K] as MatMulNBits takes it.

    `codes` uint8 [N, blocks, block_size x bits / 8], `scales` float32 [N, blocks], `zero_points` uint8
    [N, blocks x bits / 8 rounded up] or None. K is padded with zeros to whole blocks.
    """

    codes: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None


def quantize_matrix(
    matrix: np.ndarray, bits: int, block_size: int, symmetric: bool, importance: np.ndarray | None = None
) -> Packed:
    """Quantize with onnxruntime's block quantizer.

    Args:
        matrix: float32 [N, K], rows being outputs.
        bits: 4 or 8.
        importance: float32 [K], mean squared input. With it each block's range is narrowed where that lowers
            the weighted squared error (the outermost weights are clipped), and the scales of symmetric codes
            are refitted to it. The quantizer itself looks at the range alone.
    """
    rows, columns = matrix.shape
    blocks = -(-columns // block_size)
    padded = np.zeros((rows, blocks * block_size), dtype=np.float32)
    padded[:, :columns] = matrix
    if importance is None:
        return _quantize(padded, columns, bits, block_size, symmetric)
    weights = np.zeros(blocks * block_size, dtype=np.float32)
    # a floor keeps what the calibration text never used from losing all precision
    weights[:columns] = importance + 1e-3 * float(importance.mean()) + 1e-30
    weights = weights.reshape(blocks, block_size)
    clipped = np.empty_like(padded)
    step = max(1, _ROWS // padded.shape[1])
    for start in range(0, rows, step):
        part = padded[start : start + step].reshape(-1, blocks, block_size)
        clipped[start : start + step] = _clip(part, weights, bits, symmetric).reshape(len(part), -1)
    packed = _quantize(clipped, columns, bits, block_size, symmetric)
    if not symmetric:
        return packed
    scales = _refit(padded.reshape(rows, blocks, block_size), packed, weights, bits)
    return Packed(packed.codes, scales, None)


def smallest_block(columns: int, block_size: int, bits: int) -> int:
    """The block size up to `block_size` that stores rows of so many columns in the fewest bytes.

    Rows are padded to whole blocks, which matters for the few columns of a factor.
    """
    sizes = [block_size >> halvings for halvings in range(4) if block_size >> halvings >= _LEAST_BLOCK]
    return min(sizes, key=lambda size: -(-columns // size) * (size * bits // 8 + 4))  # codes and a scale


def _quantize(padded: np.ndarray, columns: int, bits: int, block_size: int, symmetric: bool) -> Packed:
    rows, blocks = len(padded), padded.shape[1] // block_size
    codes = np.zeros((rows, blocks, block_size * bits // 8), dtype=np.uint8)
    scales = np.zeros((rows, blocks), dtype=np.float32)
    zero_points = np.zeros((rows, -(-blocks * bits // 8)), dtype=np.uint8)
    quantizer = onnxruntime.quantize_matmul_4bits if bits == 4 else onnxruntime.quantize_matmul_8bits
    quantizer(
        codes, np.ascontiguousarray(padded.T), scales, zero_points, block_size, rows, columns, symmetric
    )
    return Packed(codes, scales, None if symmetric else zero_points)


def _clip(values: np.ndarray, weights: np.ndarray, bits: int, symmetric: bool) -> np.ndarray:
    """Blocks [n, blocks, size] clipped to the share of their range that quantizes with the least error."""
    half = 2 ** (bits - 1)
    if symmetric:
        at = np.abs(values).argmax(-1, keepdims=True)
        peak = np.take_along_axis(values, at, -1)
        low, high = -np.abs(peak), np.abs(peak)
    else:
        low, high = np.minimum(values.min(-1, keepdims=True), 0), np.maximum(values.max(-1, keepdims=True), 0)
    best, least = np.ones_like(low), None
    for share in _SHRINK:
        if symmetric:
            scale = peak * (-share / half)
            zero = np.float32(half)
        else:
            scale = (high - low) * (share / (2 * half - 1))
            zero = np.rint(np.divide(-share * low, scale, out=np.zeros_like(low), where=scale != 0))
        codes = np.divide(values, scale, out=np.zeros_like(values), where=scale != 0)
        codes = np.clip(np.rint(codes + zero), 0, 2 * half - 1) - zero
        error = np.einsum("nbs,bs->nb", (codes * scale - values) ** 2, weights)[..., None]
        if least is None:
            least = error
        else:
            best = np.where(error < least, np.float32(share), best)
            least = np.minimum(error, least)
    return np.clip(values, best * low, best * high)


def _refit(values: np.ndarray, packed: Packed, weights: np.ndarray, bits: int) -> np.ndarray:
    """The scales that bring the symmetric codes closest to the blocks, weighted: float32 [N, blocks]."""
    scales = np.empty_like(packed.scales)
    step = max(1, _ROWS // (values.shape[1] * values.shape[2]))
    for start in range(0, len(values), step):
        part = slice(start, start + step)
        codes = _unpack(packed.codes[part], bits).astype(np.float32) - 2 ** (bits - 1)
        down = np.einsum("nbs,nbs,bs->nb", codes, codes, weights)
        up = np.einsum("nbs,nbs,bs->nb", codes, values[part], weights)
        scales[part] = np.divide(up, down, out=packed.scales[part].copy(), where=down > 0)
    return scales


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Two neighbours of the last axis to a byte where they have 4 bits, the first in the low half.

    An odd last one is alone in its byte.
    """
    if bits == 8:
        return np.ascontiguousarray(codes)
    even = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, codes.shape[-1] % 2)])
    return np.ascontiguousarray(even[..., 0::2] | (even[..., 1::2] << 4))


def _unpack(codes: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return codes
    return np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], -1)
