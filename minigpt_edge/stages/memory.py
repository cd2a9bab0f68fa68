"""How much memory there is, and refusing what is estimated to need more.

The estimates are in `prune.memory` and `recover.memory`. They add up what is in memory at once: weights,
streams of hidden states, second moments, the training step. They were fitted to measured peaks
(docs/reliability.md) and lean to the high side.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from minigpt_edge.stages.device import free_memory
from minigpt_edge_runtime.errors import EdgeError

PROCESS = 900 << 20  # torch, transformers and what they load
# Parameters of glibc's mallopt (malloc.h), and what it comes to by itself where large blocks are freed.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_KEEP = {_TRIM_THRESHOLD: -1, _MMAP_MAX: 0}
_USUAL = {_TRIM_THRESHOLD: 64 << 20, _MMAP_THRESHOLD: 32 << 20, _MMAP_MAX: 65_536}
_CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def available() -> int:
    """Bytes that this process may still take of what is computed on: an accelerator's memory, or the
    processor's, swap left out."""
    import psutil

    if (on_device := free_memory()) is not None:
        return on_device
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


@contextmanager
def keep_freed() -> Iterator[None]:
    """Have this process keep what it frees, for work that takes the same memory again at every step.

    glibc gives large blocks back to the system at once, and to get them anew, as zeroed pages, took an eighth
    of a training step (docs/decisions.md 55). Other C libraries are left as they are.
    """
    try:
        _mallopt(_KEEP)
        yield
    finally:
        _mallopt(_USUAL)
        give_back()


def _mallopt(values: dict[int, int]) -> None:
    with suppress(OSError, AttributeError, TypeError):  # glibc alone has it
        library = ctypes.CDLL(None)
        for parameter, value in values.items():
            library.mallopt(parameter, value)


def give_back() -> None:
    """Give freed memory back to the system."""
    with suppress(OSError, AttributeError, TypeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
