"""Several processes at one build, as `accelerate launch` and torchrun start them; gloo joins them.

A build that was started once has one process: everything here is then free and does nothing.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from minigpt_edge_runtime.engines.open import default_threads
from minigpt_edge_runtime.errors import EdgeError

LONGEST = timedelta(days=7)  # that one process waits for another, which may be exporting meanwhile
T = TypeVar("T")
_FSDP = "ACCELERATE_USE_FSDP"


def started() -> int:
    """How many processes the launcher started, by its environment variables."""
    return _number("WORLD_SIZE") if "RANK" in os.environ else 1


def on_this_machine() -> int:
    """How many of them share this machine's cores."""
    return _number("LOCAL_WORLD_SIZE") if "RANK" in os.environ else 1


def all_cores() -> int:
    """This process's share of the cores: all of them, or fewer where a launcher started several."""
    return max(1, default_threads() // on_this_machine())


def _number(variable: str) -> int:
    value = os.environ.get(variable, "")
    return max(1, int(value)) if value.isdigit() else 1


def wants_shards() -> bool:
    """Whether the launcher was asked for FSDP (`accelerate launch --use_fsdp`)."""
    return started() > 1 and os.environ.get(_FSDP, "").lower() in ("1", "true")


@contextmanager
def without_accelerates_shards() -> Iterator[None]:
    """Keep accelerate from FSDP of its own, which is for GPUs alone."""
    asked = os.environ.pop(_FSDP, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[_FSDP] = asked


@contextmanager
def joined() -> Iterator[None]:
    """Join the process group, if there are several processes."""
    if started() == 1:
        yield
        return
    from accelerate import PartialState

    PartialState(cpu=True, timeout=LONGEST)
    try:
        yield
    finally:
        leave()


def leave() -> None:
    """Leave the process group: what is left is for one process."""
    if group := _group():
        group.destroy_process_group()


def _group() -> Any:
    """torch.distributed where a process group is joined, else None; torch is not imported for it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    return torch.distributed


def processes() -> int:
    """How many processes work on this build."""
    group = _group()
    return int(group.get_world_size()) if group else 1


def rank() -> int:
    """Which of them this is; 0 is the one that logs and writes."""
    group = _group()
    return int(group.get_rank()) if group else 0


def broadcast(value: T) -> T:
    """The first process's value, in every process: JSON-able, or tensors. A barrier too.

    Raises:
        EdgeError: another process has ended.
    """
    group = _group()
    if not group:
        return value
    box = [value]
    _together(lambda: group.broadcast_object_list(box, src=0))
    return box[0]


def barrier() -> None:
    """Wait until every process is here; EdgeError if one has ended."""
    broadcast(None)


def all_reduce(*tensors: Any) -> None:
    """Sum tensors of equal shapes over the processes, in place.

    Raises:
        EdgeError: another process has ended.
    """
    if group := _group():
        for tensor in tensors:
            _together(lambda tensor=tensor: group.all_reduce(tensor))  # type: ignore[misc]


def _together(call: Callable[[], object]) -> None:
    try:
        call()
    except RuntimeError as error:  # gloo's, when a connection is closed
        hint = "its message says why; start the build again: finished stages stay"
        raise EdgeError("another process of this build has ended", hint) from error


def share(values: Any) -> Any:
    """This process's part of a sequence or of a tensor's rows: every n-th of n processes."""
    return values[rank() :: processes()]


@contextmanager
def own_folder(shared: Path) -> Iterator[Path]:
    """Where this process writes what all of them make: `shared` for the first, temporary ones for others."""
    if rank() == 0:
        yield shared
        barrier()  # the others have removed their folders
        return
    folder = shared / f"process-{rank()}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
    barrier()


def process_setting() -> dict[str, int]:
    """The number of processes as a setting, since it changes how sums round; nothing for one."""
    count = processes()
    return {"processes": count} if count > 1 else {}
