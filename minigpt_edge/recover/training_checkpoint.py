"""What recovery keeps on disk while it trains, so that an interrupted run goes on from there."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.stages import parallel
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json, replacing, write_json

if TYPE_CHECKING:
    from torch import nn

WORK = ".recovery"  # inside `out` while it is being made: training checkpoints and the best weights
BEST = "best.safetensors"
PROGRESS = "recovery.json"  # written last into a training checkpoint: without it the checkpoint is not whole


@dataclass
class State:
    """What training remembers beyond the Trainer's own state; saved in every training checkpoint."""

    history: list[dict[str, Any]] = field(default_factory=list)
    best: float = float("inf")  # validation bits per byte
    best_step: int = 0
    worse: int = 0  # evaluations in a row without improvement
    seconds: float = 0.0  # spent so far, before any interruption too
    training_seconds: float = 0.0  # of these, in training steps


def work_folder(out: Path, key: dict[str, Any], resume: bool) -> Path:
    """The folder inside `out` where training keeps its checkpoints while `out` is being made.

    Args:
        key: what decides the result; an interrupted run is resumed only if it had the same.
        resume: keep what an interrupted run wrote.

    Raises:
        EdgeError: an interrupted run had another key.
    """
    work = out / WORK
    if parallel.rank():
        return parallel.broadcast(work)
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    saved = work / "key.json"
    if saved.exists() and read_json(saved) != key:
        raise EdgeError(
            f"the interrupted recovery in {out} had other settings or inputs",
            "run it with the same ones, or delete that folder to start again",
        )
    work.mkdir(parents=True, exist_ok=True)
    write_json(saved, key)
    return parallel.broadcast(work)


def last_checkpoint(work: Path, fork: Path | None = None) -> Path | None:
    """The newest whole training checkpoint, else the fork's; unfinished ones are deleted."""
    whole = []
    for folder in work.glob("checkpoint-*"):
        if (folder / PROGRESS).exists():
            whole.append(folder)
        else:
            shutil.rmtree(folder)
    if not whole and fork is not None and (fork / PROGRESS).exists():
        shutil.copyfile(fork / BEST, work / BEST)
        return fork
    return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def keep_fork(checkpoint: Path, work: Path, fork: Path) -> None:
    """Keep a training checkpoint, with the best weights so far, for recoveries that go on from it."""
    partial = fork.with_name(f"{fork.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(checkpoint, partial)
    shutil.copyfile(work / BEST, partial / BEST)
    partial.replace(fork)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's parameters by name (safetensors), tied ones once, whole or not at all.

    Every process that has a shard of the model has to call it; the first writes.
    """
    from safetensors.torch import save_file

    from minigpt_edge.recover.sharding import whole_weights

    weights = whole_weights(model)
    if parallel.rank() == 0:
        with replacing(path) as temporary:
            save_file({name: tensor.cpu().contiguous() for name, tensor in weights.items()}, temporary)


def load_weights(model: nn.Module, path: Path) -> None:
    """Read into a model, which may be sharded, what `save_weights` wrote."""
    from safetensors.torch import load_file

    from minigpt_edge.recover.sharding import put_weight

    for name, tensor in load_file(path).items():
        put_weight(model, name, tensor)
