"""CSV files with a header row, in the dialect that fits all rows."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from minigpt_edge.data.columns import describe, is_sentence, shorten
from minigpt_edge.data.dialects import (
    DELIMITERS,
    SAMPLE,
    find_dialect,
    fitted,
    misfit,
    name_of,
    not_fitting,
    open_rows,
)
from minigpt_edge.data.rows import Rows, Table, chosen_texts
from minigpt_edge_runtime.errors import EdgeError

_STRANGE = re.compile(r"[^\w .()'?!-]|  ")  # in a name: a delimiter, or a table made of spaces
_HEADER_CHARACTERS = 60  # of a column's name: more is a text


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
        if name_of(dialect) is None and header and _STRANGE.search(header[0]):
            raise EdgeError(
                f"{path} has one column, {header[0]!r}: what parts its fields is not known",
                f"known: {', '.join(DELIMITERS.values())}; if it is one column, name it with --text-column",
            )
    rows = chosen_texts(table, wanted, path)
    rows.about["delimiter"] = name_of(dialect)
    return rows


def _check_names(names: Sequence[str], path: Path) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        hint = "give each column a name of its own, in a row above the data"
        raise EdgeError(f"{path} has two columns {twice[0]!r}", hint)


def _check_header(table: Table, path: Path) -> None:
    """EdgeError if a column's name is a text, or a number above numbers: there is no header row then."""
    for name, column in table.columns.items():
        few = len(name.split()) <= 5 and name[-1] not in ".!?…。！？" and len(table.columns) > 1
        is_text = len(name) > _HEADER_CHARACTERS or (is_sentence(name) and not few)
        is_number = bool(re.fullmatch(r"[-+]?\d+([.,]\d+)?", name))
        if is_text or (is_number and describe(column)[0] in ("numbers", "nothing")):
            raise EdgeError(
                f"the first row of {path} looks like data, not like a header: {shorten(name)}",
                "add a row of column names, such as text, above it; if it is the header, name the column "
                "with --text-column",
            )
