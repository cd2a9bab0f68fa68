"""Fixtures of the runtime's tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_gguf import TEXT, make_gguf, make_tokenizer
from tokenizers import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    return make_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", tokenizer)


@pytest.fixture
def bundle(tmp_path: Path, model: Path, tokenizer: Tokenizer) -> Path:
    """A bundle with the tiny model, its tokenizer and a report."""
    from minigpt_edge_runtime.bundle import write_manifest
    from minigpt_edge_runtime.verify import make_check

    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(model.read_bytes())
    tokenizer.save(str(folder / "tokenizer.json"))
    report = {
        "name": "tiny",
        "models": [{"label": "shipped F16", "bytes": 2_000_000, "quality": {"bits_per_byte": 1.5}}],
    }
    (folder / "report.json").write_text(json.dumps(report))
    write_manifest(
        folder,
        name="tiny",
        model_files=["model.gguf"],
        base_model={"name": "random", "licence": "Apache-2.0"},
        licences=["Apache-2.0"],
        domain="law",
        corpus_sha256="0" * 64,
        targets=["gguf-f16"],
        document_start="<|endoftext|>",
        checks={"model.gguf": make_check(folder / "model.gguf", TEXT, "<|endoftext|>", threads=1)},
    )
    return folder
