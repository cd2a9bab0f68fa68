"""Calibration: one pass over the model, block by block, that measures, chooses, refits and goes on.

Two streams of hidden states walk through the blocks: the dense model's, and that of the model as it is
pruned so far. Each block is measured on the pruned stream, and what is kept is refitted to the dense
stream, so that it also corrects what earlier blocks lost. Memory holds one block and its activations.
Methods without a refit need the pruned stream alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch  # noqa: TID253 - imported by the pipeline's prune stage only
from torch import Tensor, nn  # noqa: TID253

from minigpt_edge.models.archs.base import Arch
from minigpt_edge.models.resident import resident, write_back
from minigpt_edge.prune.methods.flap import bias as mean_bias
from minigpt_edge.prune.methods.least_squares import best_ridge, output_error, refit
from minigpt_edge.prune.methods.registry import Method, UnitStatistics
from minigpt_edge.prune.moments import Means, Moments
from minigpt_edge.prune.plan import BlockPlan
from minigpt_edge.prune.streams import Half, Stream, Units
from minigpt_edge.stages import parallel
from minigpt_edge_runtime.formats.gguf_names import EMBEDDING, HEAD, gguf_name

HEADS = (EMBEDDING, HEAD)  # the same matrix where they are tied


@dataclass(frozen=True)
class Wanted:
    """How much of each block stays, or exactly what: sizes from an allocation, or a plan's indices."""

    widths: list[int]
    kv_groups: list[int]
    exact: tuple[BlockPlan, ...] | None = None


@dataclass
class Result:
    """What the pass decided and measured."""

    blocks: list[BlockPlan] = field(default_factory=list)
    importance: dict[str, Tensor] = field(default_factory=dict)  # GGUF name -> mean squared input
    errors: list[dict[str, float]] = field(default_factory=list)  # per block, on held-out windows


