"""What a fixed build makes stays the same, and what an earlier version made is still read.

The model's weights are exact in binary and the method ranks units by their norms, so that the files depend on
no rounding of a processor. Only the order of inputs does, which is by measured energy, so a hash is of the
tensors in an order that their own numbers give. A hash that changes on purpose is changed here, and the
changelog says why.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from source import ROOT
from tiny_build import write_corpus, write_model

pytestmark = pytest.mark.whole

DATA = Path(__file__).with_name("data")
TOKENS = 400  # of golden-tokenizer.json
GOLDEN = {
    "plan.json": "14656c0117f9ac478b67ec764e1b6efd9026ad9372287e231a01a7c871708fc7",
    "tokenizer.json": "8a40abe7f14e7152f326659d3c772feefc811b22c4228afd75a2e0c0741a4ebc",
    "golden-f16.gguf": "d14c95fb908734e8af32fae8b4c294397cc0c66b7252df953ea443c1358df7e2",
}


def write_exact_model(folder: Path, corpus: Path) -> Path:
    """The tiny model with the tokenizer of `data` and weights that are multiples of 1/1024."""
    from safetensors.numpy import load_file, save_file
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    write_model(folder, corpus, config=config)
    shutil.copyfile(DATA / "golden-tokenizer.json", folder / "tokenizer.json")
    weights = load_file(folder / "model.safetensors")
    chance = np.random.Generator(np.random.PCG64(0))
    for name in sorted(weights):
        shape = (TOKENS, 32) if "embed_tokens" in name else weights[name].shape
        weights[name] = (chance.integers(-512, 513, shape) / 1024).astype(np.float32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "vocab_size": TOKENS}))
    return folder


def build(folder: Path, *options: str) -> Path:
    write_exact_model(folder / "model", write_corpus(folder / "corpus"))
    path = os.pathsep.join(str(ROOT / part) for part in (".", "export", "runtime"))
    environment = {**os.environ, "MINIGPT_EDGE_CACHE": str(folder / "cache"), "PYTHONPATH": path}
    given = ["--model", "./model", "--corpus", "corpus", "--out", "golden", "--threads", "1"]
    given += ["--method", "magnitude", "--no-refit", "--no-recover", "--no-baseline", "--sparsity", "0.2"]
    given += ["--min-count", "1", "--calibration-tokens", "2048", *options]
    command = [sys.executable, "-m", "minigpt_edge", "build", *given]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "golden"


def without_order(path: Path) -> bytes:
    """A GGUF file's header, and its tensors with inputs sorted by the numbers of embedding and gate."""
    reader = GGUFReader(path)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    stream = np.lexsort(tensors["token_embd.weight"])
    contents = [path.read_bytes()[: reader.tensors[0].data_offset]]
    for name, values in tensors.items():
        *block, part, _ = name.split(".")
        if part.startswith("ffn_") and part != "ffn_norm":
            gate = tensors[f"blk.{block[1]}.ffn_gate.weight"]
            neurons = np.lexsort(gate[:, stream].T)
            values = values[:, neurons] if part == "ffn_down" else values[neurons]
        if part in ("attn_output", "ffn_down") or values.ndim == 1:
            values = values[stream]
        else:
            values = values[:, stream]
        contents.append(name.encode() + np.ascontiguousarray(values).tobytes())
    return b"".join(contents)


def hashes(bundle: Path) -> dict[str, str]:
    contents = {name: (bundle / name).read_bytes() for name in GOLDEN}
    contents["golden-f16.gguf"] = without_order(bundle / "golden-f16.gguf")
    plan = json.loads(contents["plan.json"])
    contents["plan.json"] = json.dumps([plan["blocks"], plan["vocabulary"], plan["parameters"]]).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def test_a_fixed_build_makes_the_same_files(tmp_path: Path) -> None:
    bundle = build(tmp_path, "--target", "gguf-f16")
    assert hashes(bundle) == GOLDEN


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle that version 0.1.0 built, zipped as it would be sent to a device."""
    monkeypatch.setenv("MINIGPT_EDGE_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copy(DATA / "bundle-0.1.0.zip", tmp_path / "bundle.zip"))


def run(*arguments: str | Path) -> str:
    from click.testing import CliRunner

    from minigpt_edge_runtime.cli import cli

    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_an_earlier_bundle_loads_verifies_and_compares(earlier: Path, tmp_path: Path) -> None:
    checked = json.loads(run("verify", earlier, "--json", "--threads", "1"))
    assert checked["ok"] and len(checked["checks"]) >= 5
    assert json.loads(run("inspect", earlier, "--json"))["facts"]["name"] == "golden"
    for file in ("golden-f16.gguf", "onnx-int8"):
        run("run", earlier, "The licensee", "--file", file, "--max-tokens", "3", "--threads", "1")
    options = ("--prompt-lengths", "16", "--depths", "0", "--generate-tokens", "4", "--repeat", "2")
    run("bench", earlier, "--profile", "cpu", *options, "-o", tmp_path / "new.json")
    table = run("compare", DATA / "report-0.1.0.json", tmp_path / "new.json")
    assert "decode" in table
