"""SentencePiece vocabularies: trimmed, written and read with the guarantees that byte-level ones have."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_llama import TEXTS, build_model
from tiny_sentencepiece import SPACE, sentencepiece_json

from minigpt_edge.prune.vocabulary.choose import (
    choose_tokens,
    count_tokens,
    open_tokenizer,
    unreachable_tokens,
)
from minigpt_edge.prune.vocabulary.trim import trim_json
from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.gguf.pretokenizers import check_tokenizer
from minigpt_edge_export.gguf.write import write_gguf
from minigpt_edge_export.onnx.write import write_onnx
from minigpt_edge_export.scripts import TEN_SCRIPTS
from minigpt_edge_export.targets import Precision
from minigpt_edge_export.verify import verify_tokenizer
from minigpt_edge_runtime.errors import EdgeError

HELD_OUT = [*TEN_SCRIPTS.values(), *TEXTS, "a  b   c    d     e", " leading", "trailing ", "x\n\ny\t<s>z"]


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return sentencepiece_json(TEXTS * 3)


@pytest.fixture(scope="module")
def trimmed(whole: dict[str, Any]) -> dict[str, Any]:
    counts = count_tokens(open_tokenizer(whole), TEXTS[:2])
    data, _ = trim_json(whole, choose_tokens(whole, counts, min_count=2))
    return data


def test_what_is_kept_is_closed_and_spells_everything(whole: dict[str, Any], trimmed: dict[str, Any]) -> None:
    before, after = whole["model"]["vocab"], trimmed["model"]["vocab"]
    assert 259 < len(after) < len(before)
    assert {f"<0x{byte:02X}>" for byte in range(256)} | {SPACE, "<unk>", "<s>", "</s>"} <= after.keys()
    byte_tokens = {token for token in after if token.startswith("<")}
    assert set(unreachable_tokens(trimmed)) <= byte_tokens
    tokenizer = open_tokenizer(trimmed)
    tokenizer.encode_special_tokens = True  # "<s>" in a text is text
    for text in HELD_OUT:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text
    assert all(a in after and b in after and a + b in after for a, b in trimmed["model"]["merges"])


def test_dropped_characters_are_counted_as_their_bytes(whole: dict[str, Any]) -> None:
    counts = count_tokens(open_tokenizer(whole), [TEXTS[0], TEXTS[0], "法"])
    kept = set(choose_tokens(whole, counts, min_count=2))
    vocabulary = whole["model"]["vocab"]
    assert vocabulary["法"] not in kept
    assert {vocabulary[f"<0x{byte:02X}>"] for byte in "法".encode()} <= kept


@pytest.mark.parametrize("kind", ["whole", "trimmed"])
def test_files_make_the_same_tokens(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    from safetensors.torch import save_file

    data: dict[str, Any] = request.getfixturevalue(kind)
    folder = tmp_path / "model"
    folder.mkdir()
    rows = len(data["model"]["vocab"])
    model, config = build_model([(96, 4, 2)], vocab_size=rows, tie_word_embeddings=False)
    save_file({n: w.contiguous() for n, w in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    decoder = read_checkpoint(folder)
    write_gguf(decoder, tmp_path / "model.gguf")
    write_onnx(decoder, tmp_path / "onnx", Precision("fp32"))
    for path in (tmp_path / "model.gguf", tmp_path / "onnx" / "model.onnx"):
        parity = verify_tokenizer(path, folder / "tokenizer.json", HELD_OUT)
        assert parity.good, (parity.mismatches, parity.roundtrip_failures)
        assert parity.unspellable_bytes == []


def test_what_llama_cpp_would_do_otherwise_is_refused(whole: dict[str, Any]) -> None:
    check_tokenizer(whole)
    lost = copy.deepcopy(whole)
    lost["model"]["merges"] = [m for m in lost["model"]["merges"] if len("".join(m)) != 3]
    bytes_gone = copy.deepcopy(whole)
    del bytes_gone["model"]["vocab"]["<0x0A>"]
    spaces = copy.deepcopy(whole)
    spaces["normalizer"] = None
    order = copy.deepcopy(whole)
    merges = order["model"]["merges"]
    several = next(m for m in merges if sum("".join(n) == "".join(m) for n in merges) > 1 and m[0] != SPACE)
    merges.remove(several)
    merges.append(several)
    for data, message in (
        (lost, "merges lack"),
        (bytes_gone, "lacks <0x0A>"),
        (spaces, "treats spaces"),
        (order, "in an order"),
    ):
        with pytest.raises(EdgeError, match=message):
            check_tokenizer(data)


def test_counts_are_of_pieces(whole: dict[str, Any]) -> None:
    counts = count_tokens(open_tokenizer(whole), ["the the"])
    assert isinstance(counts, np.ndarray) and counts.sum() == len(
        open_tokenizer(whole).encode("the the", add_special_tokens=False).ids
    )
