"""Files of rows (csv, json, parquet, saved datasets): the texts of one column, and what to say of them."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.data import columns as of_columns
from minigpt_edge.data.columns import OBVIOUS, Column, choose_column, shorten
from minigpt_edge.data.decoding import decoded, open_text, readable
from minigpt_edge.data.dialects import SAMPLE, find_dialect, fitted, misfit, name_of, not_fitting, open_rows
from minigpt_edge_runtime.errors import EdgeError

if TYPE_CHECKING:
    import datasets

_BATCH = 1_000  # rows of a parquet file or dataset that are in memory at once
_FIRST = 100  # rows of all columns that the one is chosen by
_HEADER_CHARACTERS = 60  # of a column's name: more is a text


@dataclass
class Table:
    """Rows by column.

    Attributes:
        places: where each row is, such as "line 7"; empty where the number of a row says it.
    """

    columns: dict[str, Column] = field(default_factory=dict)
    count: int = 0
    places: list[int] = field(default_factory=list)
    place: str = "row"

    def add(self, row: dict[str, Any], keep: Sequence[str], number: int | None = None) -> None:
        """Append a row; of columns that are not to be kept, where any are named, the first values alone."""
        for name, value in row.items():
            column = self.columns.setdefault(name, Column())
            if keep and name not in keep and len(column.values) >= of_columns.SAMPLE:
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


def _taken(name: str, values: Iterable[str | None | type], table: Table) -> Rows:
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


def read_json_lines(path: Path, wanted: Sequence[str]) -> Rows:
    """A file with one JSON object a line; EdgeError that names the line that is not."""
    table = Table(place="line")
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                _add_object(table, _parsed(line, path, number), wanted, f"{path} line {number}", number)
    return _chosen(table, wanted, path)


def _parsed(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise EdgeError(f"{path} line {number} is not JSON ({error})", "one JSON object per line") from error


def _add_object(table: Table, row: Any, wanted: Sequence[str], where: str, number: int | None) -> None:
    if isinstance(row, str):
        row = {OBVIOUS: row}
    if not isinstance(row, dict):
        raise EdgeError(f"{where} is not a JSON object", 'one JSON object per row, such as {"text": …}')
    table.add(row, wanted, number)


def read_json(path: Path, wanted: Sequence[str]) -> Rows:
    """A file with a JSON list of objects, also as the only list of an object, or one object a line.

    Raises:
        NotRows: it is JSON, but holds no rows.
    """
    if _has_lines_of_objects(path):
        return read_json_lines(path, wanted)
    text, table = decoded(path), Table()
    try:
        start = re.compile(r"\s*").match(text).end()  # type: ignore[union-attr]
        rows = (
            _items(text, start + 1) if text[start : start + 1] == "[" else _only_list(json.loads(text), path)
        )
        for number, row in enumerate(rows, 1):
            _add_object(table, row, wanted, f"{path} row {number}", None)
    except (ValueError, RecursionError) as error:
        raise EdgeError(f"{path} is not JSON ({error})", "save it again, or as jsonl") from error
    return _chosen(table, wanted, path)


class NotRows(EdgeError):
    """A JSON file that holds something else than rows, such as settings."""


def _only_list(value: Any, path: Path) -> list[Any]:
    lists = [v for v in value.values() if isinstance(v, list) and v] if isinstance(value, dict) else []
    rows = [each for each in lists if isinstance(each[0], dict)]
    if len(rows) != 1:
        raise NotRows(
            f"{path} holds no list of rows", 'give a list of objects, or {"data": [{"text": …}, …]}'
        )
    return rows[0]


def _items(text: str, at: int) -> Iterator[Any]:
    """The items of a JSON list from behind its bracket, one at a time: all would take many times the text."""
    decoder, blank = json.JSONDecoder(), re.compile(r"[\s,]*")
    while True:
        at = blank.match(text, at).end()  # type: ignore[union-attr]
        if text[at : at + 1] == "]":
            if rest := text[at + 1 :].strip():
                raise ValueError(f"text behind the list: {rest[:20]!r}")
            return
        item, at = decoder.raw_decode(text, at)
        yield item


def _has_lines_of_objects(path: Path) -> bool:
    """Whether the first line is an object and more lines follow."""
    with open_text(path) as lines:
        first = next((line for line in lines if line.strip()), "")
        more = any(line.strip() for line in lines)
    try:
        return more and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def read_csv(path: Path, wanted: Sequence[str]) -> Rows:
    """A file with a header row and delimiters, in the dialect that fits all rows.

    Raises:
        EdgeError: none does, or the first row is no header; names the row.
    """
    try:
        return _csv_in(path, wanted, SAMPLE)
    except _Misfit:
        return _csv_in(path, wanted, None)


class _Misfit(EdgeError):
    """A row beyond the sample that the dialect does not fit."""


def _csv_in(path: Path, wanted: Sequence[str], most: int | None) -> Rows:
    dialect = find_dialect(path, most)
    table, header = Table(), None
    with open_rows(path) as (lines, _):
        try:
            for line, row in dialect.rows(lines):
                if header is None:
                    header = [name.strip() for name in row]
                    names = [name or f"column {n}" for n, name in enumerate(header, 1)]
                    _check_names(names, path)
                    continue
                fields = fitted(row, len(header))
                if fields is None:
                    raise csv.Error(not_fitting(table.count + 1, line, row, header))
                table.add(dict(zip(names, fields, strict=True)), wanted)
        except csv.Error as error:
            found = misfit(path, dialect, str(error))
            raise _Misfit(found.message, found.hint) from error
    if not wanted:
        _check_header(table, path)
    rows = _chosen(table, wanted, path)
    rows.about["delimiter"] = name_of(dialect)
    return rows


def _check_names(names: Sequence[str], path: Path) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise EdgeError(f"{path} has two columns {twice[0]!r}", "give each column a name of its own")


def _check_header(table: Table, path: Path) -> None:
    """EdgeError if a column's name is a text, or a number above numbers: there is no header row then."""
    for name, column in table.columns.items():
        is_text = len(name) > _HEADER_CHARACTERS or (
            of_columns.is_sentence(name) and (len(name.split()) > 5 or name[-1] in ".!?…。！？")
        )
        is_number = bool(re.fullmatch(r"[-+]?\d+([.,]\d+)?", name)) and (
            of_columns.describe(column)[0] in ("numbers", "nothing")
        )
        if is_text or is_number:
            raise EdgeError(
                f"the first row of {path} looks like data, not like a header: {shorten(name)}",
                "add a row of column names, such as text, above it; if it is the header, name the column "
                "with --text-column",
            )


def _chosen(table: Table, wanted: Sequence[str], path: Path) -> Rows:
    if not table.columns:
        return Rows([], {"rows": table.count, "used": 0})
    name = choose_column(table.columns, wanted, str(path))
    return _taken(name, table.columns[name].values, table)


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
    except (pa.ArrowException, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise EdgeError(f"{path} is not a whole saved dataset ({error})", "save it again") from error


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
    values = (of_columns.cell(v) for batch in batches([name]) for v in _values(batch.column(name)))
    return _taken(name, values, first)


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
