"""The training loss as a module, so that what spreads it over processes sees one forward pass.

Import this module inside functions: it needs torch at its head to subclass its Module.
"""

from __future__ import annotations

from torch import Tensor, nn  # noqa: TID253

from minigpt_edge.models import forward
from minigpt_edge.models.chunked_loss import SoftLabels, chunked_cross_entropy
from minigpt_edge.recover import fast_llama
from minigpt_edge.recover.fast_llama import Parts


class Objective(nn.Module):
    """A model with the loss that it is trained for.

    Args:
        model: a causal language model.
        parts: its compiled blocks, None for transformers' own.
    """

    def __init__(self, model: nn.Module, parts: Parts | None) -> None:
        super().__init__()
        self.model = model
        self.parts = parts

    def forward(self, ids: Tensor, soft: SoftLabels | None = None) -> Tensor:
        """Mean loss in nats of predicting every id of `ids` [batch, length + 1] but the first.

        Args:
            soft: a teacher's predictions of the same ids, as part of the target.
        """
        known = ids[:, :-1]
        if self.parts is None:
            hidden = forward.hidden_states(self.model, known)
        else:
            hidden = fast_llama.hidden_states(self.model, known, self.parts)
        read, weight = forward.head_of(self.model, hidden.flatten(0, 1))
        return chunked_cross_entropy(read, weight, ids[:, 1:].flatten(), soft)
