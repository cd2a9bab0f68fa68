"""What the dense model's head reads on training windows: from it come the teacher's predictions.

Hidden states of 576 numbers give back all 49,152 logits, exactly; they are smaller than any sample of the
logits that is worth keeping (arXiv 2503.16870), and pruning passes them anyway.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.stages.device import here
from minigpt_edge_runtime.errors import EdgeError

if TYPE_CHECKING:
    from torch import Tensor

DENSE_STATES = "dense-states.safetensors"  # the file of a stage that has them
HIDDEN, HEAD, IDS = "hidden", "head", "ids"
TOKENS_AT_ONCE = 4096  # of one forward pass


def save_states(ids: Tensor, hidden: Tensor, model: Any, path: Path) -> None:
    """Write the states of windows, and the head that reads them, whole or not at all.

    Args:
        ids: token ids [windows, s].
        hidden: behind the last norm, float16 [windows, s, width].
        model: its head is the dense model's, rows of the kept tokens alone.
    """
    import torch
    from safetensors.torch import save_file

    from minigpt_edge.models.forward import head_of
    from minigpt_edge_runtime.files import replacing

    with torch.no_grad():
        _, head = head_of(model, hidden[:1])
        tensors = {IDS: ids.int(), HIDDEN: hidden, HEAD: head.detach().half()}
    with replacing(path) as temporary:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)


def compute_states(model: Any, ids: Tensor) -> Tensor:
    """Run a model over windows of token ids [windows, s]; float16 [windows, s, width]."""
    import torch

    from minigpt_edge.models.forward import hidden_states

    step = max(1, TOKENS_AT_ONCE // ids.shape[1])
    with torch.inference_mode():
        return torch.cat([hidden_states(model, here(rows.long())).half() for rows in ids.split(step)])


class DenseStates:
    """A file of states, read a few windows at a time.

    Attributes:
        ids: token ids int32 [windows, s].
        head: [vocabulary, width] in the dtype of products; of a head with a bias the last column is that.

    Raises:
        EdgeError: the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        from minigpt_edge.models.precision import compute_dtype

        try:
            self._file: Any = safe_open(path, framework="pt")
            self.ids = self._file.get_tensor(IDS)
            self.head = here(self._file.get_tensor(HEAD).to(compute_dtype()))
            self._hidden = self._file.get_slice(HIDDEN)
        except (OSError, SafetensorError) as error:
            raise EdgeError(f"{path} is damaged ({error})", "make it again: delete its folder") from error

    def hidden(self, first: int, last: int) -> Tensor:
        """What the head reads on windows first ... last - 1, [(last - first) * s, width] in its dtype."""
        import torch

        read = here(self._hidden[first:last].flatten(0, 1).to(self.head.dtype))
        if self.head.shape[1] == read.shape[1]:
            return read
        return torch.cat((read, read.new_ones(len(read), 1)), 1)
