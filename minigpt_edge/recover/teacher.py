"""The dense model as a teacher: its predictions are part of what the student is fine-tuned to give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.models.dense_states import DENSE_STATES, DenseStates, compute_states, save_states
from minigpt_edge_runtime.errors import EdgeError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Teacher:
    """Knowledge distillation (Hinton et al., arXiv 1503.02531) from the model that was pruned.

    It teaches the first windows only: those of the calibration set, through which pruning ran the dense model
    to its end. So its predictions cost no forward pass.

    Attributes:
        checkpoint: the dense model's directory.
        tokens: ids of its vocabulary that the student kept, in the student's order.
        share: of the training target at the first step; it falls linearly and would be 0 at the last.
        windows: how many it teaches.
        states: what its head reads on them (`DenseStates`); None to compute that.
    """

    checkpoint: Path
    tokens: tuple[int, ...]
    share: float
    windows: int
    states: Path | None = None

    def lessons(self, windows: np.ndarray, work: Path) -> DenseStates:
        """What the dense model says of the first training windows [n, s + 1].

        Args:
            work: where it is kept if it has to be computed.

        Raises:
            EdgeError: the checkpoint or the states are damaged, or the states are of other windows.
        """
        import torch

        path, ids = self.states or work / DENSE_STATES, torch.from_numpy(windows[: self.windows, :-1])
        if self.states is None and not path.is_file():
            model = self._load()
            save_states(ids, compute_states(model, ids), model, path)
        found = DenseStates(path)
        known = min(len(ids), len(found.ids))
        if not torch.equal(found.ids[:known], ids[:known].int()):
            raise EdgeError(
                f"{path} is about other training windows", "build again with one seed, corpus and vocabulary"
            )
        return found

    def files(self) -> list[Path]:
        """What it knows its predictions from."""
        return [self.states] if self.states else sorted(self.checkpoint.glob("*.safetensors"))

    def _load(self) -> Any:
        from minigpt_edge.models.checkpoint import is_large, trim_embeddings
        from minigpt_edge.models.forward import load_fast

        model = load_fast(self.checkpoint, lazy=is_large(self.checkpoint))
        trim_embeddings(model, self.tokens)
        return model
