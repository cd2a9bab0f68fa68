"""Structured pruning: KV groups and FFN neurons are removed, and what is kept is refitted, block by block.

Two streams of hidden states walk through the blocks: the dense model's, and that of the model as it is
pruned so far. Each block is measured on the pruned stream, and what is kept is refitted to what the whole
block gives there and part of the way to the dense stream, so that it also corrects some of what earlier
blocks lost. Memory holds one block and its activations.
Methods without a refit need the pruned stream alone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minigpt_edge.prune.context import STRUCTURED, PruneContext, Pruned
from minigpt_edge.prune.method import Pruner
from minigpt_edge.prune.plan import BlockPlan
from minigpt_edge.prune.scores import UnitScores, UnitStatistics

if TYPE_CHECKING:
    from torch import Tensor

    from minigpt_edge.prune.decide import Decision
    from minigpt_edge.prune.moments import Moments
    from minigpt_edge.prune.streams import Half, Stream, Units


@dataclass(frozen=True)
class UnitPruner(UnitScores, Pruner):
    """Removes KV groups and FFN neurons by their scores."""

    patterns = (STRUCTURED,)
    removes = sized = blockwise = True

    @property
    def options(self) -> tuple[str, ...]:
        """Fields of the recipe that it takes."""
        thresholds = ("threshold", "embedding_threshold") if self.threshold_scores else ()
        limits = ("sparsity", "max_size", "max_params", "min_speedup")
        return (*limits, *thresholds, "plan", "widths", "refit", "keep_tokens")

    def compensated(self, context: PruneContext) -> tuple[PruneContext, UnitPruner]:
        """The method with what the settings say of the kept weights, and the model that it works on.

        Biases that it needs count: as many more parameters have to be removed.
        """
        from minigpt_edge.models.checkpoint import count_parameters

        method = dataclasses.replace(self, compensation=context.settings.compensation or self.compensation)
        if method.compensation != "bias":
            return context, method
        before = count_parameters(context.model)
        config = {**context.config, **context.arch.give_output_biases(context.model)}
        remove = context.remove + count_parameters(context.model) - before
        return dataclasses.replace(context, config=config, remove=remove), method

    def apply(self, context: PruneContext, decision: Decision | None = None) -> Pruned:
        """Prune a model's blocks in place, first to last, and refit what is kept if the method does.

        Args:
            decision: how much of each block is kept, or exactly what; None to decide that here.
        """
        import torch

        from minigpt_edge.models.resident import resident, write_back
        from minigpt_edge.prune.decide import decide
        from minigpt_edge.prune.streams import Stream

        compensated, method = self.compensated(context)
        made = decision or decide(compensated, method)
        blocks, pruned = context.arch.blocks(context.model), Pruned()
        if made.estimated:
            pruned.metrics["estimated"] = made.estimated
        on_block = context.progress("blocks")
        with torch.inference_mode():
            two = method.compensation == "least_squares"
            stream = Stream(context.arch, context.model, context.windows, two=two)
            for index, block in enumerate(blocks):
                pruned.errors.append({})
                metrics = made.metrics[index]() if made.metrics else (None, None)
                kept = []
                with resident(block):
                    for part, half in enumerate(stream.halves(index, block)):
                        seed = 1000 * context.settings.seed + 2 * index + part
                        choice = _Choice(method, made.keep(index)[part], metrics[part], seed)
                        kept.append(_prune_half(stream, half, choice, pruned))
                    write_back(block)
                pruned.blocks.append(BlockPlan(*(tuple(units.tolist()) for units in kept)))
                on_block(index + 1, len(blocks))
            pruned.importance |= stream.head_importance(context.model)
            pruned.dense = stream.dense_states(context.model)
        return pruned


@dataclass(frozen=True)
class _Choice:
    """What decides which units of one half are kept.

    Attributes:
        keep: how many, or exactly which.
        metric: Fisher information of the half's outputs.
    """

    method: UnitScores
    keep: int | tuple[int, ...]
    metric: Tensor | None
    seed: int

    def statistics(self, half: Half, values: Units, moments: list[Moments]) -> UnitStatistics:
        """What is known of the half's units."""
        from minigpt_edge.prune.moments import Means

        gram = cross = None
        if moments:
            gram, cross, _ = moments[0].merge(moments[1]).mean()
        if gram is not None and not {"mean", "mean_abs"} & set(self.method.reads):
            energy, mean, mean_abs = gram.diagonal(), None, None
        else:  # a pass over all activations costs as much as a product
            means = Means.of(values)
            energy, mean, mean_abs = means.energy, means.mean, means.mean_abs
        weight = half.reader.weight.t()
        return UnitStatistics(weight, energy, mean, mean_abs, gram, cross, self.metric, self.seed, half.group)


def _prune_half(stream: Stream, half: Half, choice: _Choice, pruned: Pruned) -> Tensor:
    """Choose, cut and refit one half of a block; ascending indices of the kept KV groups or neurons."""
    import torch

    from minigpt_edge.stages import parallel

    values, moments, read = stream.gather(half)
    statistics = choice.statistics(half, values, moments)
    keep, linear = choice.keep, half.reader
    kept = choice.method.select(statistics, keep) if isinstance(keep, int) else torch.tensor(keep)
    kept = parallel.broadcast(kept)  # machines that are not alike may round, and choose, otherwise
    units = (kept[:, None] * half.group + torch.arange(half.group)).flatten()
    weight, bias = statistics.weight[units], linear.bias
    if moments and len(units) < len(statistics.weight):  # nothing lost, nothing to refit
        fitted = _fit(moments, statistics.weight, units)
        weight, pruned.errors[-1][half.name] = parallel.broadcast(fitted)
    elif choice.method.compensation == "bias":
        removed = torch.ones(len(statistics.weight), dtype=torch.bool)
        removed[units] = False
        bias.data += statistics.mean_output(removed.nonzero()[:, 0])
    if half.name == "attention":
        stream.arch.cut(half.block, groups=kept)
    else:
        stream.arch.cut(half.block, kept_neurons=kept)
    linear.weight.data = weight.t().contiguous()
    stream.advance(values, units, weight, bias)
    pruned.importance |= half.importance(read / stream.tokens, statistics.energy[units].clone())
    return kept


def _fit(moments: list[Moments], weight: Tensor, units: Tensor) -> tuple[Tensor, float]:
    """The refitted weight [units, outputs], its ridge chosen on the held-out windows, and its relative
    output error on them."""
    from minigpt_edge.prune.refit import best_ridge, output_error, refit

    weight = weight[units]
    gram, cross, _ = moments[0].mean(units)
    held_gram, held_cross, energy = moments[1].mean(units)
    ridge = best_ridge(gram, cross, weight, held_gram, held_cross)
    error = output_error(held_gram, held_cross, energy, refit(gram, cross, weight, ridge))
    gram, cross, _ = moments[0].merge(moments[1]).mean(units)
    return refit(gram, cross, weight, ridge), error / energy
