"""Which column of a table holds the text: by its name or by what is in it, and never another in its place."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minigpt_edge_runtime.errors import EdgeError

OBVIOUS = "text"
# What texts are called beside that; one of them is taken where there is no column "text".
USUAL = ("content", "body", "article", "document", "passage", "page_content", "raw_content", "full_text")
TEXT = "text"
SAMPLE = 1_000  # values that show what a column holds
SHOWN = 80  # characters of a sample
MIN_WORDS = 4  # of a value that is a sentence and not a name
MOST = 0.5  # of the values: what these are, the column is
FEW, LABEL = 0.1, 60  # of the values are different, and no value has more characters: labels

_NUMBER = re.compile(r"\s*[-+]?[\d.,]+([eE][-+]?\d+)?\s*%?\s*")
_DATE = re.compile(r"\s*\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ][\d:.,+Z -]*)?\s*")
_URL = re.compile(r"\s*(https?|ftp|s3|gs|file)://\S+\s*|\s*www\.\S+\s*")
_UNSPACED = re.compile(  # Scripts that do not part words: Thai to Tibetan, Burmese, Khmer, kana, Han.
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]"
)
_TALKS = (
    *(("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("input", "output")),
    *(("instruction", "response"), ("question", "answer"), ("query", "response"), ("chosen", "rejected")),
    *(("role", "content"), ("from", "value"), ("user", "assistant")),
)
_TURNS = ({"role", "from", "speaker"}, {"content", "value", "text", "parts"})
_RENDER = (
    "fine-tuning on conversations is not built yet; write each one as text into a column of its own, for "
    "example with tokenizer.apply_chat_template(messages, tokenize=False), and name it with --text-column"
)


@dataclass
class Column:
    """Values of a column, one a row, as `cell` gives them.

    Attributes:
        example: the first that is neither None nor empty, whole.
        other: the first that is no text, whole.
        labels: the names that numbers stand for, where the file says so.
    """

    values: list[str | None | type] = field(default_factory=list)
    example: Any = None
    other: Any = None
    labels: Sequence[str] = ()

    def add(self, value: Any) -> None:
        """Append a row's value."""
        kept = cell(value)
        if self.example is None and value not in (None, "", [], {}):
            self.example = value
        if self.other is None and isinstance(kept, type):
            self.other = value
        self.values.append(kept)

    def is_mostly_strings(self) -> bool:
        """Whether at most half of what it holds is something else."""
        others = sum(isinstance(value, type) for value in self.values)
        return others <= MOST * sum(value is not None for value in self.values)


def cell(value: Any) -> str | None | type:
    """A string as it is, bytes that are UTF-8 as a string, None as None, and the type of anything else.

    A string that is a number is one: CSV knows no types.
    """
    if isinstance(value, str):
        return float if value and len(value) <= LABEL and _NUMBER.fullmatch(value) else value
    if value is None:
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return bytes
    return type(value)


def choose_column(columns: Mapping[str, Column], wanted: Sequence[str], where: str) -> str:
    """The column that holds the text.

    That is the one of the `wanted` names that there is; else "text"; else the one of the `USUAL` names that
    holds text, or without such a name the only column that does.

    Raises:
        EdgeError: there is none or no single one, or it does not hold text; lists the columns with samples.
    """
    found = [name for name in wanted if name in columns]
    if wanted and len(found) != 1:
        names = " or ".join(map(repr, wanted))
        what = f"has no column {names}" if not found else f"has more than one of the columns {names}"
        raise EdgeError(f"{where} {what}", f"its columns:{listed(columns)}")
    obvious = [name for name in columns if name.strip().lower() == OBVIOUS]
    if chosen := found or ([OBVIOUS] if OBVIOUS in obvious else obvious[:1]):
        _check_strings(chosen[0], columns, where)
        return chosen[0]
    if talk := conversation(columns):
        raise EdgeError(f"the rows of {where} hold conversations ({talk}), not running text", _RENDER)
    usual = [name for name in columns if name.strip().lower() in USUAL and columns[name].example is not None]
    if len(usual) == 1 and any(isinstance(value, str) for value in columns[usual[0]].values):
        _check_strings(usual[0], columns, where)
    texts = [name for name, column in columns.items() if describe(column)[0] == TEXT]
    named = [name for name in texts if name in usual]
    if len(named) == 1 or (len(texts) == 1 and not usual):
        return (named or texts)[0]
    several = dict.fromkeys([*texts, *usual]) if texts else ()
    what = f"{len(several)} columns that could hold the text" if several else "no column that holds text"
    nameable = any(column.is_mostly_strings() for column in columns.values())
    hint = "name one with --text-column" if nameable else "write the text into a column of its own"
    raise EdgeError(f"{where} has {what}", f"{hint}:{listed(columns)}")


