"""JSON files with rows: one object a line, or a list of objects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from minigpt_edge.data.columns import OBVIOUS
from minigpt_edge.data.decoding import decoded, open_text
from minigpt_edge.data.rows import Rows, Table, chosen_texts
from minigpt_edge_runtime.errors import EdgeError


def read_json_lines(path: Path, wanted: Sequence[str]) -> Rows:
    """A file with one JSON object a line, or one list of them; EdgeError that names the line that is not."""
    if _first_line(path)[0].lstrip().startswith("["):
        return _read_whole(path, wanted)
    table = Table(place="line")
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                _add_object(table, _parsed(line, path, number), wanted, f"{path} line {number}", number)
    return chosen_texts(table, wanted, path)


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
    first, more = _first_line(path)
    try:
        are_lines = more and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        are_lines = False
    return (read_json_lines if are_lines else _read_whole)(path, wanted)


def _read_whole(path: Path, wanted: Sequence[str]) -> Rows:
    """One JSON value: a list of objects, or an object with one such list."""
    text, table = decoded(path), Table()
    try:
        start = len(text) - len(text.lstrip())
        is_list = text.startswith("[", start)
        rows = _items(text, start + 1) if is_list else _only_list(json.loads(text), path)
        for number, row in enumerate(rows, 1):
            _add_object(table, row, wanted, f"{path} row {number}", None)
    except (ValueError, RecursionError) as error:
        hint = "save it again, as one list of objects, or as one object per line"
        raise EdgeError(f"{path} is not JSON ({error})", hint) from error
    return chosen_texts(table, wanted, path)


class NotRows(EdgeError):
    """A JSON file that holds something else than rows, such as settings."""


def _only_list(value: Any, path: Path) -> list[Any]:
    lists = [v for v in value.values() if isinstance(v, list) and v] if isinstance(value, dict) else []
    rows = [each for each in lists if isinstance(each[0], dict)]
    if len(rows) != 1:
        what = f"{len(rows)} lists of rows, so it is not known which" if rows else "no list of rows"
        raise NotRows(f"{path} holds {what}", 'give a list of objects, or {"data": [{"text": …}, …]}')
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


def _first_line(path: Path) -> tuple[str, bool]:
    """The first line that is not blank, and whether there are others."""
    with open_text(path) as lines:
        filled = (line for line in lines if line.strip())
        return next(filled, ""), any(filled)
