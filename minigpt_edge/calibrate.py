"""Calibration: one pass over the model, block by block, that measures, chooses, refits and goes on.

Two streams of hidden states walk through the blocks: the dense model's, and that of the model as it is
pruned so far. Each block is measured on the pruned stream, and what is kept is refitted to the dense
stream, so that it also corrects what earlier blocks lost. Memory holds one block and its activations.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch  # noqa: TID253 - imported by the pipeline's prune stage only
from torch import Tensor, nn  # noqa: TID253

from minigpt_edge.plan import BlockPlan
from minigpt_edge.prune import Method, UnitStatistics
from minigpt_edge.prune.least_squares import RIDGES, output_error, refit

MICRO_BATCH_TOKENS = 4096
GRAM_COLUMNS = 256
VALIDATION_SHARE = 0.15  # of the calibration windows: chooses the ridge, then joins the fit


@contextmanager
def bf16_products() -> Iterator[None]:
    """Float32 matrix products with bfloat16 factors and float32 sums: exact for bfloat16 input.

    A plain bfloat16 product would round the sums too, and the Gram matrix would not be positive definite.
    """
    products: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = products.fp32_precision
    products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before


@dataclass
class Moments:
    """Sums over tokens of what a matrix reads, x [tokens, units], and should give, y [tokens, outputs].

    Below the diagonal `gram` is not filled; `mean` completes it.
    """

    gram: Tensor
    cross: Tensor
    energy: float = 0.0
    tokens: int = 0

    @classmethod
    def zeros(cls, units: int, outputs: int) -> Moments:
        return cls(torch.zeros(units, units), torch.zeros(units, outputs))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add bfloat16 x [tokens, units] and float32 y [tokens, outputs]."""
        with bf16_products():
            wide = x.float()
            for start in range(0, wide.shape[1], GRAM_COLUMNS):  # it is symmetric: only the upper blocks
                rows = slice(start, start + GRAM_COLUMNS)
                self.gram[rows, start:].addmm_(wide[:, rows].t(), wide[:, start:])
            self.cross.addmm_(wide.t(), y)
        self.energy += float(y.square().sum())
        self.tokens += len(x)

    def mean(self, units: Tensor | None = None) -> tuple[Tensor, Tensor, float]:
        """(gram, cross, energy) per token, of some units."""
        gram, cross = self.gram.triu() + self.gram.triu(1).t(), self.cross
        if units is not None:
            gram, cross = gram[units][:, units], cross[units]
        return gram / self.tokens, cross / self.tokens, self.energy / self.tokens

    def merge(self, other: Moments) -> Moments:
        """The sums over both sets of tokens."""
        return Moments(
            self.gram + other.gram,
            self.cross + other.cross,
            self.energy + other.energy,
            self.tokens + other.tokens,
        )


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


def _choose_ridge(fit: Moments, held_out: Moments, weight: Tensor, units: Tensor) -> tuple[float, float]:
    """The ridge with the lowest output error on the held-out windows, and that error (relative)."""
    gram, cross, _ = fit.mean(units)
    held_gram, held_cross, energy = held_out.mean(units)
    errors = {
        r: output_error(held_gram, held_cross, energy, refit(gram, cross, weight[units], r)) for r in RIDGES
    }
    best = min(errors, key=errors.__getitem__)
    return best, errors[best] / energy


def _select(method: Method, statistics: UnitStatistics, keep: int) -> Tensor:
    """Ascending indices of the `keep` units of highest score, scored anew in each of the method's rounds."""
    units = torch.arange(len(statistics.gram))
    total = len(units)
    for part in range(1, method.rounds + 1):
        left = total - (total - keep) * part // method.rounds
        now = UnitStatistics(
            statistics.gram[units][:, units],
            statistics.cross[units],
            statistics.weight[units],
            None if statistics.mean_abs is None else statistics.mean_abs[units],
            statistics.metric,
        )
        units = units[method.scores(now).topk(left).indices.sort().values]
    return units


