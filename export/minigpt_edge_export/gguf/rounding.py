"""A quantized file's blocks written again, where more is known than llama.cpp's quantizer was told."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minigpt_edge_export.decoder import Decoder
from minigpt_edge_export.gguf.grids import GPTQ_TYPES, GRIDS, Grid, find_codes
from minigpt_edge_export.gguf.layout import layout_of, load_tensor, tensors_of
from minigpt_edge_export.gptq import quantize_gptq
from minigpt_edge_runtime.formats.gguf_header import read_header

_SHARES = (0.9, 0.97, 1.03)  # of the scale that makes the largest weight an outermost level


class Rounding:
    """A model's matrices in the types of its files, each worked out once for all files that hold it.

    A matrix that lies on its type's grid, as training on it leaves it, keeps its very numbers: the quantizer
    rounds them anew, and the F16 file that it reads has lost some of their digits. Others are rounded by
    GPTQ, where `add` was told by what.

    Args:
        decoder: what the F16 file was written from.
        wanted: tensor -> the types that files may give it, of those that GPTQ is for.
        threads: for GPTQ; the bytes do not depend on it.
    """

    def __init__(
        self, decoder: Decoder, wanted: Mapping[str, Collection[str]] | None = None, threads: int = 1
    ) -> None:
        self._decoder, self._layout, self._threads = decoder, layout_of(decoder), threads
        self._contents = tensors_of(decoder, self._layout)
        ours = {name: GPTQ_TYPES.intersection(kinds) for name, kinds in (wanted or {}).items()}
        self._wanted = {name: sorted(kinds) for name, kinds in ours.items() if kinds}
        self._blocks: dict[tuple[str, str], np.ndarray | None] = {}

    @property
    def left(self) -> bool:
        """Whether a matrix of the blocks is neither on a wanted type's grid nor rounded to it yet."""
        return any(
            self._known(name, kind) is None
            for name, kinds in self._wanted.items()
            if self._contents[name].parts[0].startswith("blocks.")
            for kind in kinds
        )

    def add(self, grams: Mapping[str, np.ndarray]) -> None:
        """Round some matrices by GPTQ to their wanted types.

        Args:
            grams: canonical name of a matrix -> float32 [columns, columns], see `quantize_gptq`. Of matrices
                that are one tensor all must be there.
        """
        for name, kinds in self._wanted.items():
            if self._contents[name].parts[0] in grams:
                for kind in kinds:
                    if self._known(name, kind) is None:
                        parts = self._parts(name, grams)
                        rows = [self._rounded(values, gram, GRIDS[kind]) for values, gram in parts]
                        self._blocks[name, kind] = np.concatenate(rows)

    def improve(self, path: Path) -> None:
        """Write what is better into a file that `quantize` wrote, in the types that it gave the tensors."""
        header = read_header(path)
        with open(path, "r+b") as file:
            for tensor in header.tensors:
                ours = tensor.type in GRIDS and tensor.name in self._contents
                blocks = self._known(tensor.name, tensor.type) if ours else None
                if blocks is not None:
                    file.seek(header.data_start + tensor.offset)
                    file.write(blocks.tobytes())

    def _values(self, name: str) -> np.ndarray:
        return load_tensor(self._decoder, self._layout, name, self._contents[name])

    def _known(self, name: str, kind: str) -> np.ndarray | None:
        """The bytes of a matrix that lies on a type's grid, or that GPTQ rounded to it; None of any other."""
        if (name, kind) not in self._blocks:
            found = find_codes(self._values(name), GRIDS[kind])
            self._blocks[name, kind] = None if found is None else GRIDS[kind].encode(*found)
        return self._blocks[name, kind]

    def _parts(self, name: str, grams: Mapping[str, np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(values, Gram matrix) of each of the matrices that are one tensor."""
        values, shapes, start = self._values(name), self._decoder.shapes(), 0
        names = self._contents[name].parts
        for part in names:
            end = start + shapes[part][0] if part != names[-1] else len(values)
            missing = values.shape[1] - len(grams[part])  # inputs that were added to make all blocks alike
            yield values[start:end], np.pad(grams[part], (0, missing))
            start = end

    def _rounded(self, values: np.ndarray, gram: np.ndarray, grid: Grid) -> np.ndarray:
        """The bytes of a matrix float32 [rows, columns], uint8 [rows, bytes of a row]."""
        codes, steps = quantize_gptq(values, gram, _GgmlBlocks(grid), self._threads)
        return grid.encode(codes, steps[:, 0].T.astype(np.float16))


@dataclass(frozen=True)
class _GgmlBlocks:
    """A type's blocks as GPTQ takes them: a block's step is a scale, a number of float16."""

    grid: Grid

    @property
    def block(self) -> int:
        return self.grid.block

    def proposals(self, values: np.ndarray) -> np.ndarray:
        """Scales that put the largest weight near the lowest or near the highest level."""
        peak = np.take_along_axis(values, np.abs(values).argmax(1)[:, None], 1)[:, 0]
        shares = [share / end for end in (self.grid.levels[0], self.grid.levels[-1]) for share in _SHARES]
        scales = np.outer(np.array(shares, dtype=np.float32), peak)
        return scales.astype(np.float16).astype(np.float32)[:, None]

    def codes(self, values: np.ndarray, steps: np.ndarray) -> np.ndarray:
        (scale,) = steps
        return self.grid.nearest(values * np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0))

    def values(self, codes: np.ndarray, steps: np.ndarray) -> np.ndarray:
        return self.grid.table[codes] * steps[0]
