"""What works with a GGUF file works with an ONNX directory: run, bench, score, serve, verify."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alone import ALONE, BLOCK, python
from click.testing import CliRunner, Result
from serving import serving
from tiny_gguf import BLOCKS, TEXT, chain_model, texts_content
from tiny_onnx import edit_json, make_onnx
from tokenizers import Tokenizer

from minigpt_edge_runtime.bench.measure import measure_quality
from minigpt_edge_runtime.bundle.manifest import Contents, verify_checksums, write_manifest
from minigpt_edge_runtime.bundle.open import read_bundle
from minigpt_edge_runtime.cli import cli
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.formats.artefact import describe_model
from minigpt_edge_runtime.formats.latency_report import read_report
from minigpt_edge_runtime.formats.onnx_header import read_onnx

SHORT = ("--greedy", "--max-tokens", 8, "--threads", 1)
ONNX = "onnx-fp32/model.onnx"


def call(*args: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args], input=stdin)


def test_both_files_say_the_same(whole_bundle: Path) -> None:
    texts = [call("run", whole_bundle, "The software", *SHORT, "--file", file).stdout for file in (
        "onnx-fp32", ONNX, "tiny-f16.gguf"
    )]  # fmt: skip
    assert texts[0] and texts == [texts[0]] * 3
    assert call("run", whole_bundle, "The software", *SHORT).stdout == texts[0]  # its first file
    assert call("run", whole_bundle / "onnx-fp32", "The software", *SHORT).stdout == texts[0]
    chats = [
        json.loads(call("run", whole_bundle, "Hi", "--chat", *SHORT, "--json", "--file", file).stdout)
        for file in ("onnx-fp32", "tiny-f16.gguf")
    ]
    assert chats[0]["text"] == chats[1]["text"] and chats[0]["prompt_tokens"] == chats[1]["prompt_tokens"]


def test_a_directory_has_one_model(whole_bundle: Path) -> None:
    result = call("run", whole_bundle / "onnx-fp32", "x", "--file", "other")
    assert result.exit_code == 1 and "is one model file" in result.stderr
    result = call("run", whole_bundle, "x", "--file", "onnx-int4")
    assert result.exit_code == 1 and f"choose one of: {ONNX}, tiny-f16.gguf" in result.stderr


def test_it_runs_alone(whole_bundle: Path) -> None:
    code = ALONE.replace("'gguf')", "'gguf', 'onnx', 'llama_cpp')")
    assert "'llama_cpp')" in code
    code = f"{code}\nfrom minigpt_edge_runtime.cli import main; main()"
    for args in (["run", str(whole_bundle), "The", "--max-tokens", "2"], ["inspect", str(whole_bundle)]):
        done = python(code, *args)
        assert done.returncode == 0 and done.stdout, done.stderr
    code = BLOCK.replace("BLOCKED", "('onnxruntime',)")
    done = python(f"{code}\nfrom minigpt_edge_runtime.cli import main; main()", "run", str(whole_bundle), "x")
    assert done.returncode == 1 and 'pip install "minigpt-edge-runtime[onnx]"' in done.stderr


@pytest.mark.whole
def test_a_report_of_an_onnx_directory(whole_bundle: Path, tmp_path: Path) -> None:
    lengths = ("--prompt-lengths", "8,24", "--depths", "0,16", "--generate-tokens", 4, "--repeat", 2)
    result = call("bench", whole_bundle, "--profile", "cpu", *lengths, "-o", tmp_path / "cpu.json")
    assert result.exit_code == 0, result.output
    report, model = read_report(tmp_path / "cpu.json"), describe_model(whole_bundle / ONNX)
    for name in ("format", "bytes", "sha256", "parameters", "quantization", "architecture", "vocabulary"):
        assert report["artefact"][name] == model[name]
    assert (report["artefact"]["format"], report["artefact"]["quantization"]) == ("onnx", "FP32")
    assert report["runtime"]["name"] == "onnxruntime" and report["runtime"]["torch_loaded"] is False
    assert "onnxruntime" in report["runtime"]["libraries"]
    assert "llama-cpp-python" not in report["runtime"]["libraries"]
    assert report["decode"][0]["bytes_per_token"] == model["weight_bytes_per_token"]
    assert report["quality"]["windows"] == 3 and len(report["quality"]["multiple_choice"]["answers"]) == 2


def test_scores_equal_those_of_the_other_engine(whole_bundle: Path) -> None:
    content = texts_content()
    onnx, gguf = (
        measure_quality(whole_bundle / name, content, threads=1) for name in (ONNX, "tiny-f16.gguf")
    )
    assert onnx["bits_per_byte"] == pytest.approx(gguf["bits_per_byte"], rel=1e-3)
    assert [w["tokens"] for w in onnx["per_window"]] == [w["tokens"] for w in gguf["per_window"]]
    long = {"text": TEXT * 7, "bytes": len((TEXT * 7).encode()), "base_tokens": 99}  # over one chunk of 512
    onnx, gguf = (
        measure_quality(whole_bundle / name, {**content, "windows": [long]}, threads=1)
        for name in (ONNX, "tiny-f16.gguf")
    )
    assert onnx["tokens"] > 512 and onnx["nll"] == pytest.approx(gguf["nll"], rel=1e-3)


def test_what_a_model_says_of_itself(whole_bundle: Path, tmp_path: Path) -> None:
    path = whole_bundle / ONNX
    model, header = describe_model(path), read_onnx(path)
    assert model["bytes"] == sum(file.stat().st_size for file in path.parent.iterdir())
    assert (model["architecture"], model["context_length"], model["name"]) == ("llama", 1024, "tiny")
    assert model["parameters"] == sum(
        math.prod(t.shape) for t in header.tensors if t.type == "F32" and len(t.shape) > 0
    )
    embedding = next(t for t in header.tensors if t.name == "embedding.weight").nbytes
    assert model["weight_bytes_per_token"] == header.weight_bytes - embedding
    copy = Path(shutil.copytree(path.parent, tmp_path / "copy"))
    assert describe_model(copy / "model.onnx")["sha256"] == model["sha256"]
    with open(copy / "tokenizer.json", "a") as file:
        file.write(" ")
    assert describe_model(copy / "model.onnx")["sha256"] != model["sha256"]
    assert header.operators["com.microsoft.GroupQueryAttention"] == BLOCKS


def test_the_server_serves_it(tmp_path: Path, tokenizer: Tokenizer) -> None:
    said = "漢é🙂 licence"
    ids = [*tokenizer.encode("X").ids[-1:], *tokenizer.encode(said).ids, 2]
    model = make_onnx(chain_model(tmp_path / "speaker.gguf", tokenizer, ids), tmp_path / "speaker", tokenizer)
    with serving(model) as server:
        client = server.client()
        (name,) = [model.id for model in client.models.list()]
        options: dict[str, Any] = {"model": name, "temperature": 0, "extra_body": {"repeat_penalty": 1}}
        stream = client.completions.create(prompt="X", stream=True, **options)
        assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == said
        answer = client.completions.create(prompt="X", **options)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (said, "stop")
        asked: Any = [{"role": "user", "content": "Hi"}]
        chat = client.chat.completions.create(messages=asked, max_tokens=3, **options)
        assert (
            chat.usage
            and chat.usage.prompt_tokens > 5
            and chat.choices[0].finish_reason in ("length", "stop")
        )


def failed(bundle: Path) -> dict[str, str]:
    """The checks that fail, by the command line."""
    result = call("verify", bundle, "--threads", 1, "--json")
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert result.stderr == "error: the bundle failed verification\nhint: copy or build it again\n"
    return {c["name"]: c["detail"] for c in json.loads(result.stdout)["checks"] if c["ok"] is False}


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def turn_a_bit(path: Path) -> None:
    """In the middle: of the weights it is one of many, of the graph and the tokenizer it may be anything."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model.onnx.data", "model.onnx", "tokenizer.json", "genai_config.json"])
