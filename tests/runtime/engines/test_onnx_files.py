"""ONNX directories that are damaged, foreign or dangerous: one message and a hint, by the command line."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from tiny_gguf import CONTEXT, TEXT
from tiny_onnx import edit_json
from tokenizers import AddedToken, Tokenizer

from minigpt_edge_runtime.cli import cli
from minigpt_edge_runtime.engines.open import open_engine
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.formats.onnx_header import read_onnx


def assert_refused(model: Path, message: str, *options: object, verb: str = "run") -> None:
    args = [verb, model, *(["x", "--threads", 1, *options] if verb == "run" else options)]
    result = CliRunner().invoke(cli, [str(arg) for arg in args])
    assert result.exit_code == 1 and result.stdout == "", result.output
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert [line.split(": ")[0] for line in result.stderr.splitlines()] == ["error", "hint"]


def edit_model(path: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    """Change the graph and leave the data file alone."""
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())


def test_weights_that_are_missing_or_short(copied: Path) -> None:
    data = copied.with_name("model.onnx.data")
    whole = data.read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 1):
        data.write_bytes(whole[:size])
        assert_refused(copied, f"model.onnx.data is truncated: it has {size:,} bytes")
        assert_refused(copied, "is truncated", verb="inspect")
    data.unlink()
    assert_refused(copied, "model.onnx.data, which holds the weights of model.onnx, is missing")
    report = copied.with_name("report.json")
    result = CliRunner().invoke(cli, ["bench", str(copied), "-o", str(report)])
    assert result.exit_code == 1 and "is missing\nhint: " in result.stderr and not report.exists()
    assert_refused(copied.parent, "is missing", verb="inspect")


def test_a_graph_that_is_no_whole_model(copied: Path) -> None:
    whole = copied.read_bytes()
    contents = [b"", b"GGUF", random.Random(1).randbytes(5000), whole[:-1], whole[:100]]
    contents += [b"\x0a" + b"\xff" * 9, b"\x08\x0a\x3a\x00"]
    for content in contents:
        copied.write_bytes(content)
        assert_refused(copied, "is not a whole ONNX model")
        assert_refused(copied.parent, "is not a whole ONNX model", verb="inspect")


def test_damaged_bytes_give_an_error_or_run(copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    chance, whole, refused = random.Random(7), copied.read_bytes(), 0
    for _ in range(80):
        data = bytearray(whole)
        data[chance.randrange(len(data))] = chance.randrange(256)
        copied.write_bytes(data)
        try:
            with open_engine(copied, 16, 1) as engine:
                engine.eval([3, 4, 5])
        except EdgeError as error:
            assert error.hint
            refused += 1
    assert refused > 20
    assert capfd.readouterr().out == ""  # which onnxruntime likes to talk to


@pytest.mark.parametrize("place", ["../model.onnx.data", "/etc/passwd", "weights/model.onnx.data", ".."])
def test_weights_outside_the_directory(copied: Path, place: str) -> None:
    def move(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
        next(entry for entry in tensor.external_data if entry.key == "location").value = place

    edit_model(copied, move)
    assert_refused(copied, "keeps weights outside its directory" if place != ".." else "is missing")


def test_weights_outside_the_directory_in_a_constant(copied: Path) -> None:
    """onnxruntime itself looks after these."""
    (copied.parent.parent / "secret").write_bytes(bytes(400))

    def add(model: onnx.ModelProto) -> None:
        tensor = TensorProto(name="secret", data_type=1, dims=[100], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="../secret")
        model.graph.node.append(helper.make_node("Constant", [], ["secret"], value=tensor))
        model.graph.output.append(helper.make_tensor_value_info("secret", 1, [100]))

    edit_model(copied, add)
    assert_refused(copied, "onnxruntime can't load")


@pytest.mark.parametrize("domain", ["", "com.microsoft", "org.example"])
def test_an_unknown_operator(copied: Path, domain: str) -> None:
    def rename(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == "Split")
        node.op_type, node.domain = "FoldTwice", domain
        model.opset_import.append(helper.make_opsetid("org.example", 1))

    edit_model(copied, rename)
    assert_refused(copied, "FoldTwice")
    with pytest.raises(EdgeError) as caught:
        open_engine(copied, 16, 1)
    assert "update onnxruntime" in str(caught.value.hint)
    name = f"{domain}.FoldTwice" if domain else "FoldTwice"
    assert read_onnx(copied).operators[name] == 1  # it can be looked at all the same


def test_a_newer_format(copied: Path) -> None:
    def date(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = 99

    edit_model(copied, date)
    assert_refused(copied, "onnxruntime can't load")


def other_graph() -> onnx.ModelProto:
    """A classifier."""
    shape: list[int | str] = ["batch", 4]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((4, 2), np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_a_graph_that_is_no_decoder(copied: Path) -> None:
    copied.write_bytes(other_graph().SerializeToString())
    assert_refused(copied, "is not a decoder with a key-value cache")
    assert CliRunner().invoke(cli, ["inspect", str(copied)]).exit_code == 0


def without_presents(model: onnx.ModelProto) -> None:
    del model.graph.output[2:]


def without_mask(model: onnx.ModelProto) -> None:
    model.graph.input[1].name = "mask"


def without_sizes(model: onnx.ModelProto) -> None:
    past = next(value for value in model.graph.input if value.name == "past_key_values.1.key")
    past.type.tensor_type.shape.dim[1].dim_param = "heads"


def with_another_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("position_ids", TensorProto.INT64, [1]))


def without_a_vocabulary(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[-1].dim_param = "vocabulary"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_presents, "is not a decoder with a key-value cache"),
        (without_mask, "is not a decoder with a key-value cache"),
        (without_sizes, "is not a decoder with a key-value cache"),
        (with_another_input, "has an input that is not known: position_ids"),
        (without_a_vocabulary, "does not say how many tokens its vocabulary has"),
    ],
)
def test_a_decoder_of_another_form(
    copied: Path, change: Callable[[onnx.ModelProto], object], message: str
) -> None:
    edit_model(copied, change)
    assert_refused(copied, message)


def test_a_graph_without_logits_start_runs_too(copied: Path, onnx_model: Path) -> None:
    """As other programs export them: then every row's logits are computed."""

    def fix(model: onnx.ModelProto) -> None:
        del model.graph.input[next(i for i, v in enumerate(model.graph.input) if v.name == "logits_start")]

    edit_model(copied, fix)
    with open_engine(onnx_model, 64, 1, True) as ours, open_engine(copied, 64, 1, True) as theirs:
        ids = ours.tokenize(TEXT)[:40]
        np.testing.assert_allclose(theirs.eval(ids), ours.eval(ids), atol=1e-5)
        np.testing.assert_allclose(theirs.eval([9]), ours.eval([9]), atol=1e-5)
        np.testing.assert_allclose(theirs.logits(ids), ours.logits(ids), atol=1e-5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "genai_config.json does not say past_present_share_buffer"),
        ({"search": {"past_present_share_buffer": False}}, "does not say past_present_share_buffer"),
        ({"search": 5}, "genai_config.json is damaged"),
        ({"model": "x"}, "genai_config.json is damaged"),
        ([], "genai_config.json is damaged"),
        ({"model": {"context_length": "long"}}, "genai_config.json is damaged"),
        ({"model": {"context_length": 0}}, "genai_config.json is damaged"),
        ({"model": {"eos_token_id": [None]}}, "genai_config.json is damaged"),
        ("{", "genai_config.json is not valid JSON"),
    ],
)
def test_genais_settings(copied: Path, content: Any, message: str) -> None:
    path = copied.with_name("genai_config.json")
    if isinstance(content, dict):
        edit_json(path, **content)
    elif content is None:
        path.unlink()
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    assert_refused(copied, message)


