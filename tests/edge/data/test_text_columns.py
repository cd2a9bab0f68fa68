"""The column that holds the text: by its name or its content, never another in its place, and no ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minigpt_edge.data.folders import read_files
from minigpt_edge.data.reading import read_lines
from minigpt_edge.data.sources import HubSource, source_of
from minigpt_edge_runtime.errors import EdgeError

TEXTS = [f"The tenant of flat {n} pays the rent on the first day of the month. " * 4 for n in range(30)]
TURNS = [{"role": "user", "content": TEXTS[0]}, {"role": "assistant", "content": TEXTS[1]}]


def _rows(path: Path, **columns: Any) -> Path:
    """A jsonl file; what is no list is the same in every row."""
    rows = (
        {name: of[n] if isinstance(of, list) and len(of) == 30 else of for name, of in columns.items()}
        for n in range(30)
    )
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


IDS: dict[str, Any] = {
    "id": [f"row-{n}" for n in range(30)],
    "url": [f"https://a.org/{n}" for n in range(30)],
    "sha": [f"{n:x}" * 32 for n in range(30)],
    "date": [f"2024-01-{n + 1:02}" for n in range(30)],
    "file": [f"a/b{n}.txt" for n in range(30)],
    "label": ["asks for a new lease contract", "pays late and says so"] * 15,
    "author": "Jane Doe",
    "year": list(range(1990, 2020)),
}


@pytest.mark.parametrize("name", ["text", "Text", "content", "body", "story", "内容"])
def test_the_column_of_texts_is_found_among_ids_and_labels(name: str, tmp_path: Path) -> None:
    texts = ["租客应当按时支付租金并且保持房屋整洁。" * n for n in range(1, 31)] if name == "内容" else TEXTS
    reading = read_files(_rows(tmp_path / "a.jsonl", **IDS, **{name: texts}))
    assert reading.told["read"][0]["column"] == name and "".join(reading.texts).count(texts[7])


def test_ids_alone_are_no_texts(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="no column that holds text") as caught:
        read_files(_rows(tmp_path / "a.jsonl", **IDS))
    for line in (
        "url: urls, ",
        "date: dates, ",
        "label: labels, ",
        'id: ids, names or single words, "row-0"',
    ):
        assert line in (caught.value.hint or "")
    assert "".join(read_files(tmp_path / "a.jsonl", ["label"]).texts), "a column that is named is taken"


def test_several_texts_are_listed_and_one_is_to_be_named(tmp_path: Path) -> None:
    path = _rows(tmp_path / "a.jsonl", question=TEXTS, story=TEXTS, id=1)
    with pytest.raises(EdgeError, match="2 columns that could hold the text") as caught:
        read_files(path)
    assert "story: text, " in (caught.value.hint or "") and "id: numbers" in (caught.value.hint or "")
    assert read_files(path, ["story"]).told["read"][0]["column"] == "story"
    with pytest.raises(EdgeError, match="2 columns that could"):  # "content" would be, but is no text
        read_files(_rows(tmp_path / "b.jsonl", content="ok", title=TEXTS))


def test_each_file_has_one_of_the_named_columns(tmp_path: Path) -> None:
    _rows(tmp_path / "a.jsonl", body=TEXTS, note=TEXTS)
    _rows(tmp_path / "b.jsonl", story=TEXTS, note=TEXTS)
    reading = read_files(tmp_path, ["body", "story"])
    assert [one["column"] for one in reading.told["read"]] == ["body", "story"]
    with pytest.raises(EdgeError, match=r"b\.jsonl has no column 'body'"):
        read_files(tmp_path, ["body"])
    with pytest.raises(EdgeError, match="more than one of the columns"):
        read_files(tmp_path / "a.jsonl", ["body", "note"])


def test_numbers_and_nulls_in_the_text_are_skipped_and_told(tmp_path: Path) -> None:
    texts: list[Any] = [*TEXTS[:7], 1984, *TEXTS[8:20], None, "", *TEXTS[22:]]
    reading = read_files(_rows(tmp_path / "a.jsonl", summary=TEXTS, text=texts))
    assert reading.texts == [text for text in texts if isinstance(text, str) and text]
    (line,) = read_lines([reading.told])
    assert "30 rows, column text (not summary)" in line
    assert "1 not text (line 8), 1 null (line 21), 1 empty (line 22)" in line and TEXTS[0][:60] in line


def test_numbers_in_csv_are_no_texts(tmp_path: Path) -> None:
    rows = [f'"{text}","{1984 if n == 7 else text}"\n' for n, text in enumerate(TEXTS)]
    (tmp_path / "a.csv").write_text("summary,text\n" + "".join(rows))
    reading = read_files(tmp_path / "a.csv")
    assert reading.texts == [*TEXTS[:7], *TEXTS[8:]] and reading.told["read"][0]["first"] == {
        "not text": "row 8"
    }
    (tmp_path / "b.csv").write_text(
        "summary,text\n" + "".join(f"{text},{n}\n" for n, text in enumerate(TEXTS))
    )
    with pytest.raises(EdgeError, match="'text' of .* does not hold text but numbers"):
        read_files(tmp_path / "b.csv")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (7, "numbers"),
        ([TEXTS[0], TEXTS[1]], "lists of strings"),
        ({"en": TEXTS[0], "fr": TEXTS[1]}, r"objects \(en, fr\)"),
        (True, "true or false"),
    ],
)
def test_a_column_text_of_something_else_is_an_error(value: Any, kind: str, tmp_path: Path) -> None:
    values = [text if n % 3 == 0 else value for n, text in enumerate(TEXTS)]
    with pytest.raises(EdgeError, match=f"'text' of .* does not hold text but {kind} and text"):
        read_files(_rows(tmp_path / "a.jsonl", text=values, summary=TEXTS))
    pq.write_table(pa.table({"text": [value] * 30, "summary": TEXTS}), tmp_path / "a.parquet")
    with pytest.raises(EdgeError, match=f"'text' of .* does not hold text but {kind}"):
        read_files(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ({"messages": TURNS}, "messages: role, content"),
        ({"id": IDS["id"], "messages": TURNS}, "messages: role, content"),
        ({"conversations": [{"from": "human", "value": TEXTS[0]}], "source": "web"}, "from, value"),
        ({"summary": TEXTS, "messages": json.dumps(TURNS)}, "messages: role, content"),
        ({"prompt": TEXTS, "completion": TEXTS}, "prompt and completion"),
        ({"instruction": TEXTS, "input": "", "output": TEXTS}, "instruction and output"),
        ({"chosen": TURNS, "rejected": TURNS, "note": TEXTS}, "chosen: role, content"),
    ],
)
def test_rows_of_conversations_are_named_in_every_kind_of_file(
    columns: dict[str, Any], what: str, tmp_path: Path
) -> None:
    from datasets import Dataset

    path = _rows(tmp_path / "a.jsonl", **columns)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    (tmp_path / "c.json").write_text(json.dumps({"version": 1, "data": rows}))
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "d"))
    for name in ("a.jsonl", "b.parquet", "c.json", "d"):
        with pytest.raises(EdgeError, match=rf"{name} hold conversations \(.*{what}\)") as caught:
            read_files(tmp_path / name)
        assert "apply_chat_template" in (caught.value.hint or "")
    if "messages" in columns:
        with pytest.raises(EdgeError, match="column 'messages' of .* holds conversations"):
            read_files(path, ["messages"])
    rendered = _rows(tmp_path / "e.jsonl", **columns, text=TEXTS)
    assert read_files(rendered).texts == TEXTS, "a column of rendered conversations is text"


@pytest.mark.parametrize(
    "form",
    [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())],
)
def test_every_form_of_string_in_parquet_is_text(form: Any, tmp_path: Path) -> None:
    values = [None, *TEXTS[1:]]
    array = (
        pa.array(values).cast(form) if form != pa.binary() else pa.array([v and v.encode() for v in values])
    )
    other = pa.array(IDS["label"]).dictionary_encode()
    pq.write_table(pa.table({"label": other, "body": array}), tmp_path / "a.parquet")
    reading = read_files(tmp_path / "a.parquet")
    assert reading.texts == TEXTS[1:] and reading.told["read"][0]["skipped"] == {"null": 1}


def test_a_column_that_begins_with_nulls_is_seen(tmp_path: Path) -> None:
    body = [*[None] * 300, *TEXTS]
    pq.write_table(pa.table({"body": body, "title": TEXTS * 11}), tmp_path / "a.parquet")
    assert read_files(tmp_path / "a.parquet").texts == TEXTS


def test_a_dataset_says_what_its_columns_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    kinds = datasets.Features(
        {
            "label": datasets.ClassLabel(names=["neg", "pos"]),
            "translation": datasets.Translation(["en", "fr"]),
        }
    )
    pairs = [{"en": text, "fr": text} for text in TEXTS]
    rows = datasets.Dataset.from_dict({"label": [0, 1] * 15, "translation": pairs}, kinds)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    with pytest.raises(EdgeError, match="org/pairs has no column that holds text") as caught:
        HubSource("org/pairs").read(offline=True)
    assert "labels (neg, pos)" in (caught.value.hint or "") and "objects (en, fr)" in (
        caught.value.hint or ""
    )
    with pytest.raises(EdgeError, match="no column 'en'"):
        HubSource("org/pairs", pair_columns=("en", "fr")).read(offline=True)
    rows = rows.add_column("text", TEXTS)
    reading = HubSource("org/pairs").read(offline=True)
    assert reading.texts == TEXTS
    assert "org/pairs: 30 rows, column text (not label, translation)" in read_lines([reading.told])[0]


def test_rows_of_a_domain_are_as_they_are_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    short = [f"A short line, number {n} of a book." for n in range(300)]
    rows = datasets.Dataset.from_dict({"text": short})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    assert HubSource("org/lines").read(offline=True).texts == short
    given = source_of("org/lines").read(offline=True)
    assert len(given.texts) < 9 and given.divisible
