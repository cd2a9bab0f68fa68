"""What `inspect.describe` found, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Description = dict[str, Any]


def render(description: Description, console: Console) -> None:
    """Print a description as tables; runs of equal blocks are one row."""
    from rich.table import Table

    console.print(
        f"{description['kind']} · {description['path']}", markup=False, highlight=False, soft_wrap=True
    )
    table = Table(show_header=False)
    for name, value in description["facts"].items():
        if value not in (None, "", []):
            table.add_row(name.replace("_", " "), _shown(value))
    console.print(table)
    if blocks := description.get("blocks"):
        names = [
            name for name in blocks[0] if name != "block" and any(b.get(name) is not None for b in blocks)
        ]
        table = Table("block", *(name.replace("_", " ") for name in names))
        for first, last, block in _runs(blocks, names):
            table.add_row(
                f"{first}" if first == last else f"{first}–{last}", *(_shown(block.get(n)) for n in names)
            )
        console.print(table)
    if types := description.get("tensor_types"):
        table = Table("type", "tensors", "parameters", "bytes")
        for name, record in types.items():
            table.add_row(name, *(_shown(record[column]) for column in ("tensors", "parameters", "bytes")))
        console.print(table)
    if operators := description.get("operators"):
        table = Table("operator", "nodes")
        for name, count in operators.items():
            table.add_row(name, _shown(count))
        console.print(table)
    for model in description.get("models", []):
        render(model, console)


def _runs(
    blocks: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> list[tuple[int, int, Mapping[str, Any]]]:
    runs: list[tuple[int, int, Mapping[str, Any]]] = []
    for i, block in enumerate(blocks):
        if runs and all(block.get(name) == runs[-1][2].get(name) for name in names):
            runs[-1] = (runs[-1][0], i, runs[-1][2])
        else:
            runs.append((i, i, block))
    return runs


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4f}"
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    return "" if value is None else str(value)
