"""Masks: weights set to zero in the matrices of the blocks, which keep their shapes.

Zeros alone make neither the file smaller nor a CPU faster; this is for comparing methods. The walk is
Wanda's: a dense block runs on the hidden states so far and what each matrix reads is gathered, all its
matrices are pruned, the pruned block runs again and its output is what the next block gets.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from minigpt_edge.prune.context import MICRO_BATCH_TOKENS, UNSTRUCTURED, PruneContext, Pruned
from minigpt_edge.prune.method import Pruner
from minigpt_edge_runtime.errors import UsageError
from minigpt_edge_runtime.formats.gguf_names import gguf_name

if TYPE_CHECKING:
    from torch import Tensor, nn

    from minigpt_edge.models.archs.base import Arch

DAMPING = 0.01  # of the mean diagonal of a Hessian: what is usual
NORMS, GRAM = "norms", "gram"


@dataclass(frozen=True)
class Pattern:
    """Which weights may be removed: any (m = 0), or n of every m in a row of an output's weights."""

    n: int = 0
    m: int = 0

    def lowest(self, scores: Tensor, sparsity: float) -> Tensor:
        """True at floor(columns * sparsity) lowest scores of each row, or at the n lowest of every m.

        Args:
            scores: float32 [rows, columns], columns a multiple of m. Of equal ones the first are removed.
        """
        rows, count = scores, int(scores.shape[1] * sparsity + 1e-9)
        if self.m:
            rows, count = scores.reshape(-1, self.m), self.n
        if not count:
            return scores != scores
        limit = rows.kthvalue(count, dim=1, keepdim=True).values
        below, equal = rows < limit, rows == limit
        missing = count - below.sum(1, keepdim=True)
        return (below | (equal & (equal.cumsum(1) <= missing))).view_as(scores)


def parse_pattern(text: str) -> Pattern:
    """The pattern of "unstructured" or "n:m" (n of every m are zero); UsageError for anything else."""
    if text == UNSTRUCTURED:
        return Pattern()
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or not 0 < int(found[1]) < int(found[2]):
        raise UsageError(
            f"unknown pattern {text!r}", f"give {UNSTRUCTURED}, 2:4, 4:8 or another n:m with n < m"
        )
    return Pattern(int(found[1]), int(found[2]))


@dataclass(frozen=True)
class MaskPruner(Pruner):
    """Sets single weights to zero.

    Attributes:
        needs: what it knows of the inputs X of a matrix over the calibration set: NORMS, ||X_j||_2 of each,
            float32 [inputs]; GRAM, the sum of x x^T, float32 [inputs, inputs]; "" nothing, and nothing runs.
        mask: (weight [outputs, inputs], what it needs, pattern, sparsity) -> True where a weight is removed.
        solve: in its place: (the same) -> (the weight with zeros, the others updated; the damping).
    """

    needs: str = ""
    mask: Callable[[Tensor, Any, Pattern, float], Tensor] | None = None
    solve: Callable[[Tensor, Any, Pattern, float], tuple[Tensor, float]] | None = None

    patterns = (UNSTRUCTURED, "2:4", "4:8")
    options = ("sparsity",)
    blockwise = True
    masks = True

    def takes(self, pattern: str) -> bool:
        """Any n:m too."""
        return pattern in self.patterns or ":" in pattern

    def default_sparsity(self, pattern: str) -> float | None:
        """What an n:m pattern makes zero."""
        parsed = parse_pattern(pattern)
        return parsed.n / parsed.m if parsed.m else None

    def prune(self, linear: nn.Linear, known: Tensor | None, pattern: Pattern, sparsity: float) -> float:
        """Set weights of a matrix to zero, in place; the damping that was needed, 0 without a solver."""
        weight, damping = linear.weight.data, 0.0
        if self.mask:
            weight.masked_fill_(self.mask(weight, known, pattern, sparsity), 0)
        if self.solve:
            solved, damping = self.solve(weight, known, pattern, sparsity)
            weight.copy_(solved)
        return damping

    def apply(self, context: PruneContext) -> Pruned:
        """Mask the blocks, and measure the importance matrix where that did not."""
        from minigpt_edge.prune.calibrate import measure_importance

        model, arch = context.model, context.arch
        result = mask_blocks(context, self)
        importance = result.importance or measure_importance(model, arch, context.windows)
        metrics = {"zeros": result.sparsity, "seconds_of": result.seconds, "damping": result.damping}
        return Pruned(context.whole_blocks(), importance, metrics=metrics)


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
        import torch

        self.whole = whole
        self.sums = torch.zeros(units, units) if whole else torch.zeros(units)

    def add(self, x: Tensor) -> None:
        """Add x [..., units], bfloat16 or float32."""
        from minigpt_edge.prune.moments import add_gram

        flat = x.flatten(0, -2)
        if self.whole:
            add_gram(self.sums, flat)
        else:
            self.sums += flat.float().square().sum(0)

    def squares(self) -> Tensor:
        """||X_j||^2 [units]."""
        return self.sums.diagonal() if self.whole else self.sums

    def known(self) -> Tensor:
        """What the method needs: the sum of x x^T [units, units], or ||X_j|| [units]."""
        from minigpt_edge.prune.moments import mirror

        if not self.whole:
            return self.sums.sqrt()
        mirror(self.sums)
        return self.sums