def _check_strings(name: str, columns: Mapping[str, Column], where: str) -> None:
    column = columns[name]
    if talk := conversation({name: column}):
        raise EdgeError(f"column {name!r} of {where} holds conversations ({talk}), not running text", _RENDER)
    if column.is_mostly_strings():
        return
    raise EdgeError(
        f"column {name!r} of {where} does not hold text but {describe(column)[0]}",
        f"give the column that does with --text-column:{listed(columns)}",
    )


def conversation(columns: Mapping[str, Column]) -> str | None:
    """What in the columns is a conversation, such as "messages: role, content"; None if nothing is."""
    for name, column in columns.items():
        if turn := _turn(column.example):
            return f"{name}: {', '.join(turn)}"
    names = {name.strip().lower(): name for name in columns}
    for pair in _TALKS:
        if all(each in names and isinstance(columns[names[each]].example, str) for each in pair):
            return " and ".join(names[each] for each in pair)
    return None


def _turn(value: Any) -> list[str]:
    """The keys of a turn, for a list of turns (as it is, as JSON, or under a key), else none."""
    if isinstance(value, str) and value.lstrip()[:1] in "[{" and value.strip()[-1:] in "]}":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            keys = re.findall(r"['\"](\w+)['\"]\s*:", value[:500])
            value = [dict.fromkeys(keys)]
    if isinstance(value, dict):
        value = next((part for part in value.values() if isinstance(part, list)), value)
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, list) and first:
        first = first[0]
    if isinstance(first, dict) and all(some & first.keys() for some in _TURNS):
        return [key for key in first if any(key in some for some in _TURNS)]
    return []


def describe(column: Column) -> tuple[str, str]:
    """What a column holds, `TEXT` for running text, and a sample of it."""
    strings = [value for value in column.values if isinstance(value, str) and value.strip()]
    others = sum(isinstance(value, type) for value in column.values)
    if column.example is None and not strings:
        return "nothing", ""
    if others > len(strings):
        kind = _kind_of_values(column)
        return (f"{kind} and text" if strings else kind), shorten(column.example)
    return _kind_of_strings(strings[:SAMPLE]), shorten(strings[0])


def _kind_of_values(column: Column) -> str:
    value = column.other
    if column.labels:
        return f"labels ({', '.join(column.labels[:5])}{', …' if len(column.labels) > 5 else ''})"
    if turn := _turn(value):
        return f"conversations ({', '.join(turn)})"
    if isinstance(value, list):
        inner = next((part for part in value if part is not None), None)
        return f"lists of {_word(inner)}"
    return _word(value)


def _word(value: Any) -> str:
    if isinstance(value, str):
        return "numbers" if _NUMBER.fullmatch(value) else "strings"
    if isinstance(value, dict):
        return f"objects ({', '.join(map(str, list(value)[:5]))})"
    words = {bool: "true or false", int: "numbers", float: "numbers", list: "lists"}
    words |= {bytes: "bytes", type(None): "nothing"}
    return words.get(type(value), f"values of type {type(value).__name__}")


def _kind_of_strings(strings: Sequence[str]) -> str:
    """What strings are: running text has words, and more letters than digits and marks."""
    tests: dict[str, Callable[[str], object]] = {
        "dates": _DATE.fullmatch,
        "urls": _URL.fullmatch,
        "JSON": lambda text: text.lstrip()[:1] in "[{" and text.rstrip()[-1:] in "]}",
    }
    for kind, test in tests.items():
        if sum(1 for text in strings if test(text)) > MOST * len(strings):
            return kind
    few = len(strings) >= 20 and len(set(strings)) <= FEW * len(strings)
    if few and max(map(len, strings)) <= LABEL:
        return "labels"
    if sum(map(is_sentence, strings)) < MOST * len(strings):
        return "ids, names or single words"
    return TEXT


def is_sentence(text: str) -> bool:
    """Whether it has four words, or twice as many letters of a script that does not part words."""
    shown = text[:2_000]
    solid = [character for character in shown if not character.isspace()]
    letters = sum(unicodedata.category(character)[0] in "LM" for character in solid)
    unspaced = len(_UNSPACED.findall(shown))
    many = len(shown.split()) >= MIN_WORDS or unspaced >= 2 * MIN_WORDS
    return many and letters > MOST * len(solid)


def listed(columns: Mapping[str, Column]) -> str:
    """A line for every column: what it holds, and a sample."""
    lines = []
    for name, column in columns.items():
        kind, sample = describe(column)
        lines.append(f"\n      {name}: {kind}" + (f", {sample}" if sample else ""))
    return "".join(lines[:12]) + (f"\n      and {len(lines) - 12} more" if len(lines) > 12 else "")


def shorten(value: Any) -> str:
    """The beginning of a value, in one line; a string in quotes."""
    text = value if isinstance(value, str) else repr(value)
    line = " ".join(text[: 8 * SHOWN].split())
    shown = line[:SHOWN].rstrip() + "…" if len(line) > SHOWN or len(text) > 8 * SHOWN else line
    return f'"{shown}"' if isinstance(value, str) else shown
