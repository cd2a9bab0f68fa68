"""How much of a file is stored in which type."""

from __future__ import annotations

from collections.abc import Iterable


def by_type(tensors: Iterable[tuple[str, int, int]]) -> dict[str, dict[str, int]]:
    """Type -> {"tensors", "parameters", "bytes"}, from the type, elements and bytes of every tensor."""
    totals: dict[str, dict[str, int]] = {}
    for kind, elements, size in tensors:
        total = totals.setdefault(kind, {"tensors": 0, "parameters": 0, "bytes": 0})
        total["tensors"] += 1
        total["parameters"] += elements
        total["bytes"] += size
    return totals
