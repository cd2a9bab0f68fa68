"""Masks: weights set to zero in the matrices of the blocks, which keep their shapes.

Zeros alone make neither the file smaller nor a CPU faster; this is for comparing methods. The walk is
Wanda's: a dense block runs on the hidden states so far and what each matrix reads is gathered, all its
matrices are pruned, the pruned block runs again and its output is what the next block gets.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch  # noqa: TID253 - imported by the pipeline's prune stage only
from torch import Tensor, nn  # noqa: TID253

from minigpt_edge.models.archs.base import Arch
from minigpt_edge.models.precision import compute_dtype
from minigpt_edge.models.resident import resident, write_back
from minigpt_edge.prune.methods import magnitude, sparsegpt, wanda
from minigpt_edge.prune.methods.pattern import Pattern
from minigpt_edge.prune.methods.registry import UNSTRUCTURED
from minigpt_edge.prune.moments import add_gram, mirror
from minigpt_edge.prune.streams import MICRO_BATCH_TOKENS
from minigpt_edge_runtime.errors import UsageError
from minigpt_edge_runtime.formats.gguf_names import EMBEDDING, HEAD, gguf_name

MASK_METHODS = ("magnitude", "wanda", "sparsegpt")


@dataclass
class MaskResult:
    """What was zeroed and measured; matrices by their GGUF names.

    Attributes:
        sparsity: share of zeros in all matrices of the blocks.
        zeros: share of zeros per matrix.
        importance: mean squared input of each matrix, float32; empty for magnitude, which runs nothing.
        damping: SparseGPT's, of each matrix whose Hessian needed more than usual.
        seconds: forward passes, statistics of what is read, and solving.
    """

    sparsity: float = 0.0
    zeros: dict[str, float] = field(default_factory=dict)
    importance: dict[str, Tensor] = field(default_factory=dict)
    damping: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(
        default_factory=lambda: {"forward": 0.0, "statistics": 0.0, "solve": 0.0}
    )

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the time that the body takes."""
        start = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - start


class _Read:
    """What the matrices that share an input read: sums over tokens of x x^T, or of its diagonal only."""

    def __init__(self, units: int, whole: bool) -> None:
        self.whole = whole
        self.sums = torch.zeros(units, units) if whole else torch.zeros(units)

    def add(self, x: Tensor) -> None:
        """Add x [..., units], bfloat16 or float32."""
        flat = x.flatten(0, -2)
        if self.whole:
            add_gram(self.sums, flat)
        else:
            self.sums += flat.float().square().sum(0)

    def gram(self) -> Tensor:
        """sum x x^T [units, units]."""
        mirror(self.sums)
        return self.sums

    def squares(self) -> Tensor:
        """||X_j||^2 [units]."""
        return self.sums.diagonal() if self.whole else self.sums