@pytest.mark.parametrize("change", [remove, cut, turn_a_bit])
def test_every_change_is_noticed(both: Path, name: str, change: Callable[[Path], None]) -> None:
    if (name, change) == ("model.onnx", remove):
        (both / "onnx-fp32" / name).unlink()
        result = call("verify", both)
        assert result.exit_code == 1 and "is missing from the bundle" in result.stderr
        return
    change(both / "onnx-fp32" / name)
    found = failed(both)
    word = {remove: "is missing", cut: "bytes instead of", turn_a_bit: "has been changed"}[change]
    assert found["checksums"].startswith(f"onnx-fp32/{name} ") and word in found["checksums"]
    assert not any("gguf" in check for check in found)
    if change is not turn_a_bit:
        assert len(found) > 1  # the deeper checks see it as well


def rewrite_manifest(bundle: Path) -> None:
    """One that agrees with the files as they are, so that only the deeper checks can object."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    keep = ("name", "model_files", "base_model", "licences", "domain", "corpus_sha256", "targets", "checks")
    write_manifest(bundle, Contents(**{name: manifest[name] for name in keep}))


def test_files_of_another_build_are_noticed(both: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    other = chain_model(tmp_path / "other.gguf", tokenizer, [5, 6, 7])
    model = make_onnx(other, tmp_path / "other", tokenizer)
    for name in ("model.onnx", "model.onnx.data"):
        shutil.copyfile(model.with_name(name), both / "onnx-fp32" / name)
    assert "checksums" in failed(both)
    rewrite_manifest(both)
    assert failed(both).keys() == {f"{ONNX}: computes", f"{ONNX}: parity"}


def test_another_tokenizer_is_noticed(both: Path) -> None:
    path = both / "onnx-fp32" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = content["model"]["merges"][:5]
    path.write_text(json.dumps(content))
    rewrite_manifest(both)
    assert f"{ONNX}: tokenizer" in failed(both)


@pytest.mark.parametrize(
    "change",
    [
        {"model_file": "../model.onnx"},
        {"model_file": "other.gguf"},
        {"model_files": [ONNX, "../model.onnx"]},
        {"model_files": [ONNX, "other.gguf"]},
        {"model_files": ONNX},
        {"model_files": [3]},
        {"checks": {"/etc/passwd": {}}},
        {"checks": []},
        {"files": {}},
        {"files": []},
        {"name": None},
        {"base_model": "x"},
        {"document_start": 3},
    ],
)
def test_a_manifest_that_is_damaged_or_reaches_outside(both: Path, change: dict[str, Any]) -> None:
    edit_json(both / "manifest.json", **change)
    for verb in ("run", "verify", "inspect", "bench"):
        result = call(verb, both, *(["x"] if verb == "run" else []))
        assert result.exit_code == 1 and result.stdout == ""
        assert "manifest.json is damaged\nhint: copy or build" in result.stderr
    with pytest.raises(EdgeError, match="damaged"):
        read_bundle(both)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "c:\\x", "a\\x", ""])
@pytest.mark.parametrize("record", [{"bytes": 1, "sha256": ""}, {"bytes": None}, {}, None])
def test_a_record_that_is_damaged_or_reaches_outside(
    both: Path, name: str, record: dict[str, Any] | None
) -> None:
    files = json.loads((both / "manifest.json").read_text())["files"]
    edit_json(both / "manifest.json", files={**files, name: record})
    with pytest.raises(EdgeError, match="damaged"):
        verify_checksums(both)
    good = "more.json" if record != {"bytes": 1, "sha256": ""} else name
    edit_json(both / "manifest.json", files={**files, good: record})
    with pytest.raises(EdgeError, match="damaged"):
        verify_checksums(both)


def test_bench_refuses_a_directory_that_was_changed(both: Path) -> None:
    turn_a_bit(both / "onnx-fp32/model.onnx.data")
    result = call("bench", both)
    assert result.exit_code == 1 and "model.onnx.data has been changed" in result.stderr
