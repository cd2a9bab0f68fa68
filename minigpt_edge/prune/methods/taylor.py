"""LLM-Pruner's first-order Taylor importance (arXiv 2305.11627): |weight x gradient of the loss|.

Removing a weight w changes the loss by about w * g, so a unit is worth the sum of |w * g| over all weights
that are removed with it. That is the default of the published code (`--taylor param_first`,
`--grouping_strategy sum`, hf_llama_pruner.TaylorImportance); its `vectorize` is the other form,
|sum of w * g| per row or column.
For grouped-query attention that code adds up query rows by `view(-1, rows of k).sum(0)`, which gives a
KV group the query heads of other groups; here each group has its own. Biases do not count, as there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from minigpt_edge.prune.context import Done, unwatched
from minigpt_edge.prune.method import Method
from minigpt_edge.prune.units import UnitPruner

if TYPE_CHECKING:
    from torch import Tensor, nn

    from minigpt_edge.models.archs.base import Arch
    from minigpt_edge.prune.scores import BlockScores


def unit_scores(model: Any, arch: Arch, windows: Tensor, on_block: Done = unwatched) -> BlockScores:
    """Taylor importance of every block's KV groups and FFN neurons, the higher the more worth keeping.

    From the gradient of the mean loss over all next tokens of `windows`. Memory: what enters each block, and
    one block with its gradients.

    Args:
        model: float32; unchanged afterwards, its gradients too.
        windows: token ids, int64 [n, s]; a few are enough (the authors take 10 of 64 tokens).
        on_block: called with (blocks done, blocks).

    Returns:
        Per block (float32 [KV groups], float32 [neurons]).
    """
    from minigpt_edge.prune.backward import backward

    found: BlockScores = []
    total = len(arch.blocks(model))
    predicted = len(windows) * (windows.shape[1] - 1)

    def ask(block: Any) -> list[tuple[Tensor, Tensor | None]]:
        before = [(linear.weight, linear.weight.grad) for linear in _matrices(arch, block)]
        for parameter, _ in before:
            parameter.grad = None
            parameter.requires_grad_(True)
        return before

    for index, block, before in backward(model, arch, windows, lambda _, labels: labels, ask):
        groups, neurons = _block_scores(arch, block)
        found.append((groups / predicted, neurons / predicted))
        for parameter, gradient in before:
            parameter.requires_grad_(False)
            parameter.grad = gradient
        on_block(total - index, total)
    return found[::-1]


def _matrices(arch: Arch, block: Any) -> Iterable[nn.Linear]:
    attention, ffn = arch.writers(block)
    return *attention, arch.attention_out(block), *ffn, arch.ffn_out(block)


def _block_scores(arch: Arch, block: Any) -> tuple[Tensor, Tensor]:
    attention, ffn = arch.writers(block)
    return (
        _units(attention, arch.attention_out(block), arch.kv_groups(block)),
        _units(ffn, arch.ffn_out(block), arch.ffn_out(block).in_features),
    )


def _units(writers: list[nn.Linear], reader: nn.Linear, units: int) -> Tensor:
    """Sum of |w * g| over each unit's rows of the writers and columns of the reader."""
    total = reader.weight.detach().new_zeros(units)
    for linear in (*writers, reader):
        weight, gradient = linear.weight.detach(), linear.weight.grad
        if gradient is None:
            raise ValueError("a matrix of the block got no gradient")
        salience = (weight * gradient).abs()
        total += salience.sum(0 if linear is reader else 1).view(units, -1).sum(1)
    return total


METHOD = Method(
    "taylor",
    "|weight x gradient| summed over a unit's weights, from a backward pass",
    "LLM-Pruner, arXiv 2305.11627",
    (UnitPruner(of_model=unit_scores),),
)
