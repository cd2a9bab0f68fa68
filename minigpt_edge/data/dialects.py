"""How a CSV file is written: parsed in every plausible way, and the one that fits its header is taken."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TextIO

from minigpt_edge.data.decoding import open_text
from minigpt_edge_runtime.errors import EdgeError

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
SAMPLE = 1 << 20  # characters that a dialect is chosen by; the whole file where it does not fit the rest
_ALONE = "\x1f"  # parts the fields of a file that has one column: it is in no text
_SEP = re.compile(r'"?sep=(.)"?\r?\n?', re.IGNORECASE)  # the first line that Excel writes for itself
_SAVE = (
    "the first row has to name the columns, and texts that hold the delimiter or a line end have to be in "
    "quotes; or save the rows as jsonl"
)


@dataclass(frozen=True)
class Dialect:
    """What parts fields and what quotes them, None where nothing does; whether a backslash keeps a quote."""

    delimiter: str
    quote: str | None = '"'
    escaped: bool = False

    def rows(self, lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
        """(number of its last line, fields) of every row that is not blank; csv.Error if one is not sound."""
        csv.field_size_limit(1 << 30)
        reader = csv.reader(
            lines,
            delimiter=self.delimiter,
            quotechar=self.quote or '"',
            quoting=csv.QUOTE_MINIMAL if self.quote else csv.QUOTE_NONE,
            escapechar="\\" if self.escaped else None,
            skipinitialspace=True,
            strict=True,
        )
        for row in reader:
            if any(row):
                yield reader.line_num, row


# The usual first: doubled quotes, a backslash before a quote, single quotes, none at all.
_QUOTINGS: tuple[tuple[str | None, bool], ...] = (('"', False), ('"', True), ("'", False), (None, False))


@dataclass
class Trial:
    """What came of parsing a file, or its beginning, in one way.

    Attributes:
        header: its first row.
        rows: how many others.
        widths: how many fields they have.
        good: how many of them fit the header before the first that does not.
        first: what is wrong with that one, "" if all fit.
        broken: whether the quotes went wrong, so that nothing behind that is known.
    """

    dialect: Dialect
    header: list[str]
    rows: int = 0
    widths: set[int] = field(default_factory=set)
    good: int = 0
    first: str = ""
    broken: bool = False


def fitted(row: list[str], width: int) -> list[str] | None:
    """The fields of a row, without empty ones beyond the header's; None if there are more or fewer."""
    return row[:width] if len(row) >= width and not any(row[width:]) else None


def find_dialect(path: Path, most: int | None = SAMPLE) -> Dialect:
    """The dialect that all rows of a file fit, or of its first `most` characters.

    Several delimiters fit: the one whose quoting is the usual, then the one with more columns. One column is
    taken only if no delimiter parts the header.

    Raises:
        EdgeError: no dialect fits; says which row is the first that does not, in the one that fits best.
    """
    with open_rows(path) as (lines, named):
        first = next(lines, "")
    quotings = [each for each in _QUOTINGS if each[0] != "'" or first.startswith("'")]
    delimiters = [named] if named else [each for each in DELIMITERS if each in first]
    trials = _try_all(path, delimiters, quotings, most)
    wide = [trial for trial in trials if len(trial.header) > 1]
    if not wide:
        _refuse_unnamed_columns(path, most)
        wide = _try_all(path, [_ALONE], quotings, most)
    fitting = [trial for trial in wide if not trial.first]
    if not fitting:
        best = max(wide, key=lambda trial: trial.good, default=None)
        if best is None:
            raise EdgeError(f"{path} is empty: there is no row in it", "give files with text")
        raise misfit(path, best.dialect, best.first)
    best = min(fitting, key=lambda t: (quotings.index((t.dialect.quote, t.dialect.escaped)), -len(t.header)))
    # Where quotes join lines that fit the header one by one, they belong to the texts.
    plain = next((t for t in fitting if t.dialect == Dialect(best.dialect.delimiter, None)), best)
    return plain.dialect if plain.rows > best.rows else best.dialect


def _refuse_unnamed_columns(path: Path, most: int | None) -> None:
    """EdgeError if the header has one field and all rows have as many others, as R writes row names."""
    for trial in _try_all(path, list(DELIMITERS), _QUOTINGS[:1], most):
        width = max(trial.widths, default=0)
        if trial.rows > 1 and trial.widths == {width} and width > 1 and not trial.broken:
            raise EdgeError(
                f"{path} is not readable as CSV: its first row has 1 field, every other row has {width}, "
                f"separated by {name_of(trial.dialect)}s",
                "the first row has to name every column: add names that are missing, put texts that hold the "
                "delimiter in quotes, or remove lines above the header",
            )


def misfit(path: Path, dialect: Dialect, what: str) -> EdgeError:
    """The error for a row that does not fit the header of a file."""
    parted = f", fields separated by {name_of(dialect)}s" if name_of(dialect) else ""
    return EdgeError(f"{path} is not readable as CSV{parted}: {what}", _SAVE)


def name_of(dialect: Dialect) -> str | None:
    """What its delimiter is called; None for one column."""
    return None if dialect.delimiter == _ALONE else DELIMITERS.get(dialect.delimiter, repr(dialect.delimiter))


def not_fitting(number: int, line: int, row: Sequence[str], header: Sequence[str]) -> str:
    """What is wrong with a row that has other fields than the header."""
    fields = "1 field" if len(row) == 1 else f"{len(row)} fields"
    return f"row {number} (line {line}) has {fields}, the header {len(header)} ({', '.join(header)})"


def _try_all(
    path: Path, delimiters: Sequence[str], quotings: Sequence[tuple[str | None, bool]], most: int | None
) -> list[Trial]:
    ways = [Dialect(delimiter, *quoting) for quoting in quotings for delimiter in delimiters]
    return [trial for way in ways if (trial := _try(path, way, most))]


def _try(path: Path, dialect: Dialect, most: int | None) -> Trial | None:
    """None for a file without rows."""
    trial: Trial | None = None
    with open_rows(path) as (lines, _):
        part = _Part(lines, most)
        try:
            for line, row in dialect.rows(part.lines()):
                if trial is None:
                    trial = Trial(dialect, row)
                    continue
                trial.rows += 1
                trial.widths.add(len(row))
                if fitted(row, len(trial.header)) is None:
                    trial.first = trial.first or not_fitting(trial.rows, line, row, trial.header)
                trial.good += not trial.first
        except csv.Error as error:
            trial = trial or Trial(dialect, [""])
            if not part.is_cut:
                trial.broken = True
                trial.first = trial.first or f"row {trial.rows + 1} (up to line {part.count}): {error}"
    return trial


class _Part:
    """The first lines of a file, how many they are, and whether there are more."""

    def __init__(self, lines: Iterator[str], most: int | None) -> None:
        self._lines, self._most, self.is_cut, self.count = lines, most, False, 0

    def lines(self) -> Iterator[str]:
        size = 0
        for line in self._lines:
            if self._most is not None and size > self._most:
                self.is_cut = True
                return
            size += len(line)
            self.count += 1
            yield line


@contextmanager
def open_rows(path: Path) -> Iterator[tuple[Iterator[str], str | None]]:
    """A file's lines from its first that is not blank, and the delimiter that a line "sep=;" above names."""
    with open_text(path, newline="") as file:
        first = _after_blank_lines(file)
        if named := _SEP.fullmatch(first):
            first = _after_blank_lines(file)
        yield chain([first] if first else [], file), named[1] if named else None


def _after_blank_lines(file: TextIO) -> str:
    return next((line for line in file if line.strip("\r\n")), "")
