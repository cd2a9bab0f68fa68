"""Parquet files, datasets in memory, and those that `datasets` saved or keeps in its cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.data.columns import Column, cell, choose_column
from minigpt_edge.data.decoding import readable
from minigpt_edge.data.rows import Rows, Table, texts_of
from minigpt_edge_runtime.errors import EdgeError

if TYPE_CHECKING:
    import datasets

_BATCH = 1_000  # rows that are in memory at once
_FIRST = 100  # rows of all columns that the one is chosen by
# What `datasets` raises for a damaged file, beside errors of arrow.
_UNSOUND = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


def read_parquet(path: Path, wanted: Sequence[str]) -> Rows:
    """A parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with readable(path), pq.ParquetFile(path) as file:
            count, names = file.metadata.num_rows, file.schema_arrow.names
            first = _first_table(names, file.iter_batches(_FIRST), count, {})
            return _read_batches(
                first, lambda names: file.iter_batches(_BATCH, columns=names), wanted, str(path)
            )
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise EdgeError(
            f"{path} is not a whole parquet file ({error})", "download or save it again"
        ) from error


def read_saved_dataset(path: Path, wanted: Sequence[str]) -> Rows:
    """A folder that `datasets.Dataset.save_to_disk` wrote."""
    import datasets
    import pyarrow as pa

    try:
        with readable(path):
            rows = datasets.load_from_disk(str(path))
            return read_dataset(rows, wanted, str(path))
    except (pa.ArrowException, *_UNSOUND) as error:
        raise EdgeError(f"{path} is not a whole saved dataset ({error})", "save it again") from error


def read_arrow(path: Path, wanted: Sequence[str]) -> Rows:
    """An arrow file of a dataset, as `datasets` keeps them in its cache."""
    import datasets
    import pyarrow as pa

    try:
        with readable(path):
            return read_dataset(datasets.Dataset.from_file(str(path)), wanted, str(path))
    except (pa.ArrowException, *_UNSOUND) as error:
        raise EdgeError(f"{path} is not a whole arrow file ({error})", "save it again") from error


def read_dataset(rows: datasets.Dataset, wanted: Sequence[str], where: str) -> Rows:
    """A dataset in memory or on disk."""
    first = _first_of_dataset(rows)
    return _read_batches(first, lambda names: _batches(rows, names, _BATCH), wanted, where)


def dataset_column(rows: datasets.Dataset, name: str, where: str) -> list[str | None]:
    """All values of a column that holds text."""
    values: list[str | None] = rows[choose_column(_first_of_dataset(rows).columns, [name], where)][:]
    return values


def _first_of_dataset(rows: datasets.Dataset) -> Table:
    import datasets

    labels = {
        name: kind.names for name, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)
    }
    return _first_table(rows.column_names, _batches(rows, None, _FIRST), rows.num_rows, labels)


def _batches(rows: datasets.Dataset, names: list[str] | None, size: int) -> Iterator[Any]:
    chosen = rows if names is None else rows.select_columns(names)
    return iter(chosen.with_format("arrow").iter(size))


def _first_table(
    names: Sequence[str], batches: Iterable[Any], count: int, labels: dict[str, Sequence[str]]
) -> Table:
    """The first rows of arrow batches; `labels` of columns with numbers that stand for names."""
    table = Table({name: Column(labels=labels.get(name, ())) for name in names}, count)
    for batch in batches:  # all of them only where a column has nothing in the first ones
        for name, column in table.columns.items():
            if column.example is None:
                column.values.clear()
                for value in _values(batch.column(name), few=True):
                    column.add(value)
        if all(column.example is not None for column in table.columns.values()):
            break
    return table


def _read_batches(
    first: Table, batches: Callable[[list[str]], Iterable[Any]], wanted: Sequence[str], where: str
) -> Rows:
    """The texts of arrow batches: the column is chosen by the first one, then read alone."""
    if not first.columns or not first.count:
        return Rows([], {"rows": first.count, "used": 0})
    name = choose_column(first.columns, wanted, where)
    values = (cell(v) for batch in batches([name]) for v in _values(batch.column(name)))
    return texts_of(name, values, first)


def _values(column: Any, *, few: bool = False) -> list[Any]:
    """The Python values of an arrow column; `few` of what is nested or bytes, which may be pictures."""
    import pyarrow as pa

    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return [type(kind)] * min(len(column), 5)
    flat = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if few and not flat and not pa.types.is_dictionary(kind):
        column = column.slice(0, 5)
    return list(column.to_pylist())
