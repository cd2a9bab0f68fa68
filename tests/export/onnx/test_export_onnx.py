"""ONNX directories against torch, in onnxruntime with and without buffers of ours."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_helpers import LLAMA3, empty_cache, exported, plain_session, step, twin
from safetensors.numpy import load_file, save_file
from tiny_llama import EQUAL, UNEQUAL, Checkpoint, write_reference

from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.targets import PRECISIONS, Precision
from minigpt_edge_export.verify import LogitParity, verify_logits, verify_tokenizer
from minigpt_edge_runtime.engines.open import open_engine
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.formats.gguf_names import gguf_name
from minigpt_edge_runtime.formats.onnx_header import read_onnx

ROWS = np.random.default_rng(1).integers(0, 399, (3, 48)).tolist()
QUANTIZED = [name for name, precision in PRECISIONS.items() if precision.bits]
FORMS: list[tuple[Any, dict[str, Any]]] = [
    (EQUAL, {}),
    (UNEQUAL, {}),
    (UNEQUAL, {"tie_word_embeddings": False}),
    ([(96, 2, 1), (96, 2, 1)], {}),  # heads x head_dim is not hidden_size
    (UNEQUAL, {"attention_bias": True, "mlp_bias": True}),
    (UNEQUAL, {"rope_parameters": LLAMA3}),
    (EQUAL, {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}}),
    ([(100, 4, 4), (36, 6, 2)], {"hidden_size": 72, "tie_word_embeddings": False}),  # no multiples of 32
    ([(100, 4, 4), (36, 6, 2)], {"hidden_size": 72, "mlp_bias": True}),
]


def parity(model: Path, checkpoint: Checkpoint) -> LogitParity:
    reference = model.parent.with_suffix(".reference.safetensors")
    write_reference(reference, checkpoint, ROWS)
    return verify_logits(model, reference, 1)


@pytest.mark.parametrize(("blocks", "changes"), FORMS)
def test_fp32_logits_are_those_of_torch(
    make: Callable[..., Checkpoint], tmp_path: Path, blocks: Any, changes: dict[str, Any]
) -> None:
    checkpoint = make(blocks, **changes)
    model = exported(checkpoint, tmp_path / "model", "fp32")
    found = parity(model, checkpoint)
    assert abs(found.kl_mean) < 1e-6 and found.kl_max < 1e-5 and found.tokens == 144
    assert found.argmax_agreement >= 0.99  # a near tie may turn
    with open_engine(model, 64, 1, logits_all=True) as engine:
        np.testing.assert_allclose(engine.logits(ROWS[0]), checkpoint.logits(ROWS[0]), atol=2e-4)


@pytest.mark.whole
@pytest.mark.parametrize(("blocks", "changes"), FORMS)
@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_logits_are_those_of_the_quantized_weights(
    make: Callable[..., Checkpoint], tmp_path: Path, blocks: Any, changes: dict[str, Any], name: str
) -> None:
    """With products in float32, it equals torch with the rounded weights."""
    checkpoint, precision = make(blocks, **changes), dataclasses.replace(PRECISIONS[name], accuracy_level=0)
    model = exported(checkpoint, tmp_path / "model", precision)
    expected = twin(checkpoint, precision)
    with open_engine(model, 64, 1, logits_all=True) as engine:
        np.testing.assert_allclose(engine.logits(ROWS[0]), expected.logits(ROWS[0]), atol=2e-3)


@pytest.mark.parametrize(("blocks", "changes"), [FORMS[1], FORMS[6]])
@pytest.mark.parametrize("name", QUANTIZED)
def test_products_in_int8_add_little(
    make: Callable[..., Checkpoint], tmp_path: Path, blocks: Any, changes: dict[str, Any], name: str
) -> None:
    checkpoint = make(blocks, **changes)
    found = parity(exported(checkpoint, tmp_path / "model", name), twin(checkpoint, PRECISIONS[name]))
    assert 0 < found.kl_mean < 0.02


@pytest.mark.parametrize(("name", "limit"), [("fp16", 1e-4), ("int8", 0.03), ("int4", 1.0), ("int4-64", 1.0)])
def test_what_a_precision_loses(unequal: Checkpoint, tmp_path: Path, name: str, limit: float) -> None:
    found = parity(exported(unequal, tmp_path / "model", name), unequal)
    assert 0 < found.kl_mean < limit and found.bits_ratio < 1.05


def test_a_prompt_may_come_in_parts(unequal: Checkpoint, tmp_path: Path) -> None:
    model = exported(unequal, tmp_path / "model", "fp32")
    ids = ROWS[0]
    with open_engine(model, 64, 1, logits_all=True) as engine:
        expected = engine.logits(ids)
        for sizes in ([48], [20, 28], [1] * 48, [47, 1], [1, 47]):
            engine.reset()
            at = 0
            for size in sizes:
                last = engine.eval(ids[at : at + size])
                at += size
                np.testing.assert_allclose(last, expected[at - 1], atol=1e-4)


def test_plain_onnxruntime_needs_nothing_of_ours(unequal: Checkpoint, tmp_path: Path) -> None:
    session = plain_session(exported(unequal, tmp_path / "model", "fp32"))
    tokens, expected = np.array(ROWS[:2]), np.stack([unequal.logits(row) for row in ROWS[:2]])
    logits, cache = step(session, tokens[:, :30], empty_cache(session, 2))
    np.testing.assert_allclose(logits, expected[:, :30], atol=2e-4)  # every row, by default
    shapes = {value.name: value.shape for value in session.get_inputs()}
    assert len(cache) == 6 and all(value.shape[2] == 30 for value in cache.values())
    assert [shapes[f"past_key_values.{block}.key"][1] for block in range(3)] == [2, 1, 2]
    for at in range(30, 48):
        logits, cache = step(session, tokens[:, at : at + 1], cache)
        np.testing.assert_allclose(logits[:, 0], expected[:, at], atol=2e-4)
    start = np.array([-1])
    logits, _ = step(session, tokens, empty_cache(session, 2), logits_start=start)
    assert logits.shape == (2, 1, 400)
    np.testing.assert_allclose(logits[:, 0], expected[:, -1], atol=2e-4)


def test_late_positions_keep_their_digits(make: Callable[..., Checkpoint], tmp_path: Path) -> None:
    """A cosine of 100,000 radians: the angle's float32 is off by 0.004."""
    checkpoint = make(EQUAL, max_position_embeddings=100_001)
    model = onnx.load(exported(checkpoint, tmp_path / "model", "fp32"))
    for name in ("rotary.cos", "rotary.sin"):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    onnx.save(model, tmp_path / "model" / "tables.onnx")
    session = plain_session(tmp_path / "model" / "tables.onnx")
    cache = empty_cache(session)
    inputs = {"input_ids": np.array([[5]]), "attention_mask": np.array([[1]])}
    tables = session.run(["rotary.cos", "rotary.sin"], {**inputs, **cache})
    angles = np.arange(100_001)[:, None] * 5000.0 ** (-np.arange(0, 16, 2) / 16)
    for table, expected in zip(tables, (np.cos(angles), np.sin(angles)), strict=True):
        np.testing.assert_allclose(table, expected, atol=1e-6)


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("tied", [True, False])
def test_it_is_a_valid_model_of_the_operators_it_should_have(
    make: Callable[..., Checkpoint], tmp_path: Path, name: str, tied: bool
) -> None:
    checkpoint = make(UNEQUAL, tie_word_embeddings=tied)
    path, precision = exported(checkpoint, tmp_path / "model", name), PRECISIONS[name]
    onnx.checker.check_model(str(path))
    operators = read_onnx(path).operators
    assert operators == Counter(node_name(node) for node in onnx.load(path).graph.node)
    assert operators["com.microsoft.GroupQueryAttention"] == 3
    matrices = 4 * 3  # query, key and value are one; gate and up are one
    if precision.bits:
        assert operators["com.microsoft.MatMulNBits"] == matrices + 1
        assert operators["com.microsoft.GatherBlockQuantized"] == 1 and "MatMul" not in operators
    else:
        assert operators["MatMul"] == matrices and operators["com.microsoft.FusedMatMul"] == 1