class _Stream:
    """The hidden states [n, s, hidden], float32, that the blocks pruned so far make of the windows."""

    def __init__(self, arch: Arch, model: nn.Module, windows: Tensor, dtype: torch.dtype) -> None:
        self.arch, self.dtype = arch, dtype
        self.hidden = arch.embed(model, windows).clone()
        self.position = tuple(part.to(dtype) for part in arch.positions(model, self.hidden))
        self.parts = self.hidden.split(max(1, MICRO_BATCH_TOKENS // windows.shape[1]))

    def gather(self, block: nn.Module, whole: bool, result: MaskResult) -> list[_Read]:
        """What the dense block's matrices read: the attention's, its output's, the FFN's, its output's."""
        arch, fast = self.arch, copy.deepcopy(block).to(self.dtype)
        inner = arch.attention_out(block).in_features, arch.ffn_out(block).in_features
        width = self.hidden.shape[-1]
        reads = [_Read(units, whole) for units in (width, inner[0], width, inner[1])]
        for x in self.parts:
            with result.timed("forward"):
                entering = arch.attention_input(block, x).to(self.dtype)
                mixed = arch.mix(fast, entering, self.position)
                read = x if arch.parallel else x + arch.attention_out(fast)(mixed)
                between = arch.ffn_input(block, read).to(self.dtype)
                active = arch.neurons(fast, between)
            with result.timed("statistics"):
                for read, values in zip(reads, (entering, mixed, between, active), strict=True):
                    read.add(values)
        return reads

    def advance(self, block: nn.Module) -> None:
        """Put the hidden states through a block, in place."""
        arch, fast = self.arch, copy.deepcopy(block).to(self.dtype)
        for x in self.parts:
            entering = x.clone() if arch.parallel else x
            x += arch.attention_out(fast)(
                arch.mix(fast, arch.attention_input(block, x).to(self.dtype), self.position)
            )
            x += arch.ffn_out(fast)(arch.neurons(fast, arch.ffn_input(block, entering).to(self.dtype)))


def _matrices(arch: Arch, block: nn.Module, index: int) -> list[dict[str, nn.Linear]]:
    """GGUF name -> matrix of a block, those that share an input together, in the order of `gather`."""
    attention, ffn = arch.writers(block)
    shared = (
        (arch.ATTENTION_READERS, attention),
        ((arch.ATTENTION_OUT,), [arch.attention_out(block)]),
        (arch.FFN_READERS, ffn),
        ((arch.FFN_OUT,), [arch.ffn_out(block)]),
    )
    return [
        {
            gguf_name(f"blocks.{index}.{name}.weight"): linear
            for name, linear in zip(names, linears, strict=True)
        }
        for names, linears in shared
    ]


def _check(matrices: list[dict[str, nn.Linear]], method: str, pattern: Pattern, sparsity: float) -> None:
    if method not in MASK_METHODS:
        raise UsageError(f"{method!r} makes no masks", f"methods that do: {', '.join(MASK_METHODS)}")
    if not 0 < sparsity < 1:
        raise UsageError(f"a sparsity of {sparsity:g} is not between 0 and 1")
    if not pattern.m:
        return
    share = pattern.n / pattern.m
    if abs(share - sparsity) > 1e-6:
        raise UsageError(
            f"{pattern.n}:{pattern.m} makes {share:.2%} of the weights zero, not {sparsity:.2%}",
            f"give a sparsity of {share:g}",
        )
    for shared in matrices:
        for name, linear in shared.items():
            if linear.in_features % pattern.m:
                raise UsageError(
                    f"{name} has {linear.in_features} inputs, no multiple of {pattern.m}",
                    f"choose another pattern, or {UNSTRUCTURED}",
                )


def mask_blocks(
    model: nn.Module,
    arch: Arch,
    windows: Tensor,
    method: str,
    pattern: Pattern,
    sparsity: float,
    on_block: Callable[[int, int], None] = lambda done, total: None,
    *,
    dtype: torch.dtype | None = None,
) -> MaskResult:
    """Set weights of a model's blocks to zero in place, first block to last.

    Args:
        model: float32, dense; embeddings and head stay as they are.
        windows: token ids, int64 [windows, s]; magnitude does not look at them.
        method: one of MASK_METHODS.
        sparsity: share of the blocks' matrix weights that become zero; n/m for an n:m pattern.
        on_block: called with (blocks done, blocks).
        dtype: of the products in the forward passes; None for the faster one.

    Raises:
        UsageError: unknown method, or a sparsity or matrices that do not suit the pattern.
    """
    result, blocks = MaskResult(), arch.blocks(model)
    matrices = [_matrices(arch, block, index) for index, block in enumerate(blocks)]
    _check([shared for block in matrices for shared in block], method, pattern, sparsity)
    with torch.inference_mode():
        stream = None if method == "magnitude" else _Stream(arch, model, windows, dtype or compute_dtype())
        for index, block in enumerate(blocks):
            with resident(block):
                _mask_block(arch, stream, block, index, (method, pattern, sparsity), result)
                write_back(block)
            on_block(index + 1, len(blocks))
        if stream:
            final = arch.final_norm(model, stream.hidden).square().mean((0, 1))
            result.importance |= {EMBEDDING: final, HEAD: final}
    total = sum(linear.weight.numel() for block in matrices for shared in block for linear in shared.values())
    result.sparsity = sum(result.zeros.values()) / total
    sizes = {name: m.weight.numel() for block in matrices for shared in block for name, m in shared.items()}
    result.zeros = {name: count / sizes[name] for name, count in result.zeros.items()}
    return result


def _mask_block(
    arch: Arch,
    stream: _Stream | None,
    block: Any,
    index: int,
    wanted: tuple[str, Pattern, float],
    result: MaskResult,
) -> None:
    """Measure, mask and leave one block behind."""
    method, pattern, sparsity = wanted
    matrices = _matrices(arch, block, index)
    reads = stream.gather(block, method == "sparsegpt", result) if stream else [None] * 4
    for shared, read in zip(matrices, reads, strict=True):
        if read and stream:
            mean = read.squares() / stream.hidden[..., 0].numel()
            result.importance |= {name: mean.clone() for name in shared}
        with result.timed("solve"):
            _prune(shared, read, method, pattern, sparsity, result)
        result.zeros |= {name: int((linear.weight == 0).sum()) for name, linear in shared.items()}
    if stream:
        with result.timed("forward"):
            stream.advance(block)


def _prune(
    shared: dict[str, nn.Linear],
    read: _Read | None,
    method: str,
    pattern: Pattern,
    sparsity: float,
    result: MaskResult,
) -> None:
    """Set weights of matrices that share an input to zero, in place."""
    gram = read.gram() if read and method == "sparsegpt" else None
    norms = read.squares().sqrt() if read else None
    for name, linear in shared.items():
        weight = linear.weight.data
        if gram is not None:
            solved, damping = sparsegpt.solve(weight, gram, pattern, sparsity)
            weight.copy_(solved)
            if damping > sparsegpt.DAMPINGS[0]:
                result.damping[name] = damping
        elif norms is not None:
            weight.masked_fill_(wanda.mask(weight, norms, pattern, sparsity), 0)
        else:
            weight.masked_fill_(magnitude.mask(weight, pattern, sparsity), 0)
