"""How much is removed of the vocabulary and of each block: by estimated loss per unit of an exact budget.

Removing units from a block changes its output by e. To second order the loss then rises by
1/2 tr(S E[e e^T]), where S is the Fisher information of the block's output: the mean of g g^T over the
gradients g of the loss with labels sampled from the model itself. E weighs each token by its |g|^2, since
errors and gradients are not independent (`weighted`). That is one backward pass over a few thousand tokens,
and it makes costs comparable across blocks, neurons and KV groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253 - imported by the pipeline's prune stage only
from torch import Tensor, nn  # noqa: TID253

from minigpt_edge.models.resident import offload
from minigpt_edge.prune.backward import backward, sampled
from minigpt_edge.prune.context import WIDTH_MULTIPLE, Done, unwatched
from minigpt_edge.prune.moments import add_gram, mirror
from minigpt_edge.prune.plan import BlockPlan
from minigpt_edge.prune.refit import Refitted
from minigpt_edge.prune.weighted import WeightedGram
from minigpt_edge_runtime.errors import EdgeError

if TYPE_CHECKING:
    from minigpt_edge.models.archs.base import Arch
    from minigpt_edge.prune.scores import BlockScores

WIDTHS_PER_STEP = 6  # widths removed between two refits of the removal path, at least
REFITS = 8  # of a path at most: each takes the cube of the width


@dataclass
class Costs:
    """Estimated rise of the loss (nats per token) of one block, before recovery.

    Attributes:
        widths: descending widths; ffn[i] is the cost of keeping widths[i] neurons.
        attention: attention[k] is the cost of removing k KV groups.
        metrics: gives the Fisher information of the outputs of attention and FFN, float32 [hidden, hidden].
    """

    widths: list[int]
    ffn: list[float]
    attention: list[float]
    metrics: Callable[[], list[Tensor]]

    def weighted(self, neurons: float, groups: float) -> Costs:
        """The costs times what each kind counts."""
        ffn, attention = [neurons * c for c in self.ffn], [groups * c for c in self.attention]
        return replace(self, ffn=ffn, attention=attention)


class _Probe(WeightedGram):
    """Sums the Fisher information of the matrix's output as well."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self._fisher, self._tokens = torch.zeros(linear.out_features, linear.out_features), 0

    def fisher(self) -> Tensor:
        """E[g g^T] over tokens, float32 [outputs, outputs], when the pass is over."""
        mirror(self._fisher)
        return self._fisher.div_(self._tokens)

    def _add(self, read: Tensor, gradient: Tensor) -> None:
        super()._add(read, gradient)
        add_gram(self._fisher, gradient.to(self._dtype))
        self._tokens += len(gradient)


def measure_costs(
    model: Any, arch: Arch, windows: Tensor, seed: int, on_block: Done = unwatched
) -> list[Costs]:
    """Costs of every block of a dense model; two forward passes and a backward one over `windows` [n, s]."""
    total, costs = len(arch.blocks(model)), list[Costs]()

    def watch(block: Any) -> tuple[_Probe, _Probe]:
        return _Probe(arch.attention_out(block)), _Probe(arch.ffn_out(block))

    for index, block, probes in backward(model, arch, windows, sampled(seed), watch):
        with torch.inference_mode():
            costs.append(_block_costs(block, arch.group_size(block), probes))
        on_block(total - index, total)
    return costs[::-1]


def _block_costs(block: Any, group: int, probes: tuple[_Probe, _Probe]) -> Costs:
    attention, ffn = probes
    metrics = [attention.fisher(), ffn.fisher()]
    groups = _group_path(attention.mean(), attention.linear.weight.t(), metrics[0], group)
    widths, path = _removal_path(ffn.mean(), ffn.linear.weight.t(), metrics[1])
    return Costs(widths, path, groups, offload(block, metrics))


