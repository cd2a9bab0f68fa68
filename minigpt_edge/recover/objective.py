"""The training loss as a module, so that what spreads it over processes sees one forward pass.

Import this module inside functions: it needs torch at its head to subclass its Module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn  # noqa: TID253

from minigpt_edge.models import forward
from minigpt_edge.models.chunked_loss import chunked_cross_entropy
from minigpt_edge.recover import fast_llama
from minigpt_edge.recover.teacher import soft_labels

if TYPE_CHECKING:
    from minigpt_edge.recover.fast_llama import Compiled


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
        own, taught = self.parts or (None, None)
        if own is None:
            hidden = forward.hidden_states(self.model, known)
        else:
            hidden = fast_llama.hidden_states(self.model, known, own)
        soft = None if teacher is None else soft_labels(teacher, known, taught, share)
        read, weight = forward.head_of(self.model, hidden.flatten(0, 1))
        return chunked_cross_entropy(read, weight, ids[:, 1:].flatten(), soft)
