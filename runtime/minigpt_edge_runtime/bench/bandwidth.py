"""How fast this machine reads memory: the ceiling of decoding, which reads every weight once per token."""

from __future__ import annotations

import time
from typing import Any

from minigpt_edge_runtime.cpus import pin
from minigpt_edge_runtime.device import memory_bytes

MEBIBYTE = 2**20
LARGEST = 256 * MEBIBYTE  # many times the last-level cache of anything a model is run on at home
PASSES = 8


def measure_bandwidth(threads: int) -> dict[str, Any]:
    """Read a buffer much larger than the caches with `threads` pinned threads, several times.

    numpy's maximum of int32 does it: vectorised, without the GIL, and limited by memory alone (a float64 sum
    reaches half of it).

    Returns:
        "samples", bytes per second of each pass, and the best as "read_bandwidth_bytes_per_second".
    """
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    pin(threads)
    size = max(min(LARGEST, (memory_bytes() or LARGEST) // 8), MEBIBYTE)
    share = size // threads // 4

    def fill(_: int) -> np.ndarray:
        """Made by the thread that reads it, so that its pages are near."""
        return np.ones(share, dtype=np.int32)

    samples = []
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(fill, range(threads)))
        for _ in range(PASSES):
            began = time.perf_counter()
            list(pool.map(np.max, parts))
            samples.append(round(threads * share * 4 / (time.perf_counter() - began)))
    return {"read_bandwidth_bytes_per_second": max(samples), "threads": threads, "samples": samples}
