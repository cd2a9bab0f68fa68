"""Training on a file's grid: a step computes with the numbers that the file will hold.

The blocks' matrices are rounded for the forward and the backward pass; AdamW then moves the float32 weights
by the gradients that the rounded ones got (straight-through estimator, arXiv 1308.3432). So the model learns
to do with what rounding leaves. Scales are searched once, errors weighted much as llama.cpp does, by the
importance matrix, and then follow the weights.
Import this module inside functions: it needs torch at its head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from minigpt_edge.recover.config import FileGrid
from minigpt_edge.stages.device import here
from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.gguf.grids import GRIDS, Grid
from minigpt_edge_export.gguf.quantize import imatrix_from_file, matrices_in
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.formats.gguf_names import gguf_name

FIT_EVERY = 8  # steps
SCALES = "scales.safetensors"  # in a training checkpoint
_SHARES = (1.15, 1.1, 1.05, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)  # of the range that levels span
_FLOOR = 1e-3  # of the mean importance: inputs that the calibration text never had keep some


@dataclass(frozen=True)
class _Matrix:
    """A parameter [rows, columns], or its transpose, and the importance of its columns [blocks, block]."""

    name: str
    parameter: nn.Parameter
    importance: Tensor
    transposed: bool

    def blocks(self) -> Tensor:
        """The float32 weights [rows, blocks, block]."""
        held = self.parameter.data
        return (held.T if self.transposed else held).reshape(-1, *self.importance.shape)

    def placed(self, blocks: Tensor) -> Tensor:
        """Blocks in the parameter's own shape."""
        shape = self.parameter.shape
        return blocks.reshape(shape[::-1]).T.contiguous() if self.transposed else blocks.view(shape)