class BlockPass:
    """One block on both streams. `hidden` [windows, s, hidden] float32 are advanced in place."""

    def __init__(self, arch: ModuleType, model: nn.Module, windows: Tensor) -> None:
        self.arch = arch
        self.dense = arch.embed(model, windows).detach()
        self.pruned = self.dense.clone()
        cos, sin = arch.positions(model, self.dense)
        self.position = (cos.bfloat16(), sin.bfloat16())
        self.held_out = max(1, int(len(windows) * VALIDATION_SHARE))
        self.step = max(1, MICRO_BATCH_TOKENS // windows.shape[1])

    def batches(self) -> Iterator[tuple[slice, int]]:
        """Micro-batches of windows and the set they belong to: 1 held out, 0 fitted."""
        for start, stop, part in ((0, self.held_out, 1), (self.held_out, len(self.dense), 0)):
            for first in range(start, stop, self.step):
                yield slice(first, min(first + self.step, stop)), part

    def attention(self, block: Any, fast: Any, read: Tensor) -> tuple[Tensor, Tensor, list[Moments]]:
        """Advance the dense stream through the attention; the pruned stream's mixed values and moments.

        Returns (mixed values bfloat16 [windows, s, units], dense hidden states after attention,
        [fitted, held-out] moments). `read` [hidden] collects squared inputs of q, k and v.
        """
        arch, out = self.arch, self.arch.attention_out(fast)
        units = out.in_features
        mixed = torch.empty(*self.dense.shape[:2], units, dtype=torch.bfloat16)
        after = torch.empty_like(self.dense)
        moments = [Moments.zeros(units, self.dense.shape[-1]) for _ in range(2)]
        for rows, part in self.batches():
            x = self.dense[rows]
            values = arch.mix(fast, arch.attention_input(block, x).bfloat16(), self.position)
            after[rows] = x + out(values)
            normalised = arch.attention_input(block, self.pruned[rows])
            read += normalised.square().sum((0, 1))
            mixed[rows] = arch.mix(fast, normalised.bfloat16(), self.position)
            moments[part].add(mixed[rows].flatten(0, 1), (after[rows] - self.pruned[rows]).flatten(0, 1))
        return mixed, after, moments

    def ffn(self, block: Any, fast: Any, after: Tensor, read: Tensor) -> tuple[Tensor, list[Moments]]:
        """Advance the dense stream through the FFN; the pruned stream's neurons and moments."""
        arch, out = self.arch, self.arch.ffn_out(fast)
        units = out.in_features
        active = torch.empty(*self.dense.shape[:2], units, dtype=torch.bfloat16)
        moments = [Moments.zeros(units, self.dense.shape[-1]) for _ in range(2)]
        for rows, part in self.batches():
            x = after[rows]
            self.dense[rows] = x + out(arch.neurons(fast, arch.ffn_input(block, x).bfloat16()))
            normalised = arch.ffn_input(block, self.pruned[rows])
            read += normalised.square().sum((0, 1))
            active[rows] = arch.neurons(fast, normalised.bfloat16())
            wanted = self.dense[rows] - self.pruned[rows]
            moments[part].add(active[rows].flatten(0, 1), wanted.flatten(0, 1))
        return active, moments

    def advance(self, values: Tensor, units: Tensor, weight: Tensor) -> None:
        """Add values[..., units] @ weight [kept, hidden] to the pruned stream."""
        # zero rows for what goes: multiplying all of it is faster than gathering what stays
        full = torch.zeros(values.shape[-1], weight.shape[1], dtype=torch.bfloat16)
        full[units] = weight.bfloat16()
        for rows, _ in self.batches():
            self.pruned[rows] += values[rows] @ full


def shrink_blocks(
    model: nn.Module,
    arch: ModuleType,
    windows: Tensor,
    wanted: Wanted,
    method: Method,
    metrics: list[tuple[Tensor, Tensor]] | None = None,
    on_block: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """Prune and refit a model's blocks in place, first to last.

    Args:
        model: float32, dense; its tensors are sliced.
        windows: token ids, int64 [windows >= 2, s], each starting with the document-start token.
        wanted: how much to keep per block, or exactly what.
        method: how units are scored.
        metrics: per block, Fisher information of the outputs of attention and FFN.
        on_block: called with (blocks done, blocks).
    """
    result = Result()
    with torch.inference_mode():
        stream = BlockPass(arch, model, windows)
        blocks = arch.blocks(model)
        for index, block in enumerate(blocks):
            metric = metrics[index] if metrics else (None, None)
            exact = wanted.exact[index] if wanted.exact else None
            fast = copy.deepcopy(block).bfloat16()
            groups = _shrink_attention(
                stream,
                block,
                fast,
                method,
                metric[0],
                exact.kv_groups if exact else wanted.kv_groups[index],
                result,
            )
            neurons = _shrink_ffn(
                stream,
                block,
                fast,
                method,
                metric[1],
                exact.neurons if exact else wanted.widths[index],
                result,
            )
            result.blocks.append(BlockPlan(tuple(groups.tolist()), tuple(neurons.tolist())))
            on_block(index + 1, len(blocks))
        final = arch.final_norm(model, stream.pruned)
        result.importance["token_embd.weight"] = final.square().mean((0, 1))
        result.importance["output.weight"] = result.importance["token_embd.weight"]
    return result


def _mean_abs(values: Tensor, method: Method) -> Tensor | None:
    """Mean |x| of bfloat16 x [windows, s, units], float32 [units]; None for a method that reads none."""
    if not method.reads_mean_abs:
        return None  # a pass over all activations costs as much as a product
    flat = values.flatten(0, 1)
    sums = sum(part.abs().sum(0, dtype=torch.float32) for part in flat.split(MICRO_BATCH_TOKENS))
    return torch.as_tensor(sums) / len(flat)


def _names(index: int, names: tuple[str, ...]) -> list[str]:
    return [f"blk.{index}.{name}.weight" for name in names]


def _fit(moments: list[Moments], linear: nn.Linear, units: Tensor) -> tuple[Tensor, float]:
    """The refitted weight [units, outputs] and its relative error on the held-out windows."""
    weight = linear.weight.t()
    ridge, error = _choose_ridge(moments[0], moments[1], weight, units)
    gram, cross, _ = moments[0].merge(moments[1]).mean(units)
    return refit(gram, cross, weight[units], ridge), error


def _shrink_attention(
    stream: BlockPass,
    block: Any,
    fast: Any,
    method: Method,
    metric: Tensor | None,
    keep: int | tuple[int, ...],
    result: Result,
) -> Tensor:
    arch, index = stream.arch, len(result.blocks)
    read = torch.zeros(stream.dense.shape[-1])
    mixed, after, moments = stream.attention(block, fast, read)
    linear, size = arch.attention_out(block), arch.group_size(block)
    both = moments[0].merge(moments[1])
    gram, cross, _ = both.mean()
    if isinstance(keep, int):
        statistics = UnitStatistics(gram, cross, linear.weight.t(), _mean_abs(mixed, method), metric, size)
        groups = method.scores(statistics).topk(keep).indices.sort().values
    else:
        groups = torch.tensor(keep)
    units = (groups[:, None] * size + torch.arange(size)).flatten()
    weight, error = linear.weight.t(), None
    if len(units) < len(gram):  # nothing lost, nothing to refit
        weight, error = _fit(moments, linear, units)
        arch.cut(block, groups=groups)
        linear.weight.data = weight.t().contiguous()
    stream.advance(mixed, units, weight)
    stream.dense = after
    result.errors.append({} if error is None else {"attention": error})
    tokens = both.tokens
    result.importance |= {name: read / tokens for name in _names(index, arch.ATTENTION_READERS)}
    result.importance |= {
        name: gram.diagonal()[units].clone() for name in _names(index, (arch.ATTENTION_OUT,))
    }
    return groups


def _shrink_ffn(
    stream: BlockPass,
    block: Any,
    fast: Any,
    method: Method,
    metric: Tensor | None,
    keep: int | tuple[int, ...],
    result: Result,
) -> Tensor:
    arch, index = stream.arch, len(result.blocks)
    read = torch.zeros(stream.dense.shape[-1])
    active, moments = stream.ffn(block, fast, stream.dense, read)
    linear = arch.ffn_out(block)
    both = moments[0].merge(moments[1])
    gram, cross, _ = both.mean()
    if isinstance(keep, int):
        statistics = UnitStatistics(gram, cross, linear.weight.t(), _mean_abs(active, method), metric)
        units = _select(method, statistics, keep)
    else:
        units = torch.tensor(keep)
    weight = linear.weight.t()
    if len(units) < len(gram):
        weight, result.errors[-1]["ffn"] = _fit(moments, linear, units)
        arch.cut(block, kept_neurons=units)
        linear.weight.data = weight.t().contiguous()
    stream.advance(active, units, weight)
    result.importance |= {name: read / both.tokens for name in _names(index, arch.FFN_READERS)}
    result.importance |= {name: gram.diagonal()[units].clone() for name in _names(index, (arch.FFN_OUT,))}
    return units
