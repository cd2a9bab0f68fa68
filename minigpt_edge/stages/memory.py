"""How much memory there is, and refusing what is estimated to need more.

The estimates are in `prune.memory` and `recover.memory`. They add up what is in memory at once: weights,
streams of hidden states, second moments, the training step. They were fitted to measured peaks
(docs/reliability.md) and lean to the high side.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from minigpt_edge_runtime.errors import EdgeError

PROCESS = 900 << 20  # torch, transformers and what they load
_CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def available() -> int:
    """Bytes that this process may still take, swap left out."""
    import psutil

    free = int(psutil.virtual_memory().available)
    for path in _CGROUPS:
        with suppress(OSError, ValueError):  # "max" is no number
            free = min(free, int(path.read_text()) - psutil.Process().memory_info().rss)
    return free


def check(needed: int, limit: int | None, what: str, hint: str) -> None:
    """EdgeError if `what` needs more than the `limit`, or where there is none, than is available."""
    there = available() if limit is None else limit
    if needed > there:
        room = "--max-memory allows" if limit is not None else "are free"
        raise EdgeError(
            f"{what} needs about {needed / 2**30:.1f} GiB of memory, {there / 2**30:.1f} GiB {room}",
            hint,
        )
