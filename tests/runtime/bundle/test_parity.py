"""A bundle's own proof that its files predict what the checkpoint predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import TEXT
from tiny_onnx import edit_json, make_onnx
from tokenizers import Tokenizer

from minigpt_edge_runtime.bundle.parity import TOP, compare_with_reference, make_reference
from minigpt_edge_runtime.bundle.verify import verify
from minigpt_edge_runtime.engines.open import open_engine
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import write_json


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def reference_of(model: Path, path: Path, tokens: int = 64) -> tuple[Path, list[int], np.ndarray]:
    """A reference of a model's own logits, those tokens, and those logits."""
    with open_engine(model, 128, 1, logits_all=True) as engine:
        ids = [0, *engine.tokenize(TEXT)][:tokens]
        logits = engine.logits(ids)
    write_json(path, make_reference(ids, logits))
    return path, ids, logits


def test_a_reference_holds_the_likeliest_tokens_in_order(model: Path, tmp_path: Path) -> None:
    path, ids, logits = reference_of(model, tmp_path / "reference.json", 20)
    content, expected = json.loads(path.read_text()), log_softmax(logits)
    assert content["tokens"] == ids and np.shape(content["top"]) == (20, TOP)
    order = np.argsort(-expected, axis=-1)
    assert (np.array(content["top"])[:, :5] == order[:, :5]).all()
    kept = np.take_along_axis(expected, np.array(content["top"]), -1)
    np.testing.assert_allclose(content["log_probabilities"], kept, atol=1e-4)
    assert (np.diff(kept) <= 0).all()
    np.testing.assert_allclose(content["nll"], -expected[np.arange(19), ids[1:]], atol=1e-4)


def test_a_model_equals_itself_on_both_engines(either: Path, onnx_model: Path, tmp_path: Path) -> None:
    path, _, _ = reference_of(onnx_model, tmp_path / "reference.json")
    found = compare_with_reference(either, path, 1)
    assert abs(found["kl_mean"]) < 1e-4 and found["argmax_agreement"] == 1.0
    assert found["bits_ratio"] == pytest.approx(1, abs=1e-3)


def test_it_is_at_most_the_true_divergence_and_near_it(
    model: Path, onnx_model: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path, ids, logits = reference_of(onnx_model, tmp_path / "reference.json")
    expected = log_softmax(logits)
    for name in ("int8", "int4-64"):
        small = make_onnx(model, tmp_path / name, tokenizer, name)
        with open_engine(small, 64, 1, logits_all=True) as engine:
            other = log_softmax(engine.logits(ids))
        true = float((np.exp(expected) * (expected - other)).sum(-1).mean())
        found = compare_with_reference(small, path, 1)
        assert found["kl_mean"] <= true
        assert found["kl_mean"] == pytest.approx(coarse_divergence(expected, other), rel=0.02)
        assert found["argmax_agreement"] == (expected.argmax(-1) == other.argmax(-1)).mean()
        rows = np.arange(63)
        ratio = other[rows, ids[1:]].sum() / expected[rows, ids[1:]].sum()
        assert found["bits_ratio"] == pytest.approx(ratio, abs=1e-4)


def coarse_divergence(expected: np.ndarray, other: np.ndarray) -> float:
    """Of the likeliest tokens and all others as one, from whole distributions."""
    top = np.argsort(-expected, axis=-1)[:, :TOP]
    p, q = (np.exp(np.take_along_axis(side, top, -1)) for side in (expected, other))
    p, q = (np.concatenate([side, 1 - side.sum(-1, keepdims=True)], axis=-1) for side in (p, q))
    return float((p * np.log(p / q)).sum(-1).mean())


def checks_of(bundle: Path) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in verify(bundle, threads=1)["checks"]}


def test_verify_repeats_the_gate(both: Path) -> None:
    result = verify(both, threads=1)
    assert result["ok"] and all(check["ok"] for check in result["checks"])
    assert [check["name"].rpartition(": ")[2] for check in result["checks"]] == [
        "checksums", *["format", "tokenizer", "computes", "parity"] * 2
    ]  # fmt: skip
    detail = checks_of(both)["onnx-fp32/model.onnx: parity"]["detail"]
    assert "KL to the checkpoint" in detail and "(at most 0.001)" in detail and "100.0% of arg-max" in detail