def node_name(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type)


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("tied", [True, False])
def test_no_weight_is_stored_twice(
    make: Callable[..., Checkpoint], tmp_path: Path, name: str, tied: bool
) -> None:
    checkpoint = make(UNEQUAL, tie_word_embeddings=tied)
    header = read_onnx(exported(checkpoint, tmp_path / "model", name))
    precision, decoder = PRECISIONS[name], read_checkpoint(checkpoint.path)
    head = 400 * 64 * (1 if tied else 2)
    if precision.bits:
        wanted = (decoder.parameters - head) * precision.bits / 8 + head
    else:
        wanted = decoder.parameters * (4 if name == "fp32" else 2)
    padding = 2 if precision.block_size == 128 else 1  # rows of 64 are half a block
    assert wanted <= header.weight_bytes < 1.25 * padding * wanted + 8000
    stored = (tmp_path / "model" / "model.onnx.data").stat().st_size
    assert header.weight_bytes - 60_000 < stored < header.weight_bytes + len(header.tensors) * 4096
    places = Counter(tensor.place for tensor in header.tensors if tensor.place)
    # two operators want the embedding's codes in different shapes
    assert [count for count in places.values() if count > 1] == ([2] if precision.bits else [])


def test_the_same_arguments_give_the_same_bytes(unequal: Checkpoint, tmp_path: Path) -> None:
    moved = Checkpoint(Path(shutil.copytree(unequal.path, tmp_path / "elsewhere")), unequal.model)
    metadata = {"name": "Law 2", "license": "apache-2.0", "base_model": "SmolLM2"}
    for name in ("fp16", "int4"):
        first, second = (
            exported(checkpoint, tmp_path / f"{name}-{at}", name, metadata=metadata)
            for at, checkpoint in enumerate((unequal, moved))
        )
        assert contents(first.parent) == contents(second.parent)
    facts = read_onnx(first).facts
    assert facts["name"] == "Law 2" and facts["license"] == "apache-2.0" and facts["quantization"] == "INT4"
    assert facts["ffn_width"] == [96, 64, 160] and facts["kv_heads"] == [2, 1, 2]
    assert facts["parameters"] == read_checkpoint(unequal.path).parameters
    assert facts["tied_embeddings"] is True and facts["symmetric"] is False


