"""Hidden states on their way through the blocks: what the matrices read, and what they should give."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch  # noqa: TID253 - imported by the pipeline's prune stage only
from torch import Tensor, nn  # noqa: TID253

from minigpt_edge.models.archs.base import Arch
from minigpt_edge.models.precision import compute_dtype
from minigpt_edge.prune.context import MICRO_BATCH_TOKENS, VALIDATION_SHARE
from minigpt_edge.prune.moments import Moments
from minigpt_edge.stages import parallel
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.formats.gguf_names import EMBEDDING, HEAD, gguf_name

HEADS = (EMBEDDING, HEAD)  # GGUF names; the same matrix where they are tied
MADE_UP = 0.5  # share of what earlier blocks lost that a refit is to make up for: docs/decisions.md 57
KEPT_BYTES = 2**30  # of a half's units; more of them are computed again when they are needed again


@dataclass(frozen=True)
class Half:
    """Attention or FFN of a block: how its units are computed, and which matrix reads them.

    Attributes:
        name: "attention" or "ffn".
        index: the block's.
        block: float32, for its norms.
        fast: its copy in the dtype of the products.
        enter: (block, hidden states) -> the half's normalised input.
        values: (block, normalised input) -> the units.
        out: block -> the matrix that reads the units.
        parts: names of the matrices that read the input, and of the one that reads the units.
        group: consecutive units that are kept or removed together.
    """

    name: str
    index: int
    block: Any
    fast: Any
    enter: Callable[[Any, Tensor], Tensor]
    values: Callable[[Any, Tensor], Tensor]
    out: Callable[[Any], nn.Linear]
    parts: tuple[tuple[str, ...], str]
    group: int

    @property
    def reader(self) -> nn.Linear:
        """The block's matrix that reads the units."""
        return self.out(self.block)

    def importance(self, read: Tensor, energy: Tensor) -> dict[str, Tensor]:
        """Entries of the importance matrix from mean squares of the input [hidden] and of the units."""
        inputs = {name: read.clone() for name in self.parts[0]}  # Files take no tensor twice.
        squares = {**inputs, self.parts[1]: energy}
        return {gguf_name(f"blocks.{self.index}.{name}.weight"): mean for name, mean in squares.items()}


