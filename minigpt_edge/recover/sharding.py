"""FSDP: weights, gradients and optimizer state in shards over the processes (arXiv 2304.11277).

Import this module inside functions: it needs torch at its head.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253
from torch.distributed.checkpoint.state_dict import (  # noqa: TID253
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor  # noqa: TID253

from minigpt_edge.models import archs
from minigpt_edge.stages import parallel

OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def shard(objective: Any) -> None:
    """Shard an `objective.Objective` in place.

    Each block is whole in memory only while it computes; embedding, last norm and head are one more unit.
    """
    from torch.distributed.fsdp import fully_shard

    model = objective.model
    for block in archs.load_arch(model.config).blocks(model):
        fully_shard(block)
    fully_shard(objective)
    objective.is_distributed_loading_by_transformers = True  # the Trainer leaves averaging to the module


def is_sharded(model: nn.Module) -> bool:
    """Whether a model's weights are in shards."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters by name, tied ones once, whole; every process has to ask."""
    found = {}
    for name, parameter in model.named_parameters():
        held: Any = parameter.detach()
        found[name] = held.full_tensor() if isinstance(held, DTensor) else held
    return found


def put_weight(model: nn.Module, name: str, value: Tensor) -> None:
    """Give a parameter, in shards or not, the values of a whole tensor."""
    held = model.get_parameter(name).data
    if isinstance(held, DTensor):
        value = distribute_tensor(value.to(held.dtype), held.device_mesh, held.placements)
    held.copy_(value)


def save_optimizer(trainer: Any, folder: Path) -> None:
    """Write the state of a sharded model's optimizer, gathered from every process, and of its scheduler."""
    state = get_optimizer_state_dict(trainer.model, trainer.optimizer.optimizer, options=WHOLE)
    if parallel.rank() == 0:
        torch.save(state, folder / OPTIMIZER)
        torch.save(trainer.lr_scheduler.state_dict(), folder / SCHEDULER)


def load_optimizer(trainer: Any, folder: Path) -> None:
    """Read what `save_optimizer` wrote."""
    state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
    set_optimizer_state_dict(trainer.model, trainer.optimizer.optimizer, state, options=WHOLE)
    trainer.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER, weights_only=True))