def test_a_changed_matrix_fails_with_the_figures(both: Path) -> None:
    """Turned around, which keeps all sizes."""
    from minigpt_edge_runtime.formats.onnx_header import read_onnx

    model = both / "onnx-fp32" / "model.onnx"
    tensor = next(t for t in read_onnx(model).tensors if t.name == "blocks.1.attention_output.weight")
    assert tensor.place and tensor.type == "F32"
    file, start = tensor.place
    data = bytearray((model.parent / file).read_bytes())
    matrix = np.frombuffer(data[start : start + tensor.nbytes], np.float32).reshape(tensor.shape)
    data[start : start + tensor.nbytes] = np.ascontiguousarray(matrix.T).tobytes()
    (model.parent / file).write_bytes(data)
    checks = checks_of(both)
    assert "model.onnx.data has been changed" in checks["checksums"]["detail"]
    parity = checks["onnx-fp32/model.onnx: parity"]
    assert parity["ok"] is False and "(at most 0.001)" in parity["detail"]
    assert checks["onnx-fp32/model.onnx: format"]["ok"] and checks["tiny-f16.gguf: parity"]["ok"]


def test_without_a_reference_there_is_nothing_to_compare(both: Path, bundle: Path, onnx_model: Path) -> None:
    assert checks_of(bundle)["model.gguf: parity"]["ok"] is None
    assert checks_of(onnx_model.parent)["model.onnx: parity"]["ok"] is None


def foreign(content: dict[str, Any]) -> None:
    """Of a model with more tokens."""
    content["top"][3][0] = 340


def fewer_rows(content: dict[str, Any]) -> None:
    content["top"].pop()


def ragged(content: dict[str, Any]) -> None:
    content["top"][0].pop()


def no_tokens(content: dict[str, Any]) -> None:
    content.update(tokens=[], top=[], log_probabilities=[], nll=[])


def negative(content: dict[str, Any]) -> None:
    content["tokens"][5] = -1


def huge(content: dict[str, Any]) -> None:
    content["top"][0][0] = 10**30


def not_numbers(content: dict[str, Any]) -> None:
    content["log_probabilities"][2][1] = float("nan")


def no_list(content: dict[str, Any]) -> None:
    content["nll"] = None


@pytest.mark.parametrize(
    "change", [foreign, fewer_rows, ragged, no_tokens, negative, huge, not_numbers, no_list]
)
def test_a_reference_of_another_build_or_damaged(both: Path, change: Any) -> None:
    path = both / "reference.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    for name in ("onnx-fp32/model.onnx", "tiny-f16.gguf"):
        with pytest.raises(EdgeError, match="is damaged|does not belong to this model") as caught:
            compare_with_reference(both / name, path, 1)
        assert caught.value.hint
    assert "reference.json" in checks_of(both)["tiny-f16.gguf: parity"]["detail"]


def test_a_reference_longer_than_the_context(both: Path) -> None:
    path = both / "reference.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: v * 20 if isinstance(v, list) else v for name, v in content.items()}))
    check = checks_of(both)["onnx-fp32/model.onnx: parity"]
    assert check["ok"] is False


def test_thresholds_that_are_damaged(both: Path) -> None:
    manifest = json.loads((both / "manifest.json").read_text())
    manifest["checks"]["tiny-f16.gguf"]["threshold"] = {"kl_mean": "small"}
    manifest["checks"]["onnx-fp32/model.onnx"]["nll"] = [None]
    edit_json(both / "manifest.json", checks=manifest["checks"])
    checks = checks_of(both)
    assert "thresholds are damaged" in checks["tiny-f16.gguf: parity"]["detail"]
    assert "is damaged" in checks["onnx-fp32/model.onnx: computes"]["detail"]
    manifest["checks"]["tiny-f16.gguf"]["document_start"] = {}
    edit_json(both / "manifest.json", checks=manifest["checks"])
    assert "'{}' is not a token" in checks_of(both)["tiny-f16.gguf: computes"]["detail"]
