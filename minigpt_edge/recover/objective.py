"""The training loss as a module, so that what spreads it over processes sees one forward pass.

Import this module inside functions: it needs torch at its head to subclass its Module.
"""

from __future__ import annotations

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from minigpt_edge.models import forward
from minigpt_edge.models.chunked_loss import SoftLabels, chunked_cross_entropy
from minigpt_edge.recover import fast_llama
from minigpt_edge.recover.fast_llama import Compiled, Parts


class Objective(nn.Module):
    """A model with the loss that it is trained for.

    Args:
        model: a causal language model.
        teacher: whose predictions are part of the target; each process holds all of it.
        parts: compiled blocks of model and teacher, None for transformers' own.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module | None, parts: Compiled | None) -> None:
        super().__init__()
        self.model = model
        self._unseen = (teacher,)  # a tuple: nothing of the teacher is trained, moved or sharded
        self.parts = parts

    def forward(self, ids: Tensor, share: float) -> Tensor:
        """Mean loss in nats of predicting every id of `ids` [batch, length + 1] but the first.

        Args:
            share: of the teacher's predictions in the target.
        """
        known, (teacher,) = ids[:, :-1], self._unseen
        student_parts, teacher_parts = self.parts or (None, None)
        read, weight = _head(self.model, known, student_parts)
        soft = None if teacher is None else soft_labels(teacher, known, teacher_parts, share)
        return chunked_cross_entropy(read, weight, ids[:, 1:].flatten(), soft)


def soft_labels(teacher: nn.Module, ids: Tensor, parts: Parts | None, share: float) -> SoftLabels:
    """A loaded teacher's predictions for token ids [batch, s]."""
    with torch.no_grad():
        return SoftLabels(*_head(teacher, ids, parts), share)


def _head(model: nn.Module, ids: Tensor, parts: Parts | None) -> tuple[Tensor, Tensor]:
    """What a model's head reads [batch * s, width], and its weight, for token ids [batch, s]."""
    if parts is None:
        hidden = forward.hidden_states(model, ids)
    else:
        hidden = fast_llama.hidden_states(model, ids, parts)
    return forward.head_of(model, hidden.flatten(0, 1))