def shrink_blocks(
    model: nn.Module,
    arch: Arch,
    windows: Tensor,
    wanted: Wanted,
    method: Method,
    metrics: Sequence[Callable[[], list[Tensor]]] | None = None,
    *,
    seed: int = 0,
    on_block: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """Prune a model's blocks in place, first to last, and refit what stays if the method does.

    Args:
        model: float32, dense; its tensors are sliced.
        windows: token ids, int64 [windows >= 2, s], each starting with the document-start token.
        wanted: how much to keep per block, or exactly what.
        method: how units are scored, and what becomes of the weights that read them.
        metrics: per block, what gives the Fisher information of the outputs of attention and FFN.
        seed: for a method that draws.
        on_block: called with (blocks done, blocks).
    """
    result = Result()
    if method.compensation == "bias":
        arch.give_output_biases(model)
    with torch.inference_mode():
        stream = Stream(arch, model, windows, two=method.compensation == "least_squares")
        blocks = arch.blocks(model)
        for index, block in enumerate(blocks):
            result.errors.append({})
            exact = wanted.exact[index] if wanted.exact else None
            keep: tuple[Any, Any] = (wanted.kv_groups[index], wanted.widths[index])
            if exact:
                keep = (exact.kv_groups, exact.neurons)
            kept = []
            metric = metrics[index]() if metrics else [None, None]
            with resident(block):
                for part, half in enumerate(stream.halves(block)):
                    choice = Choice(method, metric[part], 2 * index + part, seed)
                    kept.append(_shrink_half(stream, half, block, choice, keep[part], result))
                write_back(block)
            result.blocks.append(BlockPlan(*(tuple(units.tolist()) for units in kept)))
            on_block(index + 1, len(blocks))
        result.importance |= dict.fromkeys(HEADS, _final_squares(stream, model) / windows.numel())
    return result


def _final_squares(stream: Stream, model: nn.Module) -> Tensor:
    """Summed squares of what the head reads, float32 [hidden]."""
    finals = (stream.arch.final_norm(model, stream.pruned[rows]) for rows, _ in stream.batches())
    squares = torch.stack([final.square().sum((0, 1)) for final in finals]).sum(0)
    parallel.all_reduce(squares)
    return squares


def _walk(stream: Stream, model: nn.Module) -> Iterator[tuple[int, Any, Half, Units, Tensor]]:
    """Run a model as it is: (index, block, half, units, summed squared inputs [hidden])."""
    arch = stream.arch
    for index, block in enumerate(arch.blocks(model)):
        with resident(block):
            fast = copy.deepcopy(block).to(stream.dtype)
            for half in stream.halves(block):
                read = torch.zeros(stream.pruned.shape[-1])
                values, _ = stream.gather(half, block, fast, read)
                linear = half.out(block)
                yield index, block, half, values, read
                stream.advance(values, torch.arange(linear.in_features), linear.weight.t(), linear.bias)


def score_blocks(
    model: nn.Module,
    arch: Arch,
    windows: Tensor,
    scores: Callable[[UnitStatistics], Tensor],
    on_block: Callable[[int, int], None] = lambda done, total: None,
) -> list[tuple[Tensor, Tensor]]:
    """Scores of every block's (KV groups, neurons) on the dense model, for one cut over all blocks."""
    total, found = len(arch.blocks(model)), []
    with torch.inference_mode():
        for index, block, half, values, _ in _walk(Stream(arch, model, windows, two=False), model):
            means, weight = Means.of(values), half.out(block).weight.t()
            known = UnitStatistics(weight, means.energy, means.mean, means.mean_abs, group=half.group)
            found.append(scores(known))
            on_block(index + 1, total)
    return list(zip(found[::2], found[1::2], strict=True))


def measure_importance(model: nn.Module, arch: Arch, windows: Tensor) -> dict[str, Tensor]:
    """The importance matrix of a model as it is: GGUF name -> mean squared input, float32."""
    importance: dict[str, Tensor] = {}
    tokens = windows.numel()
    with torch.inference_mode():
        stream = Stream(arch, model, windows, two=False)
        for index, _, half, values, read in _walk(stream, model):
            readers, reader = half.gguf
            importance |= {gguf_name(f"blocks.{index}.{name}.weight"): read / tokens for name in readers}
            importance[gguf_name(f"blocks.{index}.{reader}.weight")] = Means.of(values).energy
        importance |= dict.fromkeys(HEADS, _final_squares(stream, model) / tokens)
    return importance


@dataclass(frozen=True)
class Choice:
    """What decides which units of one half stay: the method, the outputs' Fisher information, the seed."""

    method: Method
    metric: Tensor | None
    index: int
    seed: int

    def statistics(self, values: Units, moments: list[Moments], weight: Tensor, group: int) -> Any:
        """What is known of the units that `weight` [units, outputs] reads."""
        gram = cross = None
        if moments:
            gram, cross, _ = moments[0].merge(moments[1]).mean()
        if gram is not None and not {"mean", "mean_abs"} & set(self.method.reads):
            energy, mean, mean_abs = gram.diagonal(), None, None
        else:  # a pass over all activations costs as much as a product
            means = Means.of(values)
            energy, mean, mean_abs = means.energy, means.mean, means.mean_abs
        seed = 1000 * self.seed + self.index
        return UnitStatistics(weight, energy, mean, mean_abs, gram, cross, self.metric, seed, group)


def _shrink_half(
    stream: Stream,
    half: Half,
    block: Any,
    choice: Choice,
    keep: int | tuple[int, ...],
    result: Result,
) -> Tensor:
    """Choose, cut and refit one half of a block; ascending indices of the groups or neurons that stay."""
    index, linear = choice.index // 2, half.out(block)
    fast = copy.deepcopy(block).to(stream.dtype)
    read = torch.zeros(stream.pruned.shape[-1])
    values, moments = stream.gather(half, block, fast, read)
    statistics = choice.statistics(values, moments, linear.weight.t(), half.group)
    kept = choice.method.select(statistics, keep) if isinstance(keep, int) else torch.tensor(keep)
    kept = parallel.broadcast(kept)  # machines that are not alike may round, and choose, otherwise
    units = (kept[:, None] * half.group + torch.arange(half.group)).flatten()
    weight, bias = statistics.weight[units], linear.bias
    if moments and len(units) < len(statistics.weight):  # nothing lost, nothing to refit
        weight, result.errors[-1][half.name] = parallel.broadcast(_fit(moments, statistics.weight, units))
    elif choice.method.compensation == "bias":
        gone = torch.ones(len(statistics.weight), dtype=torch.bool)
        gone[units] = False
        bias.data += mean_bias(statistics, gone.nonzero()[:, 0])
    if half.name == "attention":
        stream.arch.cut(block, groups=kept)
    else:
        stream.arch.cut(block, kept_neurons=kept)
    linear.weight.data = weight.t().contiguous()
    stream.advance(values, units, weight, bias)
    readers, reader = half.gguf
    result.importance |= {
        gguf_name(f"blocks.{index}.{name}.weight"): read / stream.tokens for name in readers
    }
    result.importance[gguf_name(f"blocks.{index}.{reader}.weight")] = statistics.energy[units].clone()
    return kept


def _choose_ridge(fit: Moments, held_out: Moments, weight: Tensor, units: Tensor) -> tuple[float, float]:
    """The best ridge and its relative output error on the held-out windows."""
    weight = weight[units]
    gram, cross, _ = fit.mean(units)
    held_gram, held_cross, energy = held_out.mean(units)
    ridge = best_ridge(gram, cross, weight, held_gram, held_cross)
    error = output_error(held_gram, held_cross, energy, refit(gram, cross, weight, ridge))
    return ridge, error / energy


def _fit(moments: list[Moments], weight: Tensor, units: Tensor) -> tuple[Tensor, float]:
    """The refitted weight [units, outputs] and its relative error on the held-out windows."""
    ridge, error = _choose_ridge(moments[0], moments[1], weight, units)
    gram, cross, _ = moments[0].merge(moments[1]).mean(units)
    return refit(gram, cross, weight[units], ridge), error
