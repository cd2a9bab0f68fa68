"""Whole blocks by measured effect: the loss decides which are removed, a neighbour takes over what it can.

As in Shortened LLaMA (arXiv 2402.02834) a block is judged by the loss without it, but anew after each
removal. As in ReplaceMe (arXiv 2505.02819) a linear map stands in for what was removed; here it is the whole
FFN output matrix of the block before the gap, refitted so that the dense model's hidden state after the gap
comes out. A gap at the beginning has no block before it: the first kept block is refitted to the dense state
after itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minigpt_edge.models.sizes import block_sizes
from minigpt_edge.prune.context import (
    BLOCKS,
    MICRO_BATCH_TOKENS,
    VALIDATION_SHARE,
    Done,
    PruneContext,
    Pruned,
    unwatched,
)
from minigpt_edge.prune.method import Method, Pruner
from minigpt_edge_runtime.errors import EdgeError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from minigpt_edge.models.archs.base import Arch

HELD_OUT_TOKENS = 4096  # at most: every trial of a removal runs over them
CANDIDATES = 8  # blocks tried anew for a removal: those that raised the loss least when last tried


@dataclass(frozen=True)
class DropResult:
    """What was removed, by the block's index in the dense model, and what it cost.

    Attributes:
        removed: in the order of removal.
        losses: nats per held-out token, dense and after each removal, before anything is refitted.
        refitted: blocks whose FFN output matrix took over what a gap beside them did.
        tried: blocks for which that was tried; where the held-out loss did not fall, the old matrix is kept.
        loss: nats per held-out token at the end.
    """

    removed: list[int]
    losses: list[float]
    refitted: list[int]
    tried: list[int]
    loss: float


def blocks_for(arch: Arch, config: dict[str, Any], parameters: int) -> int:
    """How many blocks of a config's mean size come closest to that many parameters; one is always kept."""
    neuron, group, norms = arch.block_parameters(config)
    sizes = block_sizes(config)
    block = norms + sum(neuron * width + group * groups for width, groups in sizes) / len(sizes)
    return min(max(0, round(parameters / block)), config["num_hidden_layers"] - 1)


class DepthPruner(Pruner):
    """Removes whole blocks."""

    patterns = (BLOCKS,)
    options = ("sparsity", "keep_tokens")
    removes = True
    widths = "global"

    def apply(self, context: PruneContext) -> Pruned:
        """Remove the number of blocks that comes closest to the parameters to remove."""
        from minigpt_edge.prune.calibrate import measure_importance

        model, arch, windows = context.model, context.arch, context.windows
        whole, count = context.whole_blocks(), blocks_for(arch, context.config, context.remove)
        result = drop_blocks(model, arch, windows, count, on_step=context.progress("blocks"))
        return Pruned(
            [block for index, block in enumerate(whole) if index not in result.removed],
            measure_importance(model, arch, windows),
            metrics={"removed_blocks": result.removed, "losses": result.losses},
        )


METHOD = Method(
    "blocks",
    "whole blocks by measured loss, the neighbour refitted where that helps",
    "Shortened LLaMA, arXiv 2402.02834; ReplaceMe, arXiv 2505.02819",
    (DepthPruner(),),
)


