"""The dense model as a teacher: its predictions are part of what the student is fine-tuned to give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Teacher:
    """Knowledge distillation (Hinton et al., arXiv 1503.02531) from the model that was pruned.

    Attributes:
        checkpoint: the dense model's directory.
        tokens: ids of its vocabulary that the student kept, in the student's order.
        share: of the training target at the first step; it falls linearly to 0 at the last.
    """

    checkpoint: Path
    tokens: tuple[int, ...]
    share: float

    def load(self) -> nn.Module:
        """The dense model with the student's vocabulary, frozen, in the training dtype.

        Raises:
            EdgeError: the checkpoint is damaged.
        """
        from minigpt_edge.models.checkpoint import trim_embeddings
        from minigpt_edge.models.forward import load_fast
        from minigpt_edge.models.precision import compute_dtype

        model = load_fast(self.checkpoint)
        trim_embeddings(model, self.tokens)
        for parameter in model.parameters():  # not buffers: rotary frequencies need float32
            parameter.data = parameter.data.to(compute_dtype())
        return model.requires_grad_(False)
