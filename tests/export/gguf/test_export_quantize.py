from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, dequantize
from safetensors.numpy import save_file
from tiny_llama import UNEQUAL, Checkpoint

from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.gguf.quantize import (
    expected_bytes,
    expected_types,
    imatrix_from_file,
    quantize,
)
from minigpt_edge_export.gguf.write import write_gguf
from minigpt_edge_export.targets import QUANTIZATIONS, UNQUANTIZED
from minigpt_edge_runtime.engines.open import open_engine
from minigpt_edge_runtime.errors import EdgeError, UsageError
from minigpt_edge_runtime.formats.gguf_header import read_header

QUANTIZED = [name for name in QUANTIZATIONS if name not in UNQUANTIZED]
SLOW = ("iq1", "iq2", "iq3")  # llama.cpp searches their grids for seconds
KINDS = [
    pytest.param([name for name in QUANTIZED if not name.startswith(SLOW)], id="most"),
    pytest.param([name for name in QUANTIZED if name.startswith(SLOW)], id="grids", marks=pytest.mark.slow),
]
# Rows of 64, 96, 256 and 32: some tensors keep 256-blocks, some fall back to 32-blocks.
MIXED = [(256, 4, 2), (96, 2, 1), (256, 4, 2)]


def f16(make: Callable[..., Checkpoint], folder: Path, blocks: Any, **changes: Any) -> Path:
    path = folder / "f16.gguf"
    write_gguf(read_checkpoint(make(blocks, **changes).path), path)
    return path


def matrix(path: Path, name: str) -> np.ndarray:
    tensor = next(tensor for tensor in GGUFReader(path).tensors if tensor.name == name)
    return dequantize(tensor.data, tensor.tensor_type)


def imatrix_for(path: Path, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        tensor.name: rng.lognormal(0, 2, tensor.shape[0]).astype(np.float32)
        for tensor in read_header(path).tensors
        if len(tensor.shape) > 1
    }


@pytest.mark.parametrize("name", ["q4_0", "q8_0"])
def test_quantized_file_runs(make: Callable[..., Checkpoint], tmp_path: Path, name: str) -> None:
    source, path = f16(make, tmp_path, UNEQUAL), tmp_path / "q.gguf"
    types = quantize(source, path, name, threads=1)
    assert types == read_header(path).types()
    assert types[name.upper()]["tensors"] >= 21
    assert path.stat().st_size < source.stat().st_size
    with open_engine(path, 64, 1, logits_all=True) as engine:
        found = engine.logits([5, 6, 7, 8])
    expected = make(UNEQUAL).logits([5, 6, 7, 8])
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > (0.9 if name == "q4_0" else 0.999)


@pytest.mark.parametrize("imatrix", [True, False])
@pytest.mark.parametrize("names", KINDS)
def test_expected_types_are_what_llama_cpp_makes(
    make: Callable[..., Checkpoint], tmp_path: Path, names: list[str], imatrix: bool
) -> None:
    decoder, source = read_checkpoint(make(MIXED).path), f16(make, tmp_path, MIXED)
    given = imatrix_for(source) if imatrix else None
    for name in names:
        if imatrix or not QUANTIZATIONS[name].needs_imatrix:
            quantize(source, tmp_path / "q.gguf", name, imatrix=given, threads=1)
            made = {tensor.name: tensor.type for tensor in read_header(tmp_path / "q.gguf").tensors}
            expected = expected_types(decoder, name, imatrix=imatrix)
            assert expected == made, name
            assert expected_bytes(decoder, expected) == sum(
                entry["bytes"] for entry in read_header(tmp_path / "q.gguf").types().values()
            )


