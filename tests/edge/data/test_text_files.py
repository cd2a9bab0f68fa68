"""Text files, files of rows and folders: what is read, what is not, and that it is told."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_helpers import sentences

from minigpt_edge.data.documents import SIZES, divide, gather
from minigpt_edge.data.folders import read_files
from minigpt_edge.data.reading import read_lines
from minigpt_edge_runtime.errors import EdgeError

A, B = "The first text, in two\nlines. " + "so on; " * 30, "The second: Übung, 日本語. " + "and so on, " * 20
ROWS = [{"id": 1, "text": A, "note": A[:210]}, {"id": 2, "text": B, "note": B[:210]}]
LINES = "\n".join(json.dumps(row) for row in ROWS) + "\n\n"
ABOVE, PART = SIZES[0]


def _zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(data)
    return sink.getvalue().to_pybytes()


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": _zstd}


def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path) -> None:
    from datasets import Dataset

    (tmp_path / "a.txt").write_text(A.replace("\n", "\r\n"), newline="")
    (tmp_path / "b.md").write_bytes(b"\xef\xbb\xbf" + B.encode())
    assert [read_files(tmp_path / name).texts for name in ("a.txt", "b.md")] == [[A], [B]]
    contents = {
        ".jsonl": LINES,
        ".ndjson": LINES,
        ".json": json.dumps(ROWS, indent=1),
        ".csv": f'id,text,note\n1,"{A}","{A[:210]}"\n2,"{B}","{B[:210]}"\n',
        ".tsv": f'id\ttext\tnote\n1\t"{A}"\t"{A[:210]}"\n2\t"{B}"\t"{B[:210]}"\n',
    }
    for kind, content in contents.items():
        (tmp_path / f"c{kind}").write_text(content)
        for suffix, pack in PACKERS.items():
            (tmp_path / f"c{kind}{suffix}").write_bytes(pack(content.encode()))
    (tmp_path / "d.json").write_text(LINES)
    (tmp_path / "e.json").write_text(json.dumps({"version": 2, "data": ROWS}))
    (tmp_path / "e.jsonl").write_text(json.dumps(ROWS))
    (tmp_path / "f.json").write_text(json.dumps([A, B]))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "g.parquet")
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "h"))
    next((tmp_path / "h").glob("*.arrow")).rename(tmp_path / "h.arrow")
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "h"))
    (tmp_path / "i.txt.gz").write_bytes(gzip.compress(A.encode()))
    paths = sorted(tmp_path.glob("[c-h]*"))
    assert len(paths) == 32
    for path in paths:
        assert read_files(path).texts == [A, B], path.name
        if path.name != "f.json":
            assert read_files(path, ["note"]).texts == [A[:210], B[:210]], path.name
    reading = read_files(tmp_path)
    assert sorted(reading.texts) == sorted([A, B] * 33 + [A])
    assert sum(one["files"] for one in reading.told["read"]) == 35


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"plain\0text", "binary: there is a zero byte at offset 5"),
        ("a.txt", b"x" * 99_999 + b"\0text", "binary: there is a zero byte at offset 99,999"),
        ("a.txt", b"caf\xe9 au lait", "not UTF-8: byte 0xe9 at offset 3"),
        ("a.csv", b"text\n" + b"a b c d\n" * 40_000 + b"caf\xe9", "not UTF-8: byte 0xe9 at offset 320,008"),
        ("a.md", "Übung".encode("utf-16"), "UTF-16"),
        ("a.tsv", "Übung".encode("utf-16"), "UTF-16"),
        ("a.txt", b" \n", "is empty"),
        ("a.pdf", b"%PDF", "files of kind .pdf are not read"),
        ("a.jsonl.lz4", b"no", "files of kind .lz4 are not read"),
        ("a.parquet.gz", b"no", "files of kind .gz are not read"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "line 2 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n5', "line 2 is not a JSON object"),
        ("a.json", b'{"text": "x"', "is not JSON"),
        ("a.json", b'[{"text": "x"}', "is not JSON"),
        ("a.json", b'{"name": "settings", "list": [1, 2]}', "holds no list of rows"),
        ("a.jsonl.gz", gzip.compress(LINES.encode())[:-9], "damaged or cut short"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
        ("a.jsonl.zst", _zstd(LINES.encode())[:50], "damaged or cut short"),
        ("a.jsonl.xz", b"nonsense", "damaged or cut short"),
        ("a.parquet", b"PAR1 and no more", "not a whole parquet file"),
    ],
)
def test_files_that_can_not_be_read_say_why(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EdgeError, match=message) as caught:
        read_files(tmp_path / name)
    assert caught.value.hint and name in caught.value.message
    (tmp_path / "sound.jsonl").write_text(LINES)
    if "not read" not in message and "holds no list" not in message and "is empty" not in message:
        with pytest.raises(EdgeError, match=name):
            read_files(tmp_path)


def test_missing_and_damaged_things_are_named(tmp_path: Path) -> None:
    from datasets import Dataset

    with pytest.raises(EdgeError, match="does not exist"):
        read_files(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EdgeError, match="no text files"):
        read_files(tmp_path / "empty")
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    for path in (tmp_path / "saved").glob("*.arrow"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(EdgeError, match="saved"):
        read_files(tmp_path)


def test_what_is_not_read_in_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    for name in ("README.md", "LICENSE.txt", ".hidden.txt", "package.json", "empty.txt", "notes.txt"):
        (tmp_path / name).write_text("" if name == "empty.txt" else '{"a": 1}' if "json" in name else A)
    for number in range(4):
        (tmp_path / f"{number}.pdf").write_bytes(b"%PDF")
    (tmp_path / "again").symlink_to(tmp_path / "data")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "none.txt")
    reading = read_files(tmp_path)
    assert reading.texts == [A, A, B]
    assert reading.told["left_out"] == {
        "hidden": ".hidden.txt",
        "not a known kind": "4 files: 4 .pdf",
        "empty": "empty.txt",
        "a link that is not followed": "again, gone.txt",
        "JSON without rows": "package.json",
        "about the data": "LICENSE.txt, README.md",
    }
    *_, line = read_lines([reading.told])
    assert line.startswith("left out: ") and "LICENSE.txt, README.md (about the data)" in line


def test_a_readme_is_a_text_among_texts_and_no_corpus_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(A)
    assert read_files(tmp_path).texts == [A]
    (tmp_path / "texts.jsonl.lz4").write_bytes(b"not read")
    with pytest.raises(EdgeError, match=r"nothing that is read but README\.md \(there: texts\.jsonl\.lz4\)"):
        read_files(tmp_path)
    (tmp_path / "b.md").write_text(B)
    assert read_files(tmp_path).texts == [A, B]


def test_many_files_are_told_in_one_line(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.jsonl").write_text(LINES + json.dumps({"text": None}))
    (line,) = read_lines([read_files(tmp_path).told])
    assert line.startswith(
        "5 jsonl files (0.jsonl, 1.jsonl, 2.jsonl, …): 15 rows, column text (not id, note)"
    )
    assert "skipped 5 null (first line 4)" in line


def test_a_book_is_divided_at_blank_lines_and_loses_nothing() -> None:
    short = "x" * ABOVE
    assert divide(short) == [short]
    book = "\n\n".join(sentences(12, seed) for seed in range(60))
    parts = divide(book)
    assert len(parts) > 2 and "".join(parts) == book
    assert all(len(part.encode()) <= PART and part.startswith("\n") for part in parts[1:])


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("A sentence of words, is it? " * 3_000, "? "),
        ("租客应当支付租金。" * 5_000, "。"),
        ("words without an end " * 3_000, " "),
        ("字" * 30_000, "字"),
        ("x" * 90_000, "x"),
        (("line of a poem " * 9 + "\n") * 900, "\n"),
    ],
)
def test_a_text_in_one_line_is_divided_at_sentences_spaces_or_characters(text: str, end: str) -> None:
    parts = divide(text)
    assert "".join(parts) == text and len(parts) > 3
    assert all(len(part.encode()) <= PART and part.endswith(end) for part in parts)
    assert sum(len(part.encode()) for part in parts[:-1]) > 0.7 * PART * (len(parts) - 1)


def test_short_rows_are_gathered_in_their_order_once_each() -> None:
    rows = [f"Row {n} {sentences(1, n)}" for n in range(300)]
    documents, repeated = gather(
        [*rows, "row 7 " + rows[9].partition(" ")[2].partition(" ")[2].upper(), "Yes."]
    )
    assert repeated == 1
    assert "\n".join(documents) == "\n".join([*rows, "Yes."])
    assert all(2_000 <= len(text) < 2_300 for text in documents[:-1])
    long = [sentences(9, seed) for seed in range(50)]
    assert gather([*long, "Short."]) == ([*long, "Short."], 0), (
        "a few short rows are no reason to join long ones"
    )
    verses = [f"{n} verses\nof two lines each" for n in range(80)]
    assert "\n\n".join(gather(verses)[0]) == "\n\n".join(verses)


def test_small_files_of_a_folder_are_gathered(tmp_path: Path) -> None:
    for number in range(90):
        (tmp_path / f"{number:03}.txt").write_text(f"A post of {number} words {sentences(1, number)}")
    reading = read_files(tmp_path)
    assert 1 < len(reading.texts) < 10
    (line,) = read_lines([reading.told])
    assert f"short ones, gathered into {len(reading.texts)} documents" in line


def test_all_splits_of_a_saved_dataset_are_read(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    splits = {name: Dataset.from_dict({"text": [text]}) for name, text in (("train", A), ("test", B))}
    DatasetDict(splits).save_to_disk(str(tmp_path / "set"))
    reading = read_files(tmp_path / "set")
    assert sorted(reading.texts) == sorted([A, B])
    assert read_lines([reading.told])[0].startswith("2 saved datasets (test, train): 2 rows, column text")