class OnGrid:
    """The matrices of a model that its file holds in one type; others are trained in float32.

    Args:
        model: as `load_model` gives it.
        checkpoint: where it came from.
        file: its type, and the importance matrix.
        compiled: compile the rounding; without that it takes as long as a step.

    Raises:
        EdgeError: the file would hold no matrix in that type, since no row divides by its block, or the
            importance matrix is damaged or lacks a matrix.
    """

    def __init__(self, model: nn.Module, checkpoint: Path, file: FileGrid, *, compiled: bool) -> None:
        self.grid = GRIDS[file.kind]
        self.matrices = list(_matrices(model, checkpoint, self.grid, imatrix_from_file(file.importance)))
        if not self.matrices:
            size = self.grid.block
            raise EdgeError(f"no row of this model divides by {file.kind}'s blocks of {size}", None)
        self._functions = _functions(self.grid, compiled=compiled)
        self.scales: dict[str, Tensor] = {}
        self._fitted: int | None = None

    def follow(self, step: int) -> None:
        """Make the scales follow the weights: once a step on the grid, counted from 0, where it is time."""
        if step % FIT_EVERY or self._fitted == step:
            return
        fit = self._refit if self.scales else self._search
        with torch.no_grad():
            self.scales = {matrix.name: fit(matrix) for matrix in self.matrices}
        self._fitted = step

    def _refit(self, matrix: _Matrix) -> Tensor:
        """The scales of least squares for the levels that the weights have now, where they are better."""
        weights, scales = matrix.blocks(), self.scales[matrix.name]
        importance = _weighted(matrix, weights)
        fitted, error = self._trial(weights, importance, scales)
        return torch.where(error < self._functions.error(weights, importance, scales), fitted, scales)

    def _trial(self, weights: Tensor, importance: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        """The scales fitted to the levels that some scales give, as float16 holds them, and their error."""
        fitted = self._functions.fit(weights, importance, scales).float()
        return fitted, self._functions.error(weights, importance, fitted)

    def _search(self, matrix: _Matrix) -> Tensor:
        """Scales [rows, blocks], numbers of float16, with the least weighted squared error."""
        weights = matrix.blocks()
        importance = _weighted(matrix, weights)
        peak = weights.gather(-1, weights.abs().argmax(-1, keepdim=True))[..., 0]
        best, least = torch.zeros_like(peak), torch.full_like(peak, float("inf"))
        for end in (self.grid.levels[0], self.grid.levels[-1]):
            for share in _SHARES:
                scale, error = self._trial(weights, importance, peak * (share / end))
                better = error < least
                best, least = torch.where(better, scale, best), torch.where(better, error, least)
        return best

    @contextmanager
    def rounded(self) -> Iterator[None]:
        """The model with its matrices on the grid; the float32 weights come back afterwards."""
        held = [matrix.parameter.data for matrix in self.matrices]
        try:
            with torch.no_grad():
                for matrix in self.matrices:
                    values = self._functions.rounded(matrix.blocks(), self.scales[matrix.name])
                    matrix.parameter.data = matrix.placed(values)
            yield
        finally:
            for matrix, data in zip(self.matrices, held, strict=True):
                matrix.parameter.data = data

    def save(self, folder: Path) -> None:
        """Write the scales, if there are any yet, into a training checkpoint."""
        from safetensors.torch import save_file

        if self.scales:
            save_file({name: scale.half().cpu() for name, scale in self.scales.items()}, folder / SCALES)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        from safetensors.torch import load_file

        if (folder / SCALES).is_file():
            self.scales = {name: here(scale.float()) for name, scale in load_file(folder / SCALES).items()}


def _matrices(
    model: nn.Module, checkpoint: Path, grid: Grid, importance: Mapping[str, Any]
) -> Iterator[_Matrix]:
    """The matrices that the file holds in the grid's type."""
    decoder, seen = read_checkpoint(checkpoint), set()
    shapes = decoder.shapes()
    for name in matrices_in(decoder, grid.name):
        source, entry = decoder.source_name(name), gguf_name(name)
        if source in seen or shapes[name][1] % grid.block:  # a row may be longer in the file
            continue
        seen.add(source)  # query, key and value may be one matrix, of the same inputs
        if entry not in importance:
            raise EdgeError(f"the importance matrix lacks {entry}", "calibrate again")
        squares = here(torch.from_numpy(importance[entry]))
        squares = squares + _FLOOR * squares.mean() + 1e-30
        parameter = model.get_parameter(source)
        yield _Matrix(source, parameter, squares.view(-1, grid.block), decoder.architecture.transposed)


def _weighted(matrix: _Matrix, weights: Tensor) -> Tensor:
    """What a weight's error counts, [rows, blocks, block]: as in llama.cpp large weights count more."""
    energy = weights.square()
    return matrix.importance * (energy + energy.mean(-1, keepdim=True)).sqrt()


class _Functions(NamedTuple):
    """What is computed for blocks of weights [rows, blocks, block] with scales [rows, blocks].

    `rounded`: (weights, scales) -> the weights on the grid. `fit`: (weights, importance, scales) -> the
    scales of least squares for the levels that these give, float16. `error`: (the same) -> weighted squared
    error.
    """

    rounded: Callable[..., Tensor]
    fit: Callable[..., Tensor]
    error: Callable[..., Tensor]


def _functions(grid: Grid, *, compiled: bool) -> _Functions:
    nearest = _nearest(grid)

    def rounded(weights: Tensor, scales: Tensor) -> Tensor:
        return nearest(weights * _inverse(scales)[..., None]) * scales[..., None]

    def fit(weights: Tensor, importance: Tensor, scales: Tensor) -> Tensor:
        levels = nearest(weights * _inverse(scales)[..., None])
        energy = (levels * levels * importance).sum(-1)
        fitted = (levels * weights * importance).sum(-1) / energy.clamp_min(1e-30)
        # The result has to be float16: compiled code drops a cast to it and back.
        return torch.where(energy > 0, fitted, scales).half()

    def error(weights: Tensor, importance: Tensor, scales: Tensor) -> Tensor:
        return ((rounded(weights, scales) - weights).square() * importance).sum(-1)

    found = _Functions(rounded, fit, error)
    return _Functions(*(torch.compile(one, dynamic=True) for one in found)) if compiled else found


def _nearest(grid: Grid) -> Callable[[Tensor], Tensor]:
    """The nearest level of each value."""
    levels = grid.levels
    if all(after - before == 1 for before, after in pairwise(levels)):
        return lambda values: values.round().clamp(levels[0], levels[-1])

    def nearest(values: Tensor) -> Tensor:
        found = torch.full_like(values, levels[0])
        for before, after in pairwise(levels):  # one pass over memory once compiled
            found = torch.where(values > (before + after) / 2, after, found)
        return found

    return nearest


def _inverse(scales: Tensor) -> Tensor:
    return torch.where(scales == 0, 0.0, 1 / scales)
