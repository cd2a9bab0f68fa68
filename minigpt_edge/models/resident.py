"""Blocks whose weights are on disk until they are used, so that memory holds one block and not the model.

A model that was loaded so computes as any other in forward passes: hooks read each block and drop it again.
Code that works on a block's tensors does so inside `resident`, and calls `write_back` if it changed them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch  # noqa: TID253 - imported where models are loaded only
from torch import nn  # noqa: TID253

from minigpt_edge.models.archs.base import Arch
from minigpt_edge.stages.device import here
from minigpt_edge_export.architectures.base import BUFFERS
from minigpt_edge_export.weights import WEIGHTS, Weights
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import need_space, os_error, write_json

SHARD = "model-{:05d}-of-{:05d}.safetensors"  # transformers names shards so.
INDEX = f"{WEIGHTS}.index.json"


class OnDisk:
    """Where one block's weights are.

    Attributes:
        changed: folder for the weights of a block that is no longer as it was read; None for read-only ones.
        path: of those weights, once there are some.
    """

    def __init__(self, arch: Arch, head_dim: int, index: int, weights: Weights, changed: Path | None) -> None:
        self.arch, self.head_dim, self.weights = arch, head_dim, weights
        self.prefix = f"{arch.blocks_path}.{index}."
        self.changed, self.path = changed, None if changed is None else changed / f"block-{index}.safetensors"

    def load(self, block: nn.Module) -> None:
        """Give the block its weights, float32; biases that it has got since it was read are zero.

        Raises:
            EdgeError: the weights do not fit the block.
        """
        names = [n for n in self.weights.shapes if n.startswith(self.prefix) and not BUFFERS.search(n)]
        stored = {name: here(torch.from_numpy(self.weights.load(name))) for name in names}
        found = self.arch.from_stored(stored, self.head_dim)
        state = {name.removeprefix(self.prefix): tensor for name, tensor in found.items()}
        for name, parameter in block.named_parameters():
            if name.endswith("bias") and name not in state:
                state[name] = torch.zeros(parameter.shape)
        try:
            block.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise EdgeError(f"the weights {self.prefix}* do not fit the config.json ({error})") from error

    def write(self, block: nn.Module) -> None:
        """Write the block as it is now; from now on these are its weights."""
        from safetensors.torch import save_file

        if self.path is None:
            raise ValueError("the model was loaded for reading")
        state = {self.prefix + name: tensor.detach() for name, tensor in block.state_dict().items()}
        stored = {n: t.cpu().contiguous() for n, t in self.arch.to_stored(state, self.head_dim).items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        need_space(self.path.parent, sum(t.nbytes for t in stored.values()), "a pruned block")
        try:
            save_file(stored, self.path, {"format": "pt"})
        except OSError as error:
            raise os_error(error, self.path) from error
        self.weights = Weights([self.path])


def offload_blocks(model: Any, arch: Arch, head_dim: int, weights: Weights, changed: Path | None) -> None:
    """Let the blocks of a model, whose tensors are on the meta device, read their weights when needed."""
    for index, block in enumerate(arch.blocks(model)):
        block.on_disk = OnDisk(arch, head_dim, index, weights, changed)
        block.register_forward_pre_hook(lambda block, _: block.on_disk.load(block))
        block.register_forward_hook(lambda block, _, __: block.to("meta") and None)


def is_offloaded(model: Any, arch: Arch) -> bool:
    """Whether the model's blocks are read when they are needed."""
    return hasattr(arch.blocks(model)[0], "on_disk")


@contextmanager
def resident(block: Any) -> Iterator[Any]:
    """The block with its weights in memory inside the context; changes are lost without `write_back`."""
    source: OnDisk | None = getattr(block, "on_disk", None)
    if source is None:
        yield block
        return
    source.load(block)
    try:
        yield block
    finally:
        block.to("meta")


def write_back(block: Any) -> None:
    """Make what a resident block is now its content from now on."""
    if source := getattr(block, "on_disk", None):
        source.write(block)


def offload(block: Any, tensors: list[torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
    """Put tensors where the block's weights are, in memory or on disk; what is returned gives them again."""
    from safetensors.torch import load_file, save_file

    source: OnDisk | None = getattr(block, "on_disk", None)
    if source is None or source.path is None:
        return lambda: tensors
    path, count = source.path.with_suffix(".by"), len(tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    need_space(path.parent, sum(tensor.nbytes for tensor in tensors), "what a block was measured by")
    save_file({str(index): tensor.cpu().contiguous() for index, tensor in enumerate(tensors)}, path)

    def read() -> list[torch.Tensor]:
        stored = load_file(path)
        return [here(stored[str(index)]) for index in range(count)]

    return read


def write_shards(model: Any, arch: Arch, rest: dict[str, torch.Tensor], directory: Path) -> None:
    """Write a model whose blocks are on disk as shards, the first of them being all but the blocks.

    Args:
        rest: the stored tensors that belong to no block.
    """
    from safetensors.torch import save_file

    blocks = arch.blocks(model)
    total, size, places = len(blocks) + 1, 0, dict[str, str]()
    save_file(rest, directory / SHARD.format(1, total), {"format": "pt"})
    for index, block in enumerate(blocks):
        source: OnDisk = block.on_disk
        if source.path is None or not source.path.exists():  # The block is as it was read.
            with resident(block):
                source.write(block)
        source.path.replace(directory / SHARD.format(index + 2, total))  # type: ignore[union-attr]
        source.weights = Weights([directory / SHARD.format(index + 2, total)])
    for number in range(1, total + 1):
        name = SHARD.format(number, total)
        places |= dict.fromkeys(Weights([directory / name]).shapes, name)
        size += (directory / name).stat().st_size
    (directory / WEIGHTS).unlink(missing_ok=True)  # It would be read in place of the shards.
    write_json(directory / INDEX, {"metadata": {"total_size": size}, "weight_map": places})
    if changed := blocks[0].on_disk.changed:
        shutil.rmtree(changed, ignore_errors=True)