class _Stream:
    """The hidden states [n, s, hidden], float32, that the blocks pruned so far make of the windows."""

    def __init__(self, arch: Arch, model: nn.Module, windows: Tensor) -> None:
        from minigpt_edge.models.precision import compute_dtype

        self.arch, self.dtype = arch, compute_dtype()
        self.hidden = arch.embed(model, windows).clone()
        self.position = tuple(part.to(self.dtype) for part in arch.positions(model, self.hidden))
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


def _check(matrices: dict[str, nn.Linear], pattern: Pattern, sparsity: float) -> None:
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
    for name, linear in matrices.items():
        if linear.in_features % pattern.m:
            raise UsageError(
                f"{name} has {linear.in_features} inputs, no multiple of {pattern.m}",
                f"choose another pattern, or {UNSTRUCTURED}",
            )


def mask_blocks(context: PruneContext, pruner: MaskPruner) -> MaskResult:
    """Set weights of a model's blocks to zero in place, first block to last; embeddings and head are
    kept.

    Raises:
        UsageError: a sparsity or matrices that do not suit the pattern.
    """
    import torch

    from minigpt_edge.models.resident import resident, write_back
    from minigpt_edge.prune.streams import HEADS

    arch, model, on_block = context.arch, context.model, context.progress("blocks")
    pattern, result = parse_pattern(context.settings.pattern), MaskResult()
    blocks = arch.blocks(model)
    matrices = [_matrices(arch, block, index) for index, block in enumerate(blocks)]
    linears = {name: linear for block in matrices for shared in block for name, linear in shared.items()}
    _check(linears, pattern, context.settings.sparsity)
    with torch.inference_mode():
        stream = _Stream(arch, model, context.windows) if pruner.needs else None
        for index, block in enumerate(blocks):
            with resident(block):
                reads = stream.gather(block, pruner.needs == GRAM, result) if stream else [None] * 4
                for shared, read in zip(matrices[index], reads, strict=True):
                    if read and stream:
                        mean = read.squares() / stream.hidden[..., 0].numel()
                        result.importance |= {name: mean.clone() for name in shared}
                    with result.timed("solve"):
                        known = read.known() if read else None
                        for name, linear in shared.items():
                            damping = pruner.prune(linear, known, pattern, context.settings.sparsity)
                            result.damping |= {name: damping} if damping > DAMPING else {}
                    result.zeros |= {name: int((linear.weight == 0).sum()) for name, linear in shared.items()}
                if stream:
                    with result.timed("forward"):
                        stream.advance(block)
                write_back(block)
            on_block(index + 1, len(blocks))
        if stream:
            final = arch.final_norm(model, stream.hidden).square().mean((0, 1))
            result.importance |= dict.fromkeys(HEADS, final)
    sizes = {name: linear.weight.numel() for name, linear in linears.items()}
    result.sparsity = sum(result.zeros.values()) / sum(sizes.values())
    result.zeros = {name: count / sizes[name] for name, count in result.zeros.items()}
    return result
