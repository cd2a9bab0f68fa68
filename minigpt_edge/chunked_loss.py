"""Cross-entropy of a language model's head whose logits exist for a few hundred tokens at a time.

Import this module inside functions: it needs torch at its head to define an autograd function.
"""

from __future__ import annotations

from typing import Any

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

CHUNK_BYTES = 64 * 2**20  # of float32 logits


def chunk_rows(vocabulary: int) -> int:
    """How many tokens' float32 logits fit CHUNK_BYTES, at least 16."""
    return max(16, CHUNK_BYTES // (4 * vocabulary))


class ChunkedCrossEntropy(torch.autograd.Function):
    """hidden [tokens, width], float32 weight [vocabulary, width], labels [tokens] -> mean loss in nats.

    The gradients are computed with the loss, chunk by chunk, since the logits are at hand only then.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        cast = weight.detach().to(hidden.dtype)
        total = torch.zeros((), dtype=torch.float64)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight)
        tokens = len(hidden)
        rows = min(tokens, chunk_rows(len(weight)))
        narrow = hidden.new_empty(rows, len(weight))  # made once: fresh memory costs more than the arithmetic
        wide, normal = (torch.empty(narrow.shape, dtype=torch.float32) for _ in range(2))
        for x, y, out in zip(hidden.split(rows), labels.split(rows), grad_hidden.split(rows), strict=True):
            logits, log_p = narrow[: len(x)], normal[: len(x)]
            torch.mm(x, cast.t(), out=logits)
            torch.log_softmax(wide[: len(x)].copy_(logits), -1, out=log_p)
            total -= log_p.gather(1, y[:, None]).sum(dtype=torch.float64)
            p = log_p.exp_().scatter_add_(1, y[:, None], torch.full_like(log_p[:, :1], -1.0))
            grad = logits.copy_(p.mul_(1.0 / tokens))
            torch.mm(grad, cast, out=out)
            grad_weight += grad.t() @ x
        ctx.save_for_backward(grad_hidden, grad_weight)
        return (total / tokens).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad == 1.0:
            return grad_hidden, grad_weight, None
        return grad_hidden * grad.to(grad_hidden.dtype), grad_weight * grad, None


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats of hidden [tokens, width] @ weight.T against labels [tokens] (int64).

    Logits are formed in hidden's dtype, the softmax in float32. Differentiable once, in hidden and weight.
    """
    return ChunkedCrossEntropy.apply(hidden, weight, labels)


def chunked_nll(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood in nats of every label, float32 [tokens]; no gradients."""
    rows = chunk_rows(len(weight))
    cast = weight.to(hidden.dtype)
    losses = [
        torch.nn.functional.cross_entropy((x @ cast.t()).float(), y, reduction="none")
        for x, y in zip(hidden.split(rows), labels.split(rows), strict=True)
    ]
    return torch.cat(losses)
