"""Fixtures of the runtime's tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_gguf import TEXT, make_gguf, make_tokenizer, texts_content
from tiny_onnx import make_onnx
from tokenizers import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    return make_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", tokenizer)


@pytest.fixture(scope="session")
def onnx_model(tmp_path_factory: pytest.TempPathFactory, model: Path, tokenizer: Tokenizer) -> Path:
    """The same weights as ONNX, not to be changed."""
    return make_onnx(model, tmp_path_factory.mktemp("onnx") / "tiny", tokenizer)


@pytest.fixture(params=["gguf", "onnx"])
def either(request: pytest.FixtureRequest) -> Path:
    """A test with this fixture is run on both engines."""
    return request.getfixturevalue("model" if request.param == "gguf" else "onnx_model")


@pytest.fixture(params=["gguf", "onnx"])
def in_either(request: pytest.FixtureRequest, tmp_path: Path, tokenizer: Tokenizer) -> Callable[[Path], Path]:
    """A GGUF file as it is, or as ONNX."""

    def convert(model: Path) -> Path:
        return model if request.param == "gguf" else make_onnx(model, tmp_path / "onnx", tokenizer)

    return convert


@pytest.fixture
def copied(tmp_path: Path, onnx_model: Path) -> Path:
    """A model.onnx whose directory a test may damage."""
    return Path(shutil.copytree(onnx_model.parent, tmp_path / "copied")) / "model.onnx"


@pytest.fixture
def bundle(tmp_path: Path, model: Path, tokenizer: Tokenizer) -> Path:
    """A bundle with the tiny model, its tokenizer and a report."""
    from minigpt_edge_runtime.bundle.manifest import Contents, write_manifest
    from minigpt_edge_runtime.bundle.verify import make_check

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
        Contents(
            name="tiny",
            model_files=["model.gguf"],
            base_model={"name": "random", "licence": "Apache-2.0"},
            licences=["Apache-2.0"],
            domain="law",
            corpus_sha256="0" * 64,
            targets=["gguf-f16"],
            document_start="<|endoftext|>",
            checks={"model.gguf": make_check(folder / "model.gguf", TEXT, "<|endoftext|>", threads=1)},
        ),
    )
    return folder


@pytest.fixture(scope="session")
def whole_bundle(
    tmp_path_factory: pytest.TempPathFactory, model: Path, onnx_model: Path, tokenizer: Tokenizer
) -> Path:
    """What a build of an ONNX and a GGUF target ships, not to be changed."""
    from minigpt_edge_runtime.bundle.manifest import Contents, write_manifest
    from minigpt_edge_runtime.bundle.parity import make_reference
    from minigpt_edge_runtime.bundle.verify import make_check
    from minigpt_edge_runtime.engines.open import open_engine
    from minigpt_edge_runtime.files import write_json

    folder = tmp_path_factory.mktemp("whole") / "bundle"
    shutil.copytree(onnx_model.parent, folder / "onnx-fp32")
    shutil.copyfile(model, folder / "tiny-f16.gguf")
    tokenizer.save(str(folder / "tokenizer.json"))
    with open_engine(onnx_model, 128, 1, logits_all=True) as engine:
        tokens = [0, *engine.tokenize(TEXT)][:64]
        write_json(folder / "reference.json", make_reference(tokens, engine.logits(tokens)))
    questions = [
        {"context": TEXT[:40], "choices": [TEXT[40:60], " z", "Ça", " 42"], "answer": at} for at in (0, 3)
    ]
    write_json(folder / "held-out.json", {"format": 1, **texts_content(), "questions": questions})
    names = ["onnx-fp32/model.onnx", "tiny-f16.gguf"]
    limit = {"kl_mean": 1e-3, "argmax_agreement": 0.98, "bits_ratio": 1.01}
    write_manifest(
        folder,
        Contents(
            name="tiny",
            model_files=names,
            base_model={"name": "random"},
            licences=["Apache-2.0"],
            domain="law",
            corpus_sha256=None,
            targets=["onnx-fp32", "gguf-f16"],
            document_start="<|endoftext|>",
            checks={
                name: {**make_check(folder / name, TEXT, "<|endoftext|>", 1), "threshold": limit}
                for name in names
            },
        ),
    )
    return folder


@pytest.fixture
def both(tmp_path: Path, whole_bundle: Path) -> Path:
    """A copy of `whole_bundle` that a test may damage."""
    return Path(shutil.copytree(whole_bundle, tmp_path / "both"))