def test_a_tokenizer_that_is_missing_or_damaged(copied: Path) -> None:
    path = copied.with_name("tokenizer.json")
    path.write_bytes(path.read_bytes()[:-20])
    assert_refused(copied, "tokenizer.json can't be read")
    path.unlink()
    assert_refused(copied, "tokenizer.json does not exist")


def test_a_tokenizer_of_another_model(copied: Path, tokenizer: Tokenizer) -> None:
    more = Tokenizer.from_str(tokenizer.to_str())
    more.add_tokens([AddedToken("<one more>")])
    more.save(str(copied.with_name("tokenizer.json")))
    size = tokenizer.get_vocab_size()
    assert_refused(copied, f"has {size + 1} tokens, the model {size}")


def test_a_context_that_is_too_long(copied: Path, either: Path) -> None:
    assert_refused(either, f"a context of {CONTEXT + 1:,} tokens", "--context-length", CONTEXT + 1)
    assert_refused(either, "the context holds 8", "--context-length", 8, "--system", TEXT, "--chat")
    settings = json.loads(copied.with_name("genai_config.json").read_text())["model"]
    edit_json(copied.with_name("genai_config.json"), model={**settings, "context_length": 2**50})
    message = f"there is no memory for a context of {2**44:,} tokens"
    assert_refused(copied, message, "--context-length", 2**44)


def test_settings_that_promise_more_than_the_graph_has(copied: Path) -> None:
    settings = json.loads(copied.with_name("genai_config.json").read_text())["model"]
    edit_json(copied.with_name("genai_config.json"), model={**settings, "context_length": 2 * CONTEXT})
    with open_engine(copied, None, 1) as engine:
        engine.eval([5] * CONTEXT)
        with pytest.raises(EdgeError, match=f"stopped at token {CONTEXT}") as caught:
            engine.eval([5])
        assert "again" in str(caught.value.hint) and engine.cached == CONTEXT
        engine.reset()
        assert np.isfinite(engine.eval([5])).all()
