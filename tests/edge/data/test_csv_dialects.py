"""CSV as it is found: every delimiter and quoting is read whole, or the row that does not fit is named."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from minigpt_edge.data.dialects import SAMPLE
from minigpt_edge.data.folders import read_files
from minigpt_edge_runtime.errors import EdgeError

PLAIN = [f"Tenant {n} pays the rent; the landlord, by notice, repairs the flat. " * 4 for n in range(12)]
QUOTED = [f'Number {n} said "yes, of course" and left the house for good. ' * 5 for n in range(12)]
LINES = [f"First line of {n}, as ever.\n\nA third; and a last one.\n" * 6 for n in range(12)]
BARE = [text.replace(",", "").replace(";", "") for text in PLAIN]
COMMAS = ["a, b, c, d " + text for text in BARE]
COMMA = [text + ", so" for text in BARE]
UNEVEN = ["a" + ", b" * (number % 3) + text for number, text in enumerate(BARE)]
INCHES = ['a 5" nail ' + text for text in BARE]
LONE = ['"a nail ' + text for text in BARE]


def _written(texts: list[str], before: str = "", **how: Any) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, **how)
    writer.writerow(["id", "text", "label"])
    writer.writerows([number, text, "a"] for number, text in enumerate(texts))
    return before + out.getvalue()


def _plain(texts: list[str], form: str, header: str) -> str:
    return header + "\n" + "".join(form.format(n, text) + "\n" for n, text in enumerate(texts))


CASES = {
    **{
        f"{name} {kind}": (_written(texts, delimiter=delimiter), texts)
        for name, delimiter in {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}.items()
        for kind, texts in {"plain": PLAIN, "quoted": QUOTED, "lines": LINES}.items()
    },
    "everything in quotes": (_written(LINES, delimiter=";", quoting=csv.QUOTE_ALL), LINES),
    "single quotes": (_written(PLAIN, quotechar="'", quoting=csv.QUOTE_ALL), PLAIN),
    "quotes behind backslashes": (_written(QUOTED, doublequote=False, escapechar="\\"), QUOTED),
    "the same with semicolons": (
        _written(QUOTED, delimiter=";", doublequote=False, escapechar="\\", quoting=csv.QUOTE_ALL),
        QUOTED,
    ),
    "byte order mark": (_written(PLAIN, "\ufeff", delimiter=";"), PLAIN),
    "Excel's first line": (_written(PLAIN, "sep=;\r\n", delimiter=";"), PLAIN),
    "old line ends": (_written(PLAIN).replace("\r\n", "\r"), PLAIN),
    "blank lines": (_written(PLAIN).replace("\r\n", "\r\n\r\n"), PLAIN),
    "more commas than semicolons": (_plain(COMMAS, "{};{}", "id;text"), COMMAS),
    "a comma in each of the texts": (_plain(COMMA, "{}\t{}", "id\ttext"), COMMA),
    "quotes inside of a text": (_plain(INCHES, "{},{}", "id,text"), INCHES),
    "lone quotes at the beginning": (_plain(LONE, "{}\t{}", "id\ttext"), LONE),
    "one column": (_plain(BARE, "{1}", "text"), BARE),
    "one column with delimiters": (_plain(UNEVEN, "{1}", "text"), UNEVEN),
    "one column in quotes": (_plain(PLAIN, '"{1}"', "text"), PLAIN),
    "delimiters behind the last field": (_plain(BARE, "{},{},", "id,text"), BARE),
    "a space behind each delimiter": (_plain(PLAIN, '{}, "{}"', "id, text"), PLAIN),
}


@pytest.mark.parametrize("name", CASES)
def test_a_dialect_is_read_whole(name: str, tmp_path: Path) -> None:
    content, texts = CASES[name]
    (tmp_path / "a.csv").write_text(content, newline="")
    found = read_files(tmp_path / "a.csv").texts
    assert [text.strip() for text in found] == [text.strip() for text in texts]


def test_what_the_beginning_does_not_show_is_found(tmp_path: Path) -> None:
    rows = "".join(f"{n};{BARE[n % 12]}{n}\n" for n in range(SAMPLE // 250))
    last = '"99";"He said \\"no; never\\", and went on and on and on."\n'
    (tmp_path / "a.csv").write_text("id;text\n" + rows + last)
    assert read_files(tmp_path / "a.csv").texts[-1] == 'He said "no; never", and went on and on and on.'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,text\n1,a b c d\n2,a, b c\n3,a b c d\n", r"commas: row 2 \(line 3\) has 3 fields, the header 2"),
        ("id;text;n\n1;a b c d;1\n2;a b c d\n", r"semicolons: row 2 \(line 3\) has 2 fields, the header 3"),
        ('id,text\n1,"a, b"\n2,"a, b\n3,"c"\n', "commas: row 2"),
        ("Export of May\n\nid;text\n1;a b c d\n2;b\n", "first row has 1 field, every other row has 2"),
        ('"text"\n"1","a b c d"\n"2","b c d e"\n', "first row has 1 field, every other row has 2"),
        ("text,text\na b c d,b\n", "two columns 'text'"),
        ("A short first post\nand a second one\n", "looks like data, not like a header"),
        ("id::text\n1::a b c d\n2::b c d e\n", "one column, 'id::text': what parts its fields is not known"),
        ("id   text\n1    a b c d\n2    b c d e\n", "what parts its fields is not known"),
        ("\n\n", "is empty"),
        ("id,text\n", "is empty"),
    ],
)
def test_rows_that_do_not_fit_the_header_are_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(EdgeError, match=message) as caught:
        read_files(tmp_path / "a.csv")
    assert caught.value.hint


@pytest.mark.parametrize("form", ["{1}", "ham,{1}", "{0},{1}"])
def test_a_first_row_that_is_a_text_is_not_lost(form: str, tmp_path: Path) -> None:
    content = "".join(form.format(n, text) + "\n" for n, text in enumerate(BARE))
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(EdgeError, match="looks like data, not like a header"):
        read_files(tmp_path / "a.csv")
    question = "What did you like about us, and what not?"
    (tmp_path / "b.csv").write_text(f'day,"{question}"\n' + "".join(f"2024-01-02,{text}\n" for text in BARE))
    assert len(read_files(tmp_path / "b.csv", [question]).texts) == 12