class Stream:
    """Hidden states [windows, s, hidden], float32, on their way through the blocks.

    Of several processes each has its share of the windows; what is summed over tokens is summed over them.

    Attributes:
        pruned: of the model as it is so far.
        dense: of the dense model; None where nothing is refitted to it.
        entered: both as they entered the block, where its MLP reads that, in `dtype`.
        tokens: of all windows.
        windows: how many there are, with those of other processes.
        rows: which of them this process has.
        dtype: of the products of the forward passes.
    """

    def __init__(self, arch: Arch, model: nn.Module, windows: Tensor, *, two: bool) -> None:
        self.arch, self.tokens, self.dtype = arch, windows.numel(), compute_dtype()
        held_out = max(1, int(len(windows) * VALIDATION_SHARE))
        parts = parallel.share(windows[:held_out]), parallel.share(windows[held_out:])
        numbers = torch.arange(len(windows))
        self.rows = torch.cat([parallel.share(numbers[:held_out]), parallel.share(numbers[held_out:])])
        self.windows = len(windows)
        if not len(parts[1]):
            raise EdgeError(
                f"{parallel.processes()} processes are more than the calibration text has windows",
                "start fewer, or raise --calibration-tokens",
            )
        self.held_out, windows = len(parts[0]), torch.cat(parts)
        self.pruned = arch.embed(model, windows).detach().clone()
        self.dense = self.pruned.clone() if two else None
        self.position = tuple(part.to(self.dtype) for part in arch.positions(model, self.pruned))
        self.entered: tuple[Tensor, Tensor | None] | None = None
        self.step = max(1, MICRO_BATCH_TOKENS // windows.shape[1])

    def halves(self, index: int, block: Any) -> tuple[Half, Half]:
        """The two halves of a block that the streams enter now, in the order they are computed."""
        arch, fast = self.arch, copy.deepcopy(block).to(self.dtype)
        if arch.parallel:
            dense = None if self.dense is None else self.dense.to(self.dtype, copy=True)
            self.entered = self.pruned.to(self.dtype, copy=True), dense
        return (
            Half(
                "attention",
                index,
                block,
                fast,
                arch.attention_input,
                lambda part, x: arch.mix(part, x, self.position),
                arch.attention_out,
                (arch.ATTENTION_READERS, arch.ATTENTION_OUT),
                arch.group_size(block),
            ),
            Half(
                "ffn",
                index,
                block,
                fast,
                arch.ffn_input,
                arch.neurons,
                arch.ffn_out,
                (arch.FFN_READERS, arch.FFN_OUT),
                1,
            ),
        )

    def batches(self) -> Iterator[tuple[slice, int]]:
        """Micro-batches of windows and the set they belong to: 1 held out, 0 fitted."""
        for start, stop, part in ((0, self.held_out, 1), (self.held_out, len(self.pruned), 0)):
            for first in range(start, stop, self.step):
                yield slice(first, min(first + self.step, stop)), part

    def gather(self, half: Half) -> tuple[Units, list[Moments], Tensor]:
        """Advance the dense stream by a half, and measure the pruned stream.

        The moments' target is what the half's own matrix gives on the pruned stream, and MADE_UP of the
        distance that is then left to the dense stream.

        Returns:
            the units; their moments, [fitted, held out], none without a dense stream; the summed squared
            inputs, float32 [hidden].
        """
        width, hidden = half.reader.in_features, self.pruned.shape[-1]
        read, bias, units = torch.zeros(hidden), half.reader.bias, Units(self, half)
        taught = None if self.dense is None else self.entering(half, self.dense, 1)
        moments = [Moments.zeros(width, hidden) for _ in range(2)] if self.dense is not None else []
        for rows, part in self.batches():
            values = units.compute(rows, read)
            if self.dense is not None and taught is not None:
                wanted = half.values(half.fast, half.enter(half.block, taught[rows].float()).to(self.dtype))
                self.dense[rows] += half.out(half.fast)(wanted)
                wanted = self.dense[rows] - self.pruned[rows]
                wanted = wanted if bias is None else wanted - bias
                moments[part].add(values.flatten(0, 1), wanted.flatten(0, 1))
        parallel.all_reduce(read)
        for sums in moments:
            sums.all_reduce()
            sums.draw(half.reader.weight.t(), MADE_UP)
        return units, moments, read

    def entering(self, half: Half, stream: Tensor, which: int) -> Tensor:
        """What a half reads of the pruned (0) or dense (1) stream."""
        before = self.entered[which] if self.entered else None
        return stream if before is None else before

    def advance(self, units: Units, kept: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        """Add units[..., kept] @ weight [kept, hidden] + bias to the pruned stream."""
        # Removed units have zero rows: multiplying all units is faster than gathering the kept ones.
        full = torch.zeros(units.width, weight.shape[1], dtype=self.dtype)
        full[kept] = weight.to(self.dtype)
        for rows, _ in self.batches():
            self.pruned[rows] += units[rows] @ full
        if bias is not None:
            self.pruned += bias

    def dense_states(self, model: nn.Module) -> Tensor | None:
        """What the dense model's head reads, float16 [windows, s, width], with both streams at the end."""
        if self.dense is None:
            return None
        whole = torch.zeros(self.windows, *self.dense.shape[1:], dtype=torch.float16)
        for rows, _ in self.batches():
            whole[self.rows[rows]] = self.arch.final_norm(model, self.dense[rows]).half()
        parallel.all_reduce(whole)
        return whole

    def head_importance(self, model: nn.Module) -> dict[str, Tensor]:
        """Entries of the importance matrix for the head, and for the embedding where they are tied."""
        finals = (self.arch.final_norm(model, self.pruned[rows]) for rows, _ in self.batches())
        squares = torch.stack([final.square().sum((0, 1)) for final in finals]).sum(0)
        parallel.all_reduce(squares)
        return dict.fromkeys(HEADS, squares / self.tokens)


class Units:
    """What the pruned stream makes of a half: neurons, or mixed values of heads [windows, s, width].

    Kept where they are few, else computed again for every batch of windows that is asked for.
    """

    def __init__(self, stream: Stream, half: Half) -> None:
        self.stream, self.half = stream, half
        self.width = half.out(half.fast).in_features
        shape = (*stream.pruned.shape[:2], self.width)
        few = stream.dtype.itemsize * math.prod(shape) <= KEPT_BYTES
        self.values = torch.empty(shape, dtype=stream.dtype) if few else None

    def compute(self, rows: slice, read: Tensor | None = None) -> Tensor:
        """The units of some windows, from the stream as it is; sums squared inputs [hidden] in `read`."""
        half, stream = self.half, self.stream
        normalised = half.enter(half.block, stream.entering(half, stream.pruned, 0)[rows].float())
        if read is not None:
            read += normalised.square().sum((0, 1))
        values = half.values(half.fast, normalised.to(stream.dtype))
        if self.values is not None:
            self.values[rows] = values
        return values

    def __getitem__(self, rows: slice) -> Tensor:
        return self.compute(rows) if self.values is None else self.values[rows]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[rows] for rows, _ in self.stream.batches())
