"""Rows by column: the texts of the column that holds them, and what to say of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minigpt_edge.data.columns import SAMPLE, Column, choose_column


@dataclass
class Table:
    """Rows by column.

    Attributes:
        places: the line of each row; empty where rows are counted instead.
        place: what says where a row is, "row" or "line".
    """

    columns: dict[str, Column] = field(default_factory=dict)
    count: int = 0
    places: list[int] = field(default_factory=list)
    place: str = "row"

    def add(self, row: dict[str, Any], keep: Sequence[str], number: int | None = None) -> None:
        """Append a row; of columns that are not to be kept, where any are named, the first values alone."""
        for name, value in row.items():
            column = self.columns.setdefault(name, Column())
            if keep and name not in keep and len(column.values) >= SAMPLE:
                continue
            column.values += [None] * (self.count - len(column.values))
            column.add(value)
        self.count += 1
        if number is not None:
            self.places.append(number)


@dataclass
class Rows:
    """The texts of a file's rows.

    Attributes:
        about: "column", "columns", "delimiter" where there is one, "rows", "used", "skipped" (reason -> rows)
            and "first" (reason -> where the first one is).
    """

    texts: list[str]
    about: dict[str, Any]


def texts_of(name: str, values: Iterable[str | None | type], table: Table) -> Rows:
    """The texts among a column's values, and how many rows have none for which reason."""
    texts: list[str] = []
    skipped: Counter[str] = Counter()
    first: dict[str, str] = {}
    count = 0
    for count, value in enumerate(values, 1):
        if isinstance(value, str) and value.strip():
            texts.append(value)
            continue
        why = "null" if value is None else "empty" if isinstance(value, str) else "not text"
        number = table.places[count - 1] if table.places else count
        first.setdefault(why, f"{table.place} {number}")
        skipped[why] += 1
    missing = max(0, table.count - count)  # rows behind the last one that has the column
    if missing:
        skipped["null"] += missing
    about = {"column": name, "columns": list(table.columns), "rows": count + missing, "used": len(texts)}
    return Rows(texts, {**about, "skipped": dict(skipped), "first": first})


def chosen_texts(table: Table, wanted: Sequence[str], path: Path) -> Rows:
    if not table.columns:
        return Rows([], {"rows": table.count, "used": 0})
    name = choose_column(table.columns, wanted, str(path))
    return texts_of(name, table.columns[name].values, table)
