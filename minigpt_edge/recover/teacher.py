"""The dense model as a teacher: its predictions are part of what the small model is fine-tuned to give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.models import forward

if TYPE_CHECKING:
    from torch import Tensor, nn

    from minigpt_edge.models.chunked_loss import SoftLabels
    from minigpt_edge.recover.fast_llama import Parts


@dataclass(frozen=True)
class Teacher:
    """Knowledge distillation (Hinton et al., arXiv 1503.02531) from the model that was pruned.

    Attributes:
        checkpoint: the dense model's directory.
        tokens: ids of its vocabulary that the small model kept, in the small model's order.
        share: of the training target at the first step; it falls linearly to 0 at the last.
    """

    checkpoint: Path
    tokens: tuple[int, ...]
    share: float

    def load(self) -> nn.Module:
        """The dense model with the small model's vocabulary, frozen, in the training dtype.

        Raises:
            EdgeError: the checkpoint is damaged.
        """
        from minigpt_edge.models import attention
        from minigpt_edge.models.checkpoint import load_model, trim_embeddings
        from minigpt_edge.models.precision import compute_dtype

        model = load_model(self.checkpoint)
        trim_embeddings(model, self.tokens)
        attention.use_in(model)
        for parameter in model.parameters():  # buffers stay: rotary frequencies need float32
            parameter.data = parameter.data.to(compute_dtype())
        return model.requires_grad_(False)


def soft_labels(model: Any, ids: Tensor, parts: Parts | None, share: float) -> SoftLabels:
    """A loaded teacher's predictions for token ids [batch, s]."""
    import torch

    from minigpt_edge.models.chunked_loss import SoftLabels
    from minigpt_edge.recover import fast_llama

    with torch.no_grad():
        if parts is None:
            hidden = forward.hidden_states(model, ids)
        else:
            hidden = fast_llama.hidden_states(model, ids, parts)
        read, weight = forward.head_of(model, hidden.flatten(0, 1))
    return SoftLabels(read, weight, share)