class _Forward:
    """The blocks in `compute_dtype()` beside the float32 model; streams [windows, s, hidden] are float32."""

    def __init__(self, model: Any, arch: Arch, windows: Tensor) -> None:
        import torch

        from minigpt_edge.models.precision import compute_dtype

        self.model, self.arch, self.windows, self.dtype = model, arch, windows, compute_dtype()
        self.blocks: list[Any] = arch.blocks(model)
        self.fast: list[Any] = self.blocks
        if self.dtype is not torch.float32:
            self.fast = [copy.deepcopy(block).to(self.dtype) for block in self.blocks]
        self.position = tuple(part.to(self.dtype) for part in arch.positions(model, self.embed(slice(1))))
        self.step = max(1, MICRO_BATCH_TOKENS // windows.shape[1])

    def embed(self, rows: slice) -> Tensor:
        """The stream that enters the first block."""
        return self.arch.embed(self.model, self.windows[rows]).float()

    def attend(self, index: int, x: Tensor) -> Tensor:
        """x after a block's attention."""
        block, fast = self.blocks[index], self.fast[index]
        mixed = self.arch.mix(fast, self.arch.attention_input(block, x).to(self.dtype), self.position)
        return x + self.arch.attention_out(fast)(mixed)

    def neurons(self, index: int, x: Tensor, after: Tensor) -> Tensor:
        """A block's neurons from the stream before its attention and after it."""
        block, fast = self.blocks[index], self.fast[index]
        read = x if self.arch.parallel else after
        return self.arch.neurons(fast, self.arch.ffn_input(block, read).to(self.dtype))

    def run(self, index: int, x: Tensor) -> Tensor:
        """x after a block."""
        after = self.attend(index, x)
        return after + self.arch.ffn_out(self.fast[index])(self.neurons(index, x, after))

    def advance(self, index: int, x: Tensor) -> Tensor:
        """Put a stream [windows, s, hidden] through a block, in place."""
        for rows in self.batches(0, len(x)):
            x[rows] = self.run(index, x[rows])
        return x

    def batches(self, start: int, stop: int) -> Iterator[slice]:
        for first in range(start, stop, self.step):
            yield slice(first, min(first + self.step, stop))

    def loss(self, x: Tensor, indices: list[int], windows: Tensor) -> float:
        """Nats per next token of `windows` when their stream x goes through the blocks of these indices."""
        from minigpt_edge.models.chunked_loss import chunked_nll
        from minigpt_edge.models.forward import head_of

        total, count = 0.0, 0
        for rows in self.batches(0, len(x)):
            stream = x[rows]
            for index in indices:
                stream = self.run(index, stream)
            final = self.arch.final_norm(self.model, stream)[:, :-1].to(self.dtype).flatten(0, 1)
            nll = chunked_nll(*head_of(self.model, final), windows[rows, 1:].flatten())
            total, count = total + float(nll.cpu().double().sum()), count + len(nll)
        return total / count


def drop_blocks(
    model: Any, arch: Arch, windows: Tensor, count: int, *, on_step: Done = unwatched
) -> DropResult:
    """Remove `count` blocks of a model in place, and refit the blocks beside the gaps where that helps.

    First the blocks are chosen on held-out windows, one after another, each time the one whose absence
    raises the loss least: of all blocks at first, later of the CANDIDATES that raised it least when last
    tried. Then one pass over the blocks, with the dense stream and that of the smaller model, refits the
    matrix before each gap on the other windows; its ridge and whether it is used at all are decided by the
    held-out windows. Memory: the blocks in `compute_dtype()`; (blocks + 1) float32 streams of the held-out
    windows, then two of all windows.

    Args:
        model: float32; transformers' attention modules are renumbered, its config says the new number.
        windows: token ids, int64 [windows >= 2, s], each starting with the document-start token.
        on_step: called with (steps done, steps): a step is a trial or a block of the second pass.

    Raises:
        EdgeError: no block would be left.
    """
    import torch

    total = len(arch.blocks(model))
    if not 0 <= count < total:
        raise EdgeError(
            f"{count} of {total} blocks can't be removed: at least one has to be kept",
            "ask for a lower --sparsity",
        )
    held_out = max(1, min(int(len(windows) * VALIDATION_SHARE), HELD_OUT_TOKENS // windows.shape[1]))
    trials = sum(min(total - removed, CANDIDATES if removed else total) for removed in range(count))
    steps = trials + (total if count else 0)
    with torch.no_grad():  # not inference mode, whose tensors could not be trained later
        forward = _Forward(model, arch, windows)
        removed, losses = _choose(forward, held_out, count, lambda done: on_step(done, steps))
        result = DropResult(removed, losses, [], [], losses[-1])
        if count:
            result = _replace(forward, held_out, result, lambda done: on_step(trials + done, steps))
    arch.keep_blocks(model, [index for index in range(total) if index not in removed])
    return result


def _choose(
    forward: _Forward, held_out: int, count: int, on_trial: Callable[[int], None]
) -> tuple[list[int], list[float]]:
    """The blocks to remove, in order, and the loss before and after each."""
    ids = forward.windows[:held_out]
    left = list(range(len(forward.blocks)))
    states = [forward.embed(slice(held_out))]  # what enters each block that is left
    removed: list[int] = []

    def advance() -> None:
        for index in left[len(states) - 1 : -1]:
            states.append(forward.advance(index, states[-1].clone()))

    advance()
    losses = [forward.loss(states[-1], left[-1:], ids)]
    rises = dict.fromkeys(left, 0.0)  # of the loss, when a block was last tried
    done = 0
    for _ in range(count):
        candidates = sorted(left, key=rises.__getitem__)[: CANDIDATES if removed else len(left)]
        for index in candidates:
            at = left.index(index)
            rises[index] = forward.loss(states[at], left[at + 1 :], ids) - losses[-1]
            done += 1
            on_trial(done)
        best = min(candidates, key=rises.__getitem__)
        losses.append(losses[-1] + rises[best])
        removed.append(best)
        del states[left.index(best) + 1 :]
        left.remove(best)
        advance()
    return removed, losses


def _replace(
    forward: _Forward, held_out: int, result: DropResult, on_block: Callable[[int], None]
) -> DropResult:
    """Walk both streams over the blocks and refit the model's matrices beside the gaps."""
    total = len(forward.blocks)
    left = [index for index in range(total) if index not in result.removed]
    dense = forward.embed(slice(None))
    small: Tensor | None = None  # the same as the dense stream until the first gap
    reached = 0  # blocks that the dense stream has passed
    refitted, tried, loss = [], [], result.losses[-1]
    for index, following in zip(left, [*left[1:], total], strict=True):
        beside_gap = following > index + 1 or (index == left[0] and index > 0)
        if beside_gap and small is None:
            small = dense.clone()
        for passed in range(reached, following):
            forward.advance(passed, dense)
            on_block(passed + 1)
        reached = following
        if small is None:
            continue
        if not beside_gap:
            forward.advance(index, small)
            continue
        block = _Entered(forward, index, small.clone())
        for rows in forward.batches(0, len(small)):
            small[rows] = forward.attend(index, small[rows])
        tried.append(index)
        weight = _fit(block, small, dense, held_out)
        now = _loss_with(block, small[:held_out], weight, left)
        if now < loss:
            loss = now
            refitted.append(index)
            forward.arch.ffn_out(forward.blocks[index]).weight.data = weight.clone()
            forward.arch.ffn_out(forward.fast[index]).weight.data = weight.to(forward.dtype)
        out = forward.arch.ffn_out(forward.fast[index])
        for rows in forward.batches(0, len(small)):
            small[rows] += out(block.neurons(small, rows))
    return DropResult(result.removed, result.losses, refitted, tried, loss)


@dataclass(frozen=True)
class _Entered:
    """A block whose attention is done, and the stream that entered it."""

    forward: _Forward
    index: int
    entering: Tensor

    def neurons(self, after: Tensor, rows: slice) -> Tensor:
        """Its neurons, from the stream after its attention."""
        return self.forward.neurons(self.index, self.entering[rows], after[rows])

    def out(self) -> nn.Linear:
        """The matrix that reads them."""
        return self.forward.arch.ffn_out(self.forward.blocks[self.index])


def _fit(block: _Entered, after: Tensor, wanted: Tensor, held_out: int) -> Tensor:
    """A block's FFN output matrix [hidden, width] that brings `after` closest to `wanted`."""
    from minigpt_edge.prune.moments import Moments
    from minigpt_edge.prune.refit import best_ridge, refit

    weight, bias = block.out().weight.t(), block.out().bias
    moments = [Moments.zeros(*weight.shape) for _ in range(2)]
    for part, (start, stop) in enumerate(((held_out, len(after)), (0, held_out))):
        for rows in block.forward.batches(start, stop):
            missing = wanted[rows] - after[rows]
            missing = missing if bias is None else missing - bias
            moments[part].add(block.neurons(after, rows).flatten(0, 1), missing.flatten(0, 1))
    gram, cross, _ = moments[0].mean()
    held_gram, held_cross, _ = moments[1].mean()
    ridge = best_ridge(gram, cross, weight, held_gram, held_cross)
    return refit(gram, cross, weight, ridge).t().contiguous()


def _loss_with(block: _Entered, after: Tensor, weight: Tensor, left: list[int]) -> float:
    """Held-out loss of the smaller model if a block's FFN output matrix were `weight`."""
    from torch.nn.functional import linear

    forward, bias = block.forward, block.out().bias
    fast, fast_bias = weight.to(forward.dtype), None if bias is None else bias.to(forward.dtype)
    stream = after.new_empty(after.shape)
    for rows in forward.batches(0, len(after)):
        made = linear(block.neurons(after, rows), fast, fast_bias)
        stream[rows] = after[rows] + made
    later = [other for other in left if other > block.index]
    return forward.loss(stream, later, forward.windows[: len(after)])
