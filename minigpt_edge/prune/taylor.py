"""LLM-Pruner's first-order Taylor importance (arXiv 2305.11627): |weight x gradient of the loss|.

Removing a weight w changes the loss by about w * g, so a unit is worth the sum of |w * g| over all weights
that go with it. That is the default of the published code (`--taylor param_first`, `--grouping_strategy sum`,
hf_llama_pruner.TaylorImportance); its `vectorize` is the other form, |sum of w * g| per row or column.
For grouped-query attention that code adds up query rows by `view(-1, rows of k).sum(0)`, which gives a
KV group the query heads of other groups; here each group has its own. Biases do not count, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch  # noqa: TID253 - imported on demand
from torch import Tensor, nn  # noqa: TID253

from minigpt_edge.archs.base import Arch
from minigpt_edge.chunked_loss import chunked_cross_entropy
from minigpt_edge.evaluate.perplexity import head_of, hidden_states

MICRO_BATCH_TOKENS = 2048


def unit_scores(
    model: Any,
    arch: Arch,
    windows: Tensor,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> list[tuple[Tensor, Tensor]]:
    """Taylor importance of every block's KV groups and FFN neurons, the higher the more worth keeping.

    One backward pass of the mean loss over all next tokens of `windows`, in micro-batches. Memory: the
    gradients of all the blocks' matrices, float32, and the activations of MICRO_BATCH_TOKENS tokens.

    Args:
        model: float32; unchanged afterwards, its gradients too.
        windows: token ids, int64 [n, s]; a few are enough (the authors take 10 of 64 tokens).
        on_batch: called with (windows done, windows).

    Returns:
        Per block (float32 [KV groups], float32 [neurons]).
    """
    blocks = arch.blocks(model)
    wanted = {id(linear.weight) for block in blocks for linear in _matrices(arch, block)}
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _, _ in before:
            parameter.grad = None
            parameter.requires_grad_(id(parameter) in wanted)
        _backward(model, windows, on_batch)
        return [_block_scores(arch, block) for block in blocks]
    finally:
        for parameter, trainable, gradient in before:
            parameter.requires_grad_(trainable)
            parameter.grad = gradient


def _matrices(arch: Arch, block: Any) -> Iterable[nn.Linear]:
    attention, ffn = arch.writers(block)
    return *attention, arch.attention_out(block), *ffn, arch.ffn_out(block)


def _backward(model: Any, windows: Tensor, on_batch: Callable[[int, int], None]) -> None:
    """Add the gradients of the mean loss over `windows` to the parameters' that want one."""
    done = 0
    for batch in windows.split(max(1, MICRO_BATCH_TOKENS // windows.shape[1])):
        hidden, head = head_of(model, hidden_states(model, batch[:, :-1]).flatten(0, 1))
        loss = chunked_cross_entropy(hidden, head, batch[:, 1:].flatten())
        (loss * (len(batch) / len(windows))).backward()
        done += len(batch)
        on_batch(done, len(windows))


def _block_scores(arch: Arch, block: Any) -> tuple[Tensor, Tensor]:
    attention, ffn = arch.writers(block)
    return (
        _units(attention, arch.attention_out(block), arch.kv_groups(block)),
        _units(ffn, arch.ffn_out(block), arch.ffn_out(block).in_features),
    )


def _units(writers: list[nn.Linear], reader: nn.Linear, units: int) -> Tensor:
    """Sum of |w * g| over each unit's rows of the writers and columns of the reader."""
    total = torch.zeros(units)
    for linear in (*writers, reader):
        weight, gradient = linear.weight.detach(), linear.weight.grad
        if gradient is None:
            raise ValueError("a matrix of the block got no gradient")
        salience = (weight * gradient).abs()
        total += salience.sum(0 if linear is reader else 1).view(units, -1).sum(1)
    return total