@pytest.mark.parametrize("name", ["q4_0", "iq4_nl"])
def test_importance_matrix_is_used(make: Callable[..., Checkpoint], tmp_path: Path, name: str) -> None:
    source = f16(make, tmp_path, UNEQUAL, tie_word_embeddings=False)
    importance = imatrix_for(source)
    quantize(source, tmp_path / "plain.gguf", name, threads=1)
    quantize(source, tmp_path / "weighted.gguf", name, imatrix=importance, threads=1)
    for tensor in (
        "blk.0.attn_q.weight",
        "blk.1.ffn_down.weight",
        "blk.2.ffn_up.weight",
        "blk.2.attn_output.weight",
    ):
        dense, weights = matrix(source, tensor).astype(np.float64), importance[tensor]
        plain, weighted = (
            float(((matrix(tmp_path / file, tensor) - dense) ** 2 * weights).sum())
            for file in ("plain.gguf", "weighted.gguf")
        )
        assert weighted < 0.9 * plain, tensor


def test_head_importance_reaches_a_tied_embedding(make: Callable[..., Checkpoint], tmp_path: Path) -> None:
    source = f16(make, tmp_path, UNEQUAL)
    importance = imatrix_for(source)
    head = importance.pop("token_embd.weight")
    files = {}
    for label, extra in (
        ("without", {}),
        ("head", {"output.weight": head}),
        ("embedding", {"token_embd.weight": head}),
    ):
        path = tmp_path / f"{label}.gguf"
        options: Any = {"tensor_types": {"token_embd": "q4_0"}, "threads": 1}
        quantize(source, path, "q4_0", imatrix={**importance, **extra}, **options)
        files[label] = path.read_bytes()
    assert files["head"] == files["embedding"] != files["without"]


@pytest.mark.parametrize("names", KINDS)
def test_dead_channels_do_no_harm(make: Callable[..., Checkpoint], tmp_path: Path, names: list[str]) -> None:
    source = f16(make, tmp_path, MIXED)
    importance = {name: np.zeros_like(values) for name, values in imatrix_for(source).items()}
    for name in names:
        quantize(source, tmp_path / "q.gguf", name, imatrix=importance, threads=1)
        with open_engine(tmp_path / "q.gguf", 32, 1, logits_all=True) as engine:
            assert np.isfinite(engine.logits([5, 6, 7])).all(), name


def test_two_bits_for_all_but_ffn_outputs(make: Callable[..., Checkpoint], tmp_path: Path) -> None:
    source, path = f16(make, tmp_path, MIXED), tmp_path / "q.gguf"
    quantize(source, path, "q2_0", threads=1)
    header = read_header(path)
    assert header.quantization == "Q2_0"
    types = {tensor.name: tensor.type for tensor in header.tensors}
    assert {kind for name, kind in types.items() if "ffn_down" in name} == {"IQ4_NL"}
    assert {kind for name, kind in types.items() if "ffn_up" in name or "attn_q" in name} == {"Q2_0"}
    assert types["token_embd.weight"] == "Q8_0"
    quantize(source, path, "q2_0", threads=1, tensor_types={r"blk\.1\.ffn_down": "q8_0"})
    types = {tensor.name: tensor.type for tensor in read_header(path).tensors}
    assert types["blk.0.ffn_down.weight"] == "IQ4_NL" and types["blk.1.ffn_down.weight"] == "Q8_0"


def test_bytes_do_not_depend_on_threads(make: Callable[..., Checkpoint], tmp_path: Path) -> None:
    source = f16(make, tmp_path, UNEQUAL)
    for threads in (1, 2):
        quantize(source, tmp_path / f"{threads}.gguf", "q4_0", imatrix=imatrix_for(source), threads=threads)
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "2.gguf").read_bytes()


