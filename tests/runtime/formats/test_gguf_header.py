from __future__ import annotations

import struct
from pathlib import Path

import gguf
import pytest
from tiny_gguf import BLOCKS, CONTEXT, FFN, make_gguf
from tokenizers import Tokenizer

from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.formats.gguf_header import FILE_TYPES, TENSOR_TYPES, read_header


def test_header_says_what_the_gguf_library_says(model: Path, tokenizer: Tokenizer) -> None:
    header = read_header(model)
    reference = gguf.GGUFReader(model)
    assert {t.name: (t.shape, t.type, t.nbytes) for t in header.tensors} == {
        t.name: (tuple(int(n) for n in t.shape), t.tensor_type.name, int(t.n_bytes))
        for t in reference.tensors
    }
    assert header.parameters == sum(int(t.n_elements) for t in reference.tensors)
    assert header.quantization == "F16"
    assert header.vocabulary() == tokenizer.get_vocab_size()
    assert (header.architecture, header.of_architecture("feed_forward_length")) == ("llama", FFN)
    assert header.of_architecture("context_length") == CONTEXT
    assert header.types()["F32"]["tensors"] == 2 * BLOCKS + 1


def test_type_tables_agree_with_the_gguf_library() -> None:
    for kind, sizes in gguf.GGML_QUANT_SIZES.items():
        assert TENSOR_TYPES[kind.value] == (kind.name, *sizes)
    for file_type in gguf.LlamaFileType:
        if file_type.name != "GUESSED":
            assert FILE_TYPES[file_type.value] == file_type.name.removeprefix("MOSTLY_").removeprefix("ALL_")


@pytest.mark.parametrize("fraction", [0.0005, 0.01, 0.3, 0.9, 0.9999])
def test_truncation_is_noticed_wherever_it_happens(model: Path, tmp_path: Path, fraction: float) -> None:
    data = model.read_bytes()
    short = tmp_path / "short.gguf"
    short.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(EdgeError, match="truncated"):
        read_header(short)


def test_last_byte_missing_is_noticed(model: Path, tmp_path: Path) -> None:
    header = read_header(model)
    short = tmp_path / "short.gguf"
    last = max(header.tensors, key=lambda tensor: tensor.offset)
    padding = -last.nbytes % 32
    short.write_bytes(model.read_bytes()[: header.file_bytes - padding - 1])
    with pytest.raises(EdgeError, match=r"truncated: it has [\d,]+ bytes of [\d,]+"):
        read_header(short)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04 a zip file", "not a GGUF file"),
        (b"<!DOCTYPE html>", "not a GGUF file"),
        (b"GGUF" + struct.pack("<I", 1) + b"\0" * 64, "GGUF version 1"),
        (b"GGUF" + struct.pack(">I", 3) + b"\0" * 64, "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "truncated"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 99) + b"\0" * 64, "damaged"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 4, 2**61) + b"\0" * 64, "truncated"),
    ],
)
def test_what_is_not_a_whole_gguf_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "foreign.gguf"
    path.write_bytes(content)
    with pytest.raises(EdgeError, match=message) as caught:
        read_header(path)
    assert caught.value.hint


def test_missing_file_and_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="does not exist"):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(EdgeError, match="is a directory"):
        read_header(tmp_path)


def test_impossible_row_length_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = make_gguf(tmp_path / "model.gguf", tokenizer)
    data = bytearray(path.read_bytes())
    at = data.index(b"token_embd.weight") + len(b"token_embd.weight")
    struct.pack_into("<Q", data, at + 4, 63)
    struct.pack_into("<I", data, at + 4 + 16, 2)  # Q4_0
    path.write_bytes(data)
    with pytest.raises(EdgeError, match="multiple of 32"):
        read_header(path)
