"""Cross-entropy of a language model's head whose logits exist for a few hundred tokens at a time.

Import this module inside functions: it needs torch at its head to define an autograd function.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from minigpt_edge.models.precision import sum_dtype

CHUNK_BYTES = 64 * 2**20  # So many bytes of float32 logits exist at a time.


def chunk_rows(vocabulary: int) -> int:
    """How many tokens' float32 logits fit CHUNK_BYTES, at least 16."""
    return max(16, CHUNK_BYTES // (4 * vocabulary))


@dataclass(frozen=True)
class SoftLabels:
    """A teacher's predictions as part of the target.

    Attributes:
        hidden: what the teacher's head reads, [tokens, teacher width].
        weight: its head, [vocabulary, teacher width], in the dtype of `hidden`; rows as the student's.
        share: of the target, 0 to 1; the label has the rest.
    """

    hidden: Tensor
    weight: Tensor
    share: float


class ChunkedCrossEntropy(torch.autograd.Function):
    """hidden [tokens, width], float32 weight [vocabulary, width], labels [tokens] -> mean loss in nats.

    The gradients are computed with the loss, chunk by chunk, since the logits are at hand only then.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, soft: SoftLabels | None) -> Tensor:
        cast = weight.detach().to(hidden.dtype)
        sums = sum_dtype(hidden.device)
        total = torch.zeros((), dtype=sums)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight)
        tokens = len(hidden)
        rows = min(tokens, chunk_rows(len(weight)))
        narrow = hidden.new_empty(rows, len(weight))  # made once: fresh memory costs more than the arithmetic
        wide, normal = (torch.empty(narrow.shape, dtype=torch.float32) for _ in range(2))
        teacher_p = torch.empty_like(wide) if soft else None
        label_share = 1.0 - soft.share if soft else 1.0
        for start in range(0, tokens, rows):
            part = slice(start, start + rows)
            x, y, out = hidden[part], labels[part], grad_hidden[part]
            logits, log_p = narrow[: len(x)], normal[: len(x)]
            torch.mm(x, cast.t(), out=logits)
            torch.log_softmax(wide[: len(x)].copy_(logits), -1, out=log_p)
            total -= log_p.gather(1, y[:, None]).sum(dtype=sums)
            p = log_p.exp_().scatter_add_(1, y[:, None], torch.full_like(log_p[:, :1], -label_share))
            if soft and teacher_p is not None:
                torch.mm(soft.hidden[part], soft.weight.t(), out=logits)
                torch.softmax(wide[: len(x)].copy_(logits), -1, out=teacher_p[: len(x)])
                p.sub_(teacher_p[: len(x)], alpha=soft.share)
            grad = logits.copy_(p.mul_(1.0 / tokens))
            torch.mm(grad, cast, out=out)
            grad_weight += grad.t() @ x
        ctx.save_for_backward(grad_hidden, grad_weight)
        return (total / tokens).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad == 1.0:
            return grad_hidden, grad_weight, None, None
        return grad_hidden * grad.to(grad_hidden.dtype), grad_weight * grad, None, None


def chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, soft: SoftLabels | None = None
) -> Tensor:
    """Mean cross-entropy in nats of hidden [tokens, width] @ weight.T against labels [tokens] (int64).

    Logits are formed in hidden's dtype, the softmax in float32. Differentiable once, in hidden and weight.
    With `soft` the gradient is that of the cross-entropy against the mixed target (Hinton et al., arXiv
    1503.02531, at temperature 1); the value stays the one against the labels, which compares between runs.
    """
    return ChunkedCrossEntropy.apply(hidden, weight, labels, soft)


def logit_chunks(hidden: Tensor, weight: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """float32 logits of some of the hidden states [n, vocabulary] at a time, with their labels [n]."""
    rows, cast = chunk_rows(len(weight)), weight.to(hidden.dtype)
    for x, y in zip(hidden.split(rows), labels.split(rows), strict=True):
        yield (x @ cast.t()).float(), y


def chunked_nll(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood in nats of every label, float32 [tokens]; no gradients."""
    return torch.cat([nll(logits, y) for logits, y in logit_chunks(hidden, weight, labels)])


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood in nats of a label per row of logits [n, vocabulary]."""
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")