def test_types_of_single_tensors(make: Callable[..., Checkpoint], tmp_path: Path) -> None:
    source, path = f16(make, tmp_path, UNEQUAL, tie_word_embeddings=False), tmp_path / "q.gguf"
    wanted = {r"^output\.weight$": "q5_1", "token_embd": "iq4_nl", r"ffn_down\.weight$": "q8_0"}
    quantize(source, path, "q4_0", threads=1, tensor_types=wanted)
    types = {tensor.name: tensor.type for tensor in read_header(path).tensors}
    assert types["output.weight"] == "Q5_1"
    assert types["token_embd.weight"] == "IQ4_NL"
    assert {types[f"blk.{index}.ffn_down.weight"] for index in range(3)} == {"Q8_0"}
    assert types["blk.0.ffn_up.weight"] == "Q4_0"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"quantization": "q4_9"}, UsageError, "unknown quantization type 'q4_9'"),
        ({"quantization": "f16"}, UsageError, "unknown quantization type 'f16'"),
        ({"quantization": "iq2_xs"}, EdgeError, "needs an importance matrix"),
        ({"tensor_types": {"attn_q": "q9"}}, UsageError, "unknown tensor type 'q9'"),
        ({"tensor_types": {"token_embd": "q6_K"}}, EdgeError, "rows of 64, q6_K needs a multiple of 256"),
        ({"tensor_types": {"attn_z": "q8_0"}}, UsageError, "no tensor is called 'attn_z'"),
        ({"imatrix": {}}, EdgeError, "blk.0.attn_q.weight is missing.* more"),
    ],
)
def test_refuses_bad_requests(
    make: Callable[..., Checkpoint], tmp_path: Path, options: dict, error: type, message: str
) -> None:
    source, path = f16(make, tmp_path, UNEQUAL), tmp_path / "q.gguf"
    request = {"quantization": "q4_0", **options}
    with pytest.raises(error, match=message):
        quantize(source, path, threads=1, **request)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["f16.gguf"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blk.0.ffn_up.weight": np.ones(63, np.float32)}, r"blk\.0\.ffn_up\.weight has shape \[63\]"),
        ({"blk.9.ffn_up.weight": np.ones(64, np.float32)}, "blk.9.ffn_up.weight is not in the model"),
        ({"blk.0.ffn_up.weight": np.full(64, np.nan, np.float32)}, "negative or infinite"),
    ],
)
def test_refuses_an_importance_matrix_of_another_model(
    make: Callable[..., Checkpoint], tmp_path: Path, change: dict, message: str
) -> None:
    source = f16(make, tmp_path, UNEQUAL)
    with pytest.raises(EdgeError, match=message):
        quantize(source, tmp_path / "q.gguf", "q4_0", imatrix={**imatrix_for(source), **change}, threads=1)


def test_refuses_bad_sources(make: Callable[..., Checkpoint], tmp_path: Path) -> None:
    source = f16(make, tmp_path, UNEQUAL)
    quantize(source, tmp_path / "q.gguf", "q8_0", threads=1)
    with pytest.raises(EdgeError, match="already quantized"):
        quantize(tmp_path / "q.gguf", tmp_path / "again.gguf", "q4_0", threads=1)
    source.write_bytes(source.read_bytes()[:-5000])
    with pytest.raises(EdgeError, match="truncated"):
        quantize(source, tmp_path / "again.gguf", "q4_0", threads=1)


def test_llama_cpp_gives_the_reason_and_keeps_quiet(
    make: Callable[..., Checkpoint], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    decoder = read_checkpoint(make(UNEQUAL).path)
    source = tmp_path / "f16.gguf"
    write_gguf(decoder, source)
    data = bytearray(source.read_bytes())
    at = data.index(b"deci")
    data[at : at + 4] = b"dexi"
    source.write_bytes(data)
    with pytest.raises(EdgeError, match="unknown model architecture: 'dexi'"):
        quantize(source, tmp_path / "q.gguf", "q4_0", threads=1)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_importance_matrix_file(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.safetensors"
    save_file({"blk.0.ffn_up.weight": np.arange(4, dtype=np.float32)}, path)
    np.testing.assert_array_equal(imatrix_from_file(path)["blk.0.ffn_up.weight"], [0, 1, 2, 3])
    save_file({"blk.0.ffn_up.weight": np.zeros((2, 2), np.float32)}, path)
    with pytest.raises(EdgeError, match="no float32 vector"):
        imatrix_from_file(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(EdgeError, match="not a whole safetensors file"):
        imatrix_from_file(path)
    with pytest.raises(EdgeError, match="does not exist"):
        imatrix_from_file(tmp_path / "nothing")
