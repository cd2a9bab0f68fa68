"""Readers of files and folders: each gives documents (plain text)."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import os_error

DIVIDE_ABOVE = 32_000  # bytes: a longer text file is a book, not a document, and could not be split
PIECE = 16_000  # bytes of each part it is divided into
_NUMBER = re.compile(r"\s*([-+]?[\d.,]+([eE][-+]?\d+)?)?\s*")


def read_files(path: Path, text_column: str | None = None) -> list[str]:
    """The documents of a file, or of every file of a known kind in a folder and the folders in it.

    A txt or md file is one document (longer than 32,000 bytes: parts of up to 16,000, cut at blank lines);
    jsonl, csv and parquet have one per row.

    Raises:
        EdgeError: missing, empty, binary, not UTF-8, of an unknown kind, damaged, or without the text column.
    """
    if not path.exists():
        raise EdgeError(
            f"{path} does not exist", "give a text file, a folder, or a hub dataset id (org/name)"
        )
    known = f"known kinds: {', '.join(READERS)}"
    files = [path]
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if _is_readable(file, path)]
        if not files:
            raise EdgeError(f"{path} holds no text files", known)
    elif path.suffix.lower() not in READERS:
        raise EdgeError(f"{path}: files of kind {path.suffix or 'without a suffix'} are not read", known)
    documents: list[str] = []
    for file in files:
        try:
            documents += READERS[file.suffix.lower()](file, text_column)
        except OSError as error:
            raise os_error(error, file) from error
    if not any(document.strip() for document in documents):
        raise EdgeError(f"{path} is empty: there is no text in it", "give files with text")
    return documents


def _is_readable(file: Path, folder: Path) -> bool:
    """Whether it is a file of a known kind that is not hidden and in no hidden folder."""
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and file.suffix.lower() in READERS and file.is_file()


def decoded(path: Path) -> str:
    """A file's text, "\\r\\n" and "\\r" as "\\n"; EdgeError that says where it is not UTF-8 text."""
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        hint = f"convert it: iconv -f UTF-16 -t UTF-8 {path.name} > {path.stem}.utf8{path.suffix}"
        raise EdgeError(f"{path} is encoded in UTF-16, not UTF-8", hint)
    if (zero := data.find(b"\0")) >= 0:
        raise EdgeError(f"{path} is binary: there is a zero byte at offset {zero:,}", "give text files")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        offset = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        new = f"{path.stem}.utf8{path.suffix}"
        hint = f"convert it, for example: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > {new}"
        raise EdgeError(
            f"{path} is not UTF-8: byte 0x{data[offset]:02x} at offset {offset:,}", hint
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _text(path: Path, text_column: str | None) -> list[str]:
    return divide(decoded(path))


def divide(text: str) -> list[str]:
    """A text as it is, or, if it is longer than `DIVIDE_ABOVE` bytes, as parts of up to `PIECE` bytes.

    Parts end at blank lines where there are any, else at line ends; nothing is lost.
    """
    if _bytes(text) <= DIVIDE_ABOVE:
        return [text]
    parts: list[str] = []
    part, size = "", 0
    for paragraph in re.split(r"(?<=\n)(?=\n)", text):
        for line in paragraph.splitlines(keepends=True) if _bytes(paragraph) > PIECE else [paragraph]:
            if part and size + _bytes(line) > PIECE:
                parts.append(part)
                part, size = "", 0
            part, size = part + line, size + _bytes(line)
    return [*parts, part]


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _jsonl(path: Path, text_column: str | None) -> list[str]:
    rows = []
    for number, line in enumerate(decoded(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise EdgeError(
                f"{path} line {number} is not JSON ({error})", "one JSON object per line"
            ) from error
        if not isinstance(row, dict):
            raise EdgeError(f"{path} line {number} is not a JSON object", "one JSON object per line")
        rows.append(row)
    return _column(rows, text_column, path)


def _csv(path: Path, text_column: str | None) -> list[str]:
    csv.field_size_limit(1 << 30)
    try:
        reader = csv.DictReader(io.StringIO(decoded(path), newline=""), strict=True)
        rows: list[dict[str, Any]] = [{name: row[name] for name in row if name is not None} for row in reader]
    except csv.Error as error:
        raise EdgeError(
            f"{path} is not readable as CSV: {error}", "save it again as CSV with a header row"
        ) from error
    for name in reader.fieldnames or ():
        if all(_NUMBER.fullmatch(row.get(name) or "") for row in rows):  # CSV knows no types
            rows = [{**row, name: 0} for row in rows]
    return _column(rows, text_column, path)


def _column(rows: list[dict[str, Any]], text_column: str | None, path: Path) -> list[str]:
    """The texts of rows, where rows may lack columns that others have."""
    columns: dict[str, bool] = {}  # name -> every value is a string
    for row in rows:
        for name, value in row.items():
            columns[name] = columns.get(name, True) and isinstance(value, str | None)
    if not columns:
        return []
    chosen = choose_column(columns, text_column, str(path))
    return [row[chosen] for row in rows if row.get(chosen)]


def choose_column(columns: dict[str, bool], wanted: str | None, where: str) -> str:
    """The column that holds the text: the wanted one, else "text", else the only one of strings.

    Args:
        columns: name -> whether its values are strings.

    Raises:
        EdgeError: there is no such column, it holds no strings, or several could be meant.
    """
    listed = ", ".join(columns)
    strings = [name for name, is_string in columns.items() if is_string]
    if wanted is not None:
        if wanted not in columns:
            raise EdgeError(f"{where} has no column {wanted!r}", f"its columns: {listed}")
        if wanted not in strings:
            raise EdgeError(
                f"column {wanted!r} of {where} does not hold text", f"columns with text: {', '.join(strings)}"
            )
        return wanted
    if "text" in strings:
        return "text"
    if len(strings) != 1:
        raise EdgeError(
            f"{where} has {len(strings)} columns that could hold the text",
            f"name one with --text-column; its columns: {listed}",
        )
    return strings[0]


def _parquet(path: Path, text_column: str | None) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        strings = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
        columns = {field.name: any(test(field.type) for test in strings) for field in file.schema_arrow}
        chosen = choose_column(columns, text_column, str(path))
        return [text for text in file.read(columns=[chosen])[chosen].to_pylist() if text]
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise EdgeError(
            f"{path} is not a whole parquet file ({error})", "download or save it again"
        ) from error


Reader = Callable[[Path, str | None], list[str]]
READERS: dict[str, Reader] = {
    ".txt": _text,
    ".md": _text,
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}
