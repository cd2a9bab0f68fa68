"""The integers of ONNX targets by GPTQ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from minigpt_edge_export.decoder import Decoder
from minigpt_edge_export.gptq import quantize_gptq
from minigpt_edge_export.onnx.weights import Packed, pack, smallest_block
from minigpt_edge_export.targets import Precision

_SHARES = (1.0, 0.92, 0.84, 0.76)  # of a block's range


@dataclass(frozen=True)
class _Integers:
    """Blocks of integers; their steps are a scale and a zero point."""

    block: int
    bits: int
    symmetric: bool

    def proposals(self, values: np.ndarray) -> np.ndarray:
        """Scales that take in the range of a block, and smaller ones."""
        half, found = 2 ** (self.bits - 1), []
        low, high = np.minimum(values.min(1), 0), np.maximum(values.max(1), 0)
        peak = np.take_along_axis(values, np.abs(values).argmax(1)[:, None], 1)[:, 0]
        for share in map(np.float32, _SHARES):
            if self.symmetric:
                scale, zero = -share * peak / half, np.full_like(peak, half)
            else:
                scale = share * (high - low) / (2 * half - 1)
                zero = np.rint(np.divide(-share * low, scale, out=np.zeros_like(low), where=scale != 0))
                zero = np.clip(zero, 0, 2 * half - 1)
            found.append((np.where(scale == 0, np.float32(1e-8), scale), zero))
        return np.array(found, dtype=np.float32)

    def codes(self, values: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """The nearest integers."""
        scale, zero = steps
        return np.clip(np.rint(values / scale + zero), 0, 2**self.bits - 1).astype(np.uint8)

    def values(self, codes: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """What integers stand for."""
        scale, zero = steps
        return (codes - zero) * scale


def pack_gptq(
    matrix: np.ndarray, gram: np.ndarray, precision: Precision, block: int, threads: int = 1
) -> Packed:
    """Quantize a matrix float32 [N, K] by the Gram matrix of what it reads, float32 [K, K]."""
    rows, columns = matrix.shape
    grid = _Integers(block, precision.bits, precision.symmetric)
    codes, steps = quantize_gptq(matrix, gram, grid, threads)
    padded = np.full((rows, len(steps) * block), 2 ** (precision.bits - 1), dtype=np.uint8)
    padded[:, :columns] = codes
    zeros = None if precision.symmetric else pack(steps[:, 1].T.astype(np.uint8), precision.bits)
    scales = np.ascontiguousarray(steps[:, 0].T)
    return Packed(pack(padded.reshape(rows, -1, block), precision.bits), scales, zeros)


def pack_matrices(
    decoder: Decoder, precision: Precision, grams: Mapping[str, np.ndarray], threads: int = 1
) -> dict[str, Packed]:
    """Quantize some matrices, or their factors where they have any.

    Args:
        grams: canonical name of a matrix -> float32 [columns, columns], see `quantize_gptq`.

    Returns:
        name of each matrix, such as "blocks.3.down.weight", or of its factors, "blocks.3.down.a" and
        "….b" -> integers.
    """
    found, size = dict[str, Packed](), precision.block_size
    for name, gram in grams.items():
        factors = decoder.factors(name)
        if factors is None:
            found[name] = pack_gptq(decoder.load(name), gram, precision, size, threads)
            continue
        b, a = factors
        module, inner = name.removesuffix(".weight"), smallest_block(len(a), size, precision.bits)
        found[f"{module}.a"] = pack_gptq(a, gram, precision, size, threads)
        found[f"{module}.b"] = pack_gptq(b, a @ gram @ a.T, precision, inner, threads)
    return found


def joined(parts: Sequence[Packed]) -> Packed:
    """Matrices with the same columns as one, the rows of one after the other's."""
    zeros = [part.zero_points for part in parts if part.zero_points is not None]
    return Packed(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate(zeros) if zeros else None,
    )
