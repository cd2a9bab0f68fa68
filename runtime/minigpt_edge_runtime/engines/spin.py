"""How long threads spin at a barrier before they sleep, for GNU OpenMP: torch and llama.cpp both use it.

By default they spin for so long that on a machine in use, where a thread waits for its turn, the others burn
the time that it waits for.
"""

from __future__ import annotations

from collections.abc import MutableMapping

COUNT = "GOMP_SPINCOUNT"
POLICY = "OMP_WAIT_POLICY"
SET_HERE = "MINIGPT_EDGE_SPINS"  # says that the count is not the user's
BRIEFLY = "1000"  # measured: docs/decisions.md 53


def spin_briefly(environment: MutableMapping[str, str]) -> None:
    """Have threads sleep soon: for long work whose time is not what is measured.

    The libraries read this when they are loaded. What a user has set stays.
    """
    if COUNT not in environment and POLICY not in environment:
        environment[COUNT] = environment[SET_HERE] = BRIEFLY


def spin_as_usual(environment: MutableMapping[str, str]) -> None:
    """Take `spin_briefly` back: speed is measured the way other programs run the file."""
    if environment.pop(SET_HERE, None):
        environment.pop(COUNT, None)
