"""GGUF files as base models: what was exported comes back, weights and tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from source_helpers import SCRIPTS, tiny_model_dir
from tiny_families import write_family
from tiny_llama import TEXTS, build_model
from tiny_sentencepiece import sentencepiece_json
from tokenizers import Tokenizer

from minigpt_edge.models.base_model import resolve_model
from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.gguf.write import write_gguf


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tiny_model_dir(tmp_path_factory.mktemp("hf") / "model")
    return json.loads((folder / "tokenizer.json").read_text())  # type: ignore[no-any-return]


def same(folder: Path, tmp_path: Path) -> None:
    """A checkpoint and its F32 GGUF file as base models: equal weights, equal token ids."""
    write_gguf(read_checkpoint(folder), tmp_path / "model.gguf", file_type="f32")
    back = resolve_model(str(tmp_path / "model.gguf"))
    ours, theirs = read_checkpoint(back.path), read_checkpoint(folder)
    assert (ours.model_type, ours.blocks, ours.tied) == (theirs.model_type, theirs.blocks, theirs.tied)
    for name in theirs.shapes():
        np.testing.assert_array_equal(ours.load(name), theirs.load(name))
    before, after = (
        Tokenizer.from_file(str(folder / "tokenizer.json")),
        Tokenizer.from_file(str(back.tokenizer)),
    )
    for text in (*SCRIPTS, *TEXTS, "a  b   c", " x", ""):
        assert after.encode(text).ids == before.encode(text).ids


@pytest.mark.parametrize("name", ["qwen2", "qwen2, untied", "qwen3", "qwen3, untied"])
def test_qwen_comes_back(byte_level: dict[str, Any], tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    write_family(folder, name, byte_level, len(byte_level["model"]["vocab"]) + 8)
    settings = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    same(folder, tmp_path)


def test_llama_with_sentencepiece_comes_back(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    data = sentencepiece_json(TEXTS * 3)
    folder = tmp_path / "model"
    folder.mkdir()
    model, config = build_model([(96, 4, 2)], vocab_size=len(data["model"]["vocab"]))
    weights = {n: w.contiguous() for n, w in model.state_dict().items() if n != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    same(folder, tmp_path)
