"""The grids of ggml's simple block types: which numbers a block can hold, and the bytes that hold them.

A block is one scale in float16, and for each weight a level, an integer of a fixed table; the weight is their
product (ggml-quants.c and ggml-common.h of llama.cpp; IQ4_NL's table is `kvalues_iq4nl`). Types with a second
scale (Q4_1, Q5_1) or scales of scales (K and IQ types of 256 weights) are not here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_SAMPLE = 64  # blocks that tell whether a matrix may lie on a grid at all


def _nibbles(codes: np.ndarray) -> np.ndarray:
    half = codes.shape[-1] // 2
    return codes[..., :half] | (codes[..., half:] << 4)


def _nibbles_and_high_bits(codes: np.ndarray) -> np.ndarray:
    high = np.packbits(codes >> 4, axis=-1, bitorder="little")
    return np.concatenate([high, _nibbles(codes & 15)], -1)


def _quarters(codes: np.ndarray) -> np.ndarray:
    return codes[..., 0::4] | (codes[..., 1::4] << 2) | (codes[..., 2::4] << 4) | (codes[..., 3::4] << 6)


def _bytes(codes: np.ndarray) -> np.ndarray:
    return codes + np.uint8(129)  # code 0 is level -127, and a byte's 129 is the signed -127


@dataclass(frozen=True)
class Grid:
    """One type.

    Attributes:
        name: as in GGUF, such as "IQ4_NL".
        block: weights that share a scale.
        levels: in rising order; a weight's code is a number in this table.
        pack: codes uint8 [..., block] -> bytes uint8.
    """

    name: str
    block: int
    levels: tuple[int, ...]
    pack: Callable[[np.ndarray], np.ndarray]

    @property
    def table(self) -> np.ndarray:
        """The levels, float32."""
        return np.array(self.levels, dtype=np.float32)

    def nearest(self, values: np.ndarray) -> np.ndarray:
        """Codes uint8 of the levels nearest to values that were divided by their scale."""
        table = self.table
        return np.searchsorted((table[1:] + table[:-1]) / 2, values).astype(np.uint8)

    def encode(self, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """The bytes of a matrix as the file holds them: uint8 [rows, bytes of a row].

        Args:
            codes: uint8 [rows, columns].
            scales: float16 [rows, columns / block].
        """
        rows, blocks = scales.shape
        scale = np.ascontiguousarray(scales.astype("<f2")).view(np.uint8).reshape(rows, blocks, 2)
        packed = self.pack(codes.reshape(rows, blocks, self.block))
        return np.concatenate([scale, packed], -1).reshape(rows, -1)

    def decode(self, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """The weights of codes and scales, float32 [rows, columns], as llama.cpp computes them."""
        rows, blocks = scales.shape
        values = self.table[codes].reshape(rows, blocks, self.block)
        return (values * scales.astype(np.float32)[..., None]).reshape(codes.shape)


_FOUR_BITS = tuple(range(-8, 8))
_NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
GRIDS: dict[str, Grid] = {
    grid.name: grid
    for grid in (
        Grid("Q2_0", 64, (-1, 0, 1, 2), _quarters),
        Grid("Q4_0", 32, _FOUR_BITS, _nibbles),
        Grid("IQ4_NL", 32, _NONLINEAR, _nibbles),
        Grid("Q5_0", 32, tuple(range(-16, 16)), _nibbles_and_high_bits),
        Grid("Q8_0", 32, tuple(range(-127, 128)), _bytes),
    )
}


GPTQ_TYPES = frozenset(GRIDS) - {"Q8_0"}  # at 8 bits rounding loses too little to be worth the time


def find_codes(matrix: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray] | None:
    """Codes and scales of a matrix all of whose blocks lie on a grid, as training on it leaves them.

    Args:
        matrix: float32 [rows, columns].

    Returns:
        (codes uint8 [rows, columns], scales float16 [rows, columns / block]) that decode to the very same
        numbers; None if a block has none, or the rows do not divide by the block.
    """
    rows, columns = matrix.shape
    if columns % grid.block:
        return None
    blocks = matrix.reshape(-1, grid.block)
    step = max(1, len(blocks) // _SAMPLE)
    if _find(blocks[::step], grid) is None:
        return None
    found = _find(blocks, grid)
    if found is None:
        return None
    codes, scales = found
    return codes.reshape(rows, columns), scales.reshape(rows, -1)


def _find(blocks: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray] | None:
    """The same of blocks [n, block]: the largest weight of each is tried as each of the levels."""
    table = grid.table
    peaks = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)[:, 0]
    codes = np.zeros(blocks.shape, dtype=np.uint8)
    scales = np.zeros(len(blocks), dtype=np.float16)
    left = np.flatnonzero(peaks)  # a block of zeros has the scale 0
    for level in sorted(table[table != 0], key=lambda level: -abs(level)):
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            scale = (peaks[left] / level).astype(np.float16)
            wide = scale.astype(np.float32)[:, None]
            code = grid.nearest(blocks[left] / wide)
            fits = (table[code] * wide == blocks[left]).all(1)
        codes[left[fits]], scales[left[fits]] = code[fits], scale[fits]
        left = left[~fits]
        if not len(left):
            return codes, scales
    return None if len(left) else (codes, scales)
