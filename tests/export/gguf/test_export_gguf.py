from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_llama import EQUAL, TEMPLATE, UNEQUAL, Checkpoint, edit_config, write_reference

from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.gguf.write import write_gguf
from minigpt_edge_export.verify import verify_logits
from minigpt_edge_runtime.errors import EdgeError, UsageError
from minigpt_edge_runtime.formats.gguf_header import read_header

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}
ROWS = np.random.default_rng(1).integers(0, 399, (3, 48)).tolist()


@pytest.mark.parametrize(
    ("blocks", "changes", "architecture"),
    [
        (EQUAL, {}, "llama"),
        (UNEQUAL, {}, "deci"),
        (EQUAL, {"tie_word_embeddings": False}, "llama"),
        (UNEQUAL, {"tie_word_embeddings": False}, "deci"),
        ([(96, 2, 1), (96, 2, 1)], {}, "llama"),  # heads x head_dim is not hidden_size
        (EQUAL, {"attention_bias": True, "mlp_bias": True}, "llama"),
        (UNEQUAL, {"attention_bias": True, "mlp_bias": True}, "deci"),
        (UNEQUAL, {"rope_parameters": LLAMA3}, "deci"),
        (EQUAL, {"rope_parameters": LINEAR}, "llama"),
        (UNEQUAL, {"rope_parameters": LINEAR}, "deci"),
    ],
)
def test_logits_are_those_of_torch(
    make: Callable[..., Checkpoint], tmp_path: Path, blocks: Any, changes: dict, architecture: str
) -> None:
    checkpoint, path = make(blocks, **changes), tmp_path / "model.gguf"
    write_gguf(read_checkpoint(checkpoint.path), path, file_type="f32")
    write_reference(tmp_path / "reference.safetensors", checkpoint, ROWS)
    parity = verify_logits(path, tmp_path / "reference.safetensors", 1)
    assert read_header(path).architecture == architecture
    assert parity.tokens == 144
    assert parity.kl_mean < 3e-5  # the cache is float16
    assert parity.argmax_agreement >= 0.99


@pytest.mark.parametrize(("file_type", "limit"), [("f16", 1e-4), ("bf16", 2e-3)])
def test_half_precision(unequal: Checkpoint, tmp_path: Path, file_type: str, limit: float) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(read_checkpoint(unequal.path), path, file_type=file_type)
    write_reference(tmp_path / "reference.safetensors", unequal, ROWS)
    assert verify_logits(path, tmp_path / "reference.safetensors", 1).kl_mean < limit
    types = read_header(path).types()
    assert types[file_type.upper()]["tensors"] == 1 + 7 * 3
    assert types["F32"]["tensors"] == 1 + 2 * 3


@pytest.mark.parametrize("kind", ["equal", "unequal"])
def test_loads_in_llama_cpp_python_by_itself(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    from llama_cpp import Llama

    checkpoint: Checkpoint = request.getfixturevalue(kind)
    write_gguf(read_checkpoint(checkpoint.path), tmp_path / "model.gguf")
    path = str(tmp_path / "model.gguf")
    model = Llama(path, n_ctx=64, n_threads=1, logits_all=True, verbose=False)
    try:
        model.eval(ROWS[0])
        expected, found = checkpoint.logits(ROWS[0]), model.scores[: len(ROWS[0])]
        assert np.abs(expected - found).max() < 0.02 * np.abs(expected).max()
        assert model.metadata["tokenizer.chat_template"] == TEMPLATE
        assert model.metadata["tokenizer.ggml.pre"] == "smollm"
        assert model.create_completion("The licensee", max_tokens=4, seed=1)["choices"]
    finally:
        model.close()


def test_metadata_and_bytes_are_reproducible(equal: Checkpoint, tmp_path: Path) -> None:
    metadata = {"name": "Law 2", "license": "apache-2.0", "base_model": "SmolLM2"}
    moved = Path(shutil.copytree(equal.path, tmp_path / "elsewhere"))
    for directory, name in ((equal.path, "a.gguf"), (moved, "b.gguf")):
        write_gguf(read_checkpoint(directory), tmp_path / name, metadata=metadata)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    found = read_header(tmp_path / "a.gguf").metadata
    assert found["general.name"] == "Law 2"
    assert found["general.license"] == "apache-2.0"
    assert found["general.base_model.0.name"] == "SmolLM2"
    assert found["general.base_model.count"] == 1
    assert found["general.file_type"] == 1
    assert found["llama.feed_forward_length"] == 96
    assert found["llama.attention.key_length"] == found["llama.rope.dimension_count"] == 16


def test_sizes_per_block_are_arrays(unequal: Checkpoint, tmp_path: Path) -> None:
    write_gguf(read_checkpoint(unequal.path), tmp_path / "model.gguf")
    found = read_header(tmp_path / "model.gguf")
    assert found.of_architecture("feed_forward_length") == [96, 64, 160]
    assert found.of_architecture("attention.head_count") == [4, 2, 2]
    assert found.of_architecture("attention.head_count_kv") == [2, 1, 2]


def test_a_failure_leaves_the_old_file(copied: Path, tmp_path: Path) -> None:
    path = tmp_path / "out" / "model.gguf"
    write_gguf(read_checkpoint(copied), path)
    before = path.read_bytes()
    weights = load_file(copied / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = 1e6
    save_file(weights, copied / "model.safetensors")
    with pytest.raises(EdgeError, match="beyond float16"):
        write_gguf(read_checkpoint(copied), path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["model.gguf"]
    write_gguf(read_checkpoint(copied), path, file_type="bf16")


def test_needs_space(equal: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(EdgeError, match="0 MB are free"):
        write_gguf(read_checkpoint(equal.path), tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_rows_without_a_token_become_unused(copied: Path, tmp_path: Path) -> None:
    data = json.loads((copied / "tokenizer.json").read_text())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] != "<article>"]
    (copied / "tokenizer.json").write_text(json.dumps(data))
    write_gguf(read_checkpoint(copied), tmp_path / "model.gguf")
    from gguf import GGUFReader

    fields = GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.ggml.tokens"].contents()[398:] == ["[PAD398]", "[PAD399]"]
    assert fields["tokenizer.ggml.token_type"].contents()[396:] == [1, 1, 5, 5]


def test_refuses_unknown_names(equal: Checkpoint, tmp_path: Path) -> None:
    decoder = read_checkpoint(equal.path)
    with pytest.raises(UsageError, match="file type 'q4_0'"):
        write_gguf(decoder, tmp_path / "model.gguf", file_type="q4_0")
    with pytest.raises(UsageError, match="colour"):
        write_gguf(decoder, tmp_path / "model.gguf", metadata={"colour": "red"})


def test_more_tokens_than_rows(copied: Path, tmp_path: Path) -> None:
    data = json.loads((copied / "tokenizer.json").read_text())
    for text in ("<more>", "<and more>"):
        data["added_tokens"].append({**data["added_tokens"][0], "id": 400, "content": text})
    (copied / "tokenizer.json").write_text(json.dumps(data))
    edit_config(copied, pad_token_id=None)
    with pytest.raises(EdgeError, match="400, the embedding has 400 rows"):
        write_gguf(read_checkpoint(copied), tmp_path / "model.gguf")
