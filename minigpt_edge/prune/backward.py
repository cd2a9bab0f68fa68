"""A backward pass block by block: memory holds what enters each block, and one block with its gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch  # noqa: TID253 - imported by the pipeline's prune stage only
from torch import Tensor  # noqa: TID253
from torch.nn import functional  # noqa: TID253

from minigpt_edge.models.archs.base import Arch
from minigpt_edge.models.chunked_loss import chunk_rows
from minigpt_edge.models.forward import head_of
from minigpt_edge.models.precision import autocast, compute_dtype
from minigpt_edge.models.resident import resident
from minigpt_edge.stages.device import CPU, here

MICRO_BATCH_TOKENS = 2048
IGNORED = -100  # a label that does not count

T = TypeVar("T")


Label = Callable[[Tensor, Tensor], Tensor]


def backward(
    model: Any,
    arch: Arch,
    windows: Tensor,
    label: Label,
    prepare: Callable[[Any], T],
) -> Iterator[tuple[int, Any, T]]:
    """The gradients of the summed cross-entropy over `windows`, for every block from the last to the first.

    Products are in bf16 where the device has it; so is what enters a block, which is kept.

    Args:
        model: float32; none of its parameters gets a gradient but those that `prepare` asks for.
        windows: token ids, int64 [n, s].
        label: (logits [tokens, vocabulary], next token ids [tokens], IGNORED behind the last) -> labels.
        prepare: called with a block before its pass, to set hooks or ask for gradients.

    Yields:
        (index, block, what `prepare` returned) after its pass; its weights are in memory until the next.
    """
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in wanted:
        parameter.requires_grad_(False)
    try:
        inputs, position = _forward(model, arch, windows)
        gradient = _head_gradient(model, arch, inputs.pop(), windows, label)
        for index, block in reversed(list(enumerate(arch.blocks(model)))):
            with resident(block):
                prepared = prepare(block)
                _through(arch, block, inputs.pop(), gradient, position)
                yield index, block, prepared
    finally:
        for parameter, before in wanted:
            parameter.requires_grad_(before)


def sampled(seed: int) -> Label:
    """Labels drawn from the model itself, by inverse CDF: ten times as fast as multinomial.

    The random numbers are the processor's, so that every device draws the same.
    """
    generator = torch.Generator().manual_seed(seed)

    def label(logits: Tensor, _: Tensor) -> Tensor:
        cumulative = logits.softmax(-1).cumsum(-1)
        drawn = here(torch.rand(len(logits), 1, generator=generator, device=CPU)) * cumulative[:, -1:]
        return torch.searchsorted(cumulative, drawn)[:, 0].clamp(max=logits.shape[-1] - 1)

    return label


def _batches(windows: Tensor) -> list[slice]:
    step = max(1, MICRO_BATCH_TOKENS // windows.shape[1])
    return [slice(start, start + step) for start in range(0, len(windows), step)]


def _run(arch: Arch, block: Any, hidden: Tensor, position: tuple[Tensor, ...]) -> Tensor:
    dtype = compute_dtype()
    with autocast(dtype):
        after = arch.forward(block, hidden, tuple(part.to(dtype) for part in position))
    return after


def _forward(model: Any, arch: Arch, windows: Tensor) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """What enters each block, and the head's norm, [n, s, hidden]."""
    with torch.no_grad():
        hidden = arch.embed(model, windows).float()
        position = arch.positions(model, hidden)
        inputs = [hidden.to(compute_dtype())]
        for block in arch.blocks(model):
            with resident(block):
                hidden = torch.cat([_run(arch, block, hidden[rows], position) for rows in _batches(windows)])
            inputs.append(hidden.to(compute_dtype()))
    return inputs, position


def _head_gradient(model: Any, arch: Arch, hidden: Tensor, windows: Tensor, label: Label) -> Tensor:
    """The gradient of what leaves the last block, float32 [n, s, hidden]."""
    following = torch.full_like(windows, IGNORED)
    following[:, :-1] = windows[:, 1:]
    flat, parts = hidden.flatten(0, 1), []
    rows = chunk_rows(len(model.get_output_embeddings().weight))
    for x, y in zip(flat.split(rows), following.flatten().split(rows), strict=True):
        part = x.float().requires_grad_(True)
        read, weight = head_of(model, arch.final_norm(model, part).to(compute_dtype()))
        logits = (read @ weight.to(compute_dtype()).t()).float()
        functional.cross_entropy(
            logits, label(logits.detach(), y), reduction="sum", ignore_index=IGNORED
        ).backward()
        parts.append(_gradient(part))
    return torch.cat(parts).view(hidden.shape)


def _through(arch: Arch, block: Any, inputs: Tensor, gradient: Tensor, position: tuple[Tensor, ...]) -> None:
    """Take the gradient [n, s, hidden] of a block's output to that of its input, in place."""
    for rows in _batches(inputs):
        hidden = inputs[rows].float().requires_grad_(True)
        with torch.enable_grad():
            _run(arch, block, hidden, position).backward(gradient[rows])
        gradient[rows] = _gradient(hidden)


def _gradient(tensor: Tensor) -> Tensor:
    if tensor.grad is None:
        raise ValueError("the pass left no gradient")
    return tensor.grad