def _group_path(gram: Tensor, weight: Tensor, fisher: Tensor, group: int) -> list[float]:
    """Cost of removing 0, 1, ... KV groups, each time the cheapest of those left; one is always kept."""
    left = Refitted.of(gram, gram @ weight, fisher)
    costs = [0.0]
    for _ in range(len(gram) // group - 1):
        rise = left.costs(group) / 2
        cheapest = int(rise.argmin())
        costs.append(costs[-1] + float(rise[cheapest]))
        left = left.without(cheapest * group + torch.arange(group))
    return costs


def _removal_path(gram: Tensor, weight: Tensor, fisher: Tensor) -> tuple[list[int], list[float]]:
    """Widths from all neurons down to WIDTH_MULTIPLE, and the cost of each when removed in OBS order."""
    total, cross = len(gram), gram @ weight
    full = float(((weight @ fisher) * cross).sum())
    left = Refitted.of(gram, cross, fisher)
    widths = list(range(total // WIDTH_MULTIPLE * WIDTH_MULTIPLE, 0, -WIDTH_MULTIPLE))
    costs = [0.0]
    at, stride = 0, max(WIDTHS_PER_STEP, len(widths) // REFITS)
    while at < len(widths) - 1:
        steps = min(stride, len(widths) - 1 - at)
        removal = left.costs() / 2
        order = removal.argsort()
        count = len(order)
        rise = removal[order].cumsum(0)
        before = costs[-1]
        for step in range(1, steps + 1):
            costs.append(before + float(rise[count - widths[at + step] - 1]))
        left = left.without(order[: count - widths[at + steps]])
        costs[-1] = max((full - left.explained(cross)) / 2, before)
        at += steps
    return widths, costs


@dataclass(frozen=True)
class Prices:
    """What removing one unit saves of a budget: parameters, or bytes of a file or of a decoded token."""

    neuron: float
    group: float
    token: float = 0


@dataclass(frozen=True)
class Sizes:
    """What is kept: FFN neurons and KV groups of each block, and tokens (None where none were on offer)."""

    widths: list[int]
    kv_groups: list[int]
    tokens: int | None = None


@dataclass(frozen=True, order=True)
class _Step:
    """The next cut of one block's FFN or attention, or of the vocabulary, cheapest for its price first.

    Attributes:
        slope: rise of the loss for what is saved, on the lower convex hull of the costs.
        block: -1 for the vocabulary.
        saved: by the step, in the budget's unit.
        kept: units after it.
    """

    slope: float
    block: int
    kind: str
    removed: float
    saved: float
    kept: int


def _steps(block: int, kind: str, unit: float, points: Sequence[tuple[int, float]]) -> list[_Step]:
    """The steps from each of (units kept, cost) to the next; slopes never fall, so that greedy is optimal."""
    full = points[0][0] if points else 0
    hull: list[tuple[float, float]] = []
    for kept, y in points:
        x = (full - kept) * unit
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (y1 - y0) * (x - x0) < (y - y0) * (x1 - x0):
                break
            hull.pop()
        hull.append((x, y))
    slopes = iter([(x1, (y1 - y0) / (x1 - x0)) for (x0, y0), (x1, y1) in pairwise(hull)])
    steps, (end, slope) = [], (0.0, 0.0)
    for (before, _), (kept, _) in pairwise(points):
        removed = (full - kept) * unit
        while removed > end:
            end, slope = next(slopes)
        steps.append(_Step(slope, block, kind, removed, (before - kept) * unit, kept))
    return steps


def allocate(
    costs: list[Costs],
    prices: Prices,
    remove: float,
    *,
    min_width: int,
    slack: float = 0,
    tokens: Sequence[tuple[int, float]] = (),
) -> Sizes:
    """The sizes that save `remove` at the lowest cost.

    Args:
        costs: of every block, weighted as they count.
        prices: of a unit.
        remove: how much to save; at least that is saved, within one width step.
        min_width: narrowest FFN allowed.
        slack: a step that would overshoot by more is left out if what is missing without it is less.
        tokens: (tokens kept, rise of the loss) from the whole vocabulary to the smallest; empty where it is
            decided already.

    Raises:
        EdgeError: even the smallest sizes would not save so much.
    """
    kept = {"ffn": [cost.widths[0] for cost in costs], "attention": [len(cost.attention) for cost in costs]}
    kept["tokens"] = [tokens[0][0]] if tokens else []
    steps = _steps(-1, "tokens", prices.token, tokens)
    for index, cost in enumerate(costs):
        narrower = [(w, c) for w, c in zip(cost.widths, cost.ffn, strict=True) if w >= min_width]
        fewer = [(len(cost.attention) - k, c) for k, c in enumerate(cost.attention)]
        steps += _steps(index, "ffn", prices.neuron, narrower)
        steps += _steps(index, "attention", prices.group, fewer)
    saved = 0.0
    for step in sorted(steps):
        if saved >= remove:
            break
        after = saved + step.saved
        if step.kind == "attention" and after > remove + WIDTH_MULTIPLE * prices.neuron:
            continue  # A whole KV group would overshoot the budget.
        if step.kind == "ffn" and slack and after > remove + slack and saved >= remove - slack:
            break
        saved = after
        kept[step.kind][step.block] = step.kept
    else:
        if saved < remove:
            raise EdgeError(
                f"only {saved:,.0f} parameters of the blocks can be removed, but {remove:,.0f} must be",
                "ask for a lower --sparsity, or a smaller vocabulary",
            )
    return Sizes(kept["ffn"], kept["attention"], *kept["tokens"])


def threshold_plan(scores: BlockScores, threshold: float, multiple: int) -> tuple[BlockPlan, ...]:
    """What is kept under one threshold for all blocks' scores of (KV groups, neurons).

    At least one group and `multiple` neurons are kept, and widths are rounded up to `multiple`: the best of
    what is below the threshold is kept too.
    """
    plans = []
    for groups, neurons in scores:
        width = -(-int((neurons > threshold).sum()) // multiple) * multiple
        counts = max(1, int((groups > threshold).sum())), min(max(multiple, width), len(neurons))
        plans.append(best_units((groups, neurons), *counts))
    return tuple(plans)


def best_units(scores: tuple[Tensor, Tensor], groups: int, width: int) -> BlockPlan:
    """The KV groups and neurons of a block with the highest scores."""
    kept = [part.topk(n).indices.sort().values for part, n in zip(scores, (groups, width), strict=True)]
    return BlockPlan(*(tuple(indices.tolist()) for indices in kept))


def global_plan(
    scores: BlockScores, neuron: int, group: int, remove: int, multiple: int
) -> tuple[BlockPlan, ...]:
    """The `threshold_plan` whose threshold removes `remove` parameters or, by less than a step, fewer.

    Raises:
        EdgeError: even the highest threshold would not remove so many.
    """

    def removed(plan: tuple[BlockPlan, ...]) -> int:
        pairs = zip(scores, plan, strict=True)
        return sum(
            (len(s[0]) - len(kept.kv_groups)) * group + (len(s[1]) - len(kept.neurons)) * neuron
            for s, kept in pairs
        )

    limits = torch.cat([torch.cat(pair) for pair in scores]).unique()  # every threshold that matters
    low, high = 0, len(limits) - 1
    if removed(threshold_plan(scores, float(limits[-1]), multiple)) < remove:
        raise EdgeError("so much can't be removed: no block would be left", "ask for a lower --sparsity")
    while high - low > 1:
        middle = (low + high) // 2
        if removed(threshold_plan(scores, float(limits[middle]), multiple)) <= remove:
            low = middle
        else:
            high = middle
    plan, beyond = (threshold_plan(scores, float(limits[at]), multiple) for at in (low, high))
    for index in range(len(plan)):  # many units may share the next threshold: take it block by block
        further = (*plan[:index], beyond[index], *plan[index + 1 :])
        plan = further if removed(further) <= remove else plan
    return plan