def contents(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found.keys() == {
        "model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja",
    }  # fmt: skip
    return found


@pytest.mark.parametrize("tied", [True, False])
def test_every_matrix_gets_its_own_statistics(
    make: Callable[..., Checkpoint], tmp_path: Path, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    symmetric = Precision("int4", 4, block_size=64, head_block_size=64)  # its scales are refitted
    monkeypatch.setitem(PRECISIONS, "int4-64", symmetric)
    checkpoint = make(UNEQUAL, tie_word_embeddings=tied)
    shapes = read_checkpoint(checkpoint.path).shapes()
    plain = exported(checkpoint, tmp_path / "plain", "int4-64").with_suffix(".onnx.data").read_bytes()
    first = {"blocks.1.query", "blocks.1.attention_output", "blocks.1.gate", "blocks.1.down"}
    for name in sorted(first | {"embedding" if tied else "head"}):
        importance = np.random.default_rng(3).exponential(1, shapes[f"{name}.weight"][1]).astype(np.float32)
        found = exported(
            checkpoint, tmp_path / name, "int4-64", imatrix={gguf_name(f"{name}.weight"): importance}
        )
        assert found.with_suffix(".onnx.data").read_bytes() != plain
    assert found.with_suffix(".onnx.data").stat().st_size == len(plain)
    if not tied:  # the last one was the head: nothing is multiplied with the embedding
        assert embedding_codes(found) == embedding_codes(tmp_path / "plain" / "model.onnx")


def embedding_codes(model: Path) -> bytes:
    (tensor,) = (t for t in read_onnx(model).tensors if t.name == "embedding.codes")
    assert tensor.place
    data = (model.parent / tensor.place[0]).read_bytes()
    return data[tensor.place[1] : tensor.place[1] + tensor.nbytes]


def test_the_gate_compares_token_ids(unequal: Checkpoint, tmp_path: Path) -> None:
    model = exported(unequal, tmp_path / "model", "fp32")
    texts = ["The licensee shall not <article> 97", "法律 e\u0301 🙂", "a<|endoftext|>b"]
    found = verify_tokenizer(model, unequal.path / "tokenizer.json", texts)
    assert found.good and found.texts > len(texts) + 4  # with the added tokens and prompts


@pytest.fixture
def damaged(copied: Path) -> Checkpoint:
    return Checkpoint(copied, None)


def refused(checkpoint: Checkpoint, folder: Path, message: str, precision: str = "fp32") -> None:
    with pytest.raises(EdgeError, match=message) as caught:
        exported(checkpoint, folder / "out" / "model", precision)
    assert caught.value.hint
    assert not list((folder / "out").rglob("*"))


def test_what_cannot_be_exported_leaves_nothing(
    make: Callable[..., Checkpoint], damaged: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in (8, 24):
        refused(make(EQUAL, head_dim=size), tmp_path, f"heads of {size} values")
    weights = load_file(damaged.path / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = 1e6
    save_file(weights, damaged.path / "model.safetensors")
    refused(damaged, tmp_path, "beyond float16", "fp16")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = np.nan
    save_file(weights, damaged.path / "model.safetensors")
    refused(damaged, tmp_path, "NaN", "int4-64")
    (damaged.path / "tokenizer.json").unlink()
    refused(damaged, tmp_path, "lacks tokenizer.json")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    refused(make(EQUAL), tmp_path, "0 MB are free")


def test_a_full_disk_leaves_nothing(
    equal: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)  # the last files of a directory
    refused(equal, tmp_path, "no space left on the disk")


def test_a_directory_that_exists_is_left_alone(equal: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    with pytest.raises(EdgeError, match="exists"):
        exported(equal, tmp_path / "model", "fp32")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["mine.txt"]


def test_genais_settings(unequal: Checkpoint, tmp_path: Path) -> None:
    content = json.loads(
        (exported(unequal, tmp_path / "model", "fp32").parent / "genai_config.json").read_text()
    )
    model, decoder = content["model"], content["model"]["decoder"]
    assert content["search"]["past_present_share_buffer"] is True
    assert (model["context_length"], model["vocab_size"], content["search"]["max_length"]) == (512, 400, 512)
    assert (model["bos_token_id"], model["eos_token_id"]) == (1, [2, 0])
    assert (decoder["head_size"], decoder["hidden_size"], decoder["num_hidden_layers"]) == (16, 64, 3)
    assert (decoder["num_attention_heads"], decoder["num_key_value_heads"]) == (4, 2)
