"""The order of what matrices read: dealt to blocks by energy, so that files of few bits lose less.

A model computes the same in whatever order its residual stream has its values, and a block its neurons. Files
of few bits have a scale for every 32 inputs that follow each other. A block of strong and weak inputs can
round the strong ones well at the cost of the weak; and GPTQ, which goes from left to right, makes up for
roundings by all that follows, so the strongest of a block come first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253 - imported by the pipeline's prune stage only
from torch import Tensor  # noqa: TID253

from minigpt_edge.models.resident import resident, write_back
from minigpt_edge.prune.context import WIDTH_MULTIPLE
from minigpt_edge_export.gguf.grids import GPTQ_TYPES, GRIDS, find_codes
from minigpt_edge_runtime.formats.gguf_names import gguf_name

if TYPE_CHECKING:
    from minigpt_edge.models.archs.base import Arch


def deal_inputs(model: Any, arch: Arch, importance: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put the residual stream and each block's neurons in the order of `dealt`, in place.

    Args:
        model: float32; if its blocks are on disk, it was loaded with a place for changed ones.
        importance: GGUF name -> mean squared input, float32 [columns]: all matrices of the blocks, and of
            embedding and head what there is.

    Returns:
        The importance matrix of the model as it is then.
    """
    blocks = arch.blocks(model)
    out, down = ({_name(i, part) for i in range(len(blocks))} for part in (arch.ATTENTION_OUT, arch.FFN_OUT))
    levels = [_level(squares) for name, squares in importance.items() if name not in out | down]
    stream = dealt(torch.stack(levels).mean(0))
    neurons = {name: dealt(importance[name]) for name in down}
    arch.reorder_tables(model, stream)
    for index, block in enumerate(blocks):
        with resident(block):
            arch.reorder_stream(block, stream)
            arch.cut(block, kept_neurons=neurons[_name(index, arch.FFN_OUT)])
            write_back(block)
    return {
        name: squares if name in out else squares[neurons.get(name, stream)]
        for name, squares in importance.items()
    }


def dealt(energy: Tensor) -> Tensor:
    """Indices that deal inputs to blocks of WIDTH_MULTIPLE as cards are dealt, the strongest first.

    So blocks are alike, and each falls in energy. What fills no block comes last.
    """
    falling = energy.argsort(descending=True, stable=True)
    blocks = len(falling) // WIDTH_MULTIPLE
    whole = falling[: blocks * WIDTH_MULTIPLE].view(WIDTH_MULTIPLE, blocks)
    return torch.cat((whole.t().reshape(-1), falling[blocks * WIDTH_MULTIPLE :]))


def lies_on_grid(model: Any, arch: Arch) -> bool:
    """Whether a model's numbers are those of a file type of few bits, as training on it leaves them.

    They would no longer be in another order: a block of such a type is inputs that follow each other.
    """
    with resident(arch.blocks(model)[0]) as block:
        matrix = arch.part(block, "up").weight.detach().cpu().numpy()
    return any(find_codes(matrix, GRIDS[kind]) for kind in GPTQ_TYPES)


def _name(index: int, part: str) -> str:
    return gguf_name(f"blocks.{index}.{part}.weight")


def _level(squares: Tensor) -> Tensor:
    """Logarithm of each input's energy, by which matrices of unlike scale count alike."""
    return (squares + 1e-12 * squares.mean() + 1e-30).log()
