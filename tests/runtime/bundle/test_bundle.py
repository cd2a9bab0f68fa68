from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minigpt_edge_runtime.bundle.manifest import Contents, owned_files, verify_checksums, write_manifest
from minigpt_edge_runtime.bundle.open import open_bundle, read_bundle
from minigpt_edge_runtime.bundle.verify import verify
from minigpt_edge_runtime.errors import EdgeError


def edit_manifest(bundle: Path, **changes: Any) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def test_a_bundle_and_a_bare_file_are_read(bundle: Path, model: Path) -> None:
    found = read_bundle(bundle)
    assert found.model_path == bundle / "model.gguf" and found.document_start == "<|endoftext|>"
    assert found.manifest["files"]["model.gguf"]["bytes"] == model.stat().st_size
    assert found.manifest["licences"] == ["Apache-2.0"] and found.manifest["corpus_sha256"] == "0" * 64
    bare = read_bundle(model)
    assert bare.model_path == model and bare.manifest == {}


def test_owned_files_are_those_of_the_manifest_only(bundle: Path) -> None:
    (bundle / "my notes.txt").write_text("mine")
    names = {path.name for path in owned_files(bundle)}
    assert names == {"model.gguf", "tokenizer.json", "report.json", "manifest.json"}


def test_checksums_tell_every_change(bundle: Path) -> None:
    assert verify_checksums(bundle) == []
    data = bytearray((bundle / "model.gguf").read_bytes())
    data[-100] ^= 1
    (bundle / "model.gguf").write_bytes(data)
    (bundle / "tokenizer.json").unlink()
    with open(bundle / "report.json", "a") as file:
        file.write(" ")
    problems = verify_checksums(bundle)
    assert [problem.split()[0] for problem in problems] == ["model.gguf", "report.json", "tokenizer.json"]
    assert ["changed" in problems[0], "bytes instead" in problems[1], "missing" in problems[2]] == [True] * 3


def test_what_is_not_our_bundle_is_refused(tmp_path: Path, bundle: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for path, message in ((empty, "not a minigpt-edge bundle"), (tmp_path / "none", "does not exist")):
        for function in (read_bundle, owned_files, verify_checksums):
            with pytest.raises(EdgeError, match=message):
                function(path)
    (empty / "manifest.json").write_text('{"stage": "shrink"}')
    with pytest.raises(EdgeError, match="not a bundle's manifest"):
        owned_files(empty)
    edit_manifest(bundle, format=99)
    with pytest.raises(EdgeError, match="format 99"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "c:\\x", ""])
def test_a_manifest_cannot_reach_outside(bundle: Path, name: str) -> None:
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    edit_manifest(bundle, files={**files, name: {"bytes": 1, "sha256": ""}})
    with pytest.raises(EdgeError, match="damaged"):
        owned_files(bundle)


def test_the_model_file_can_be_chosen(bundle: Path, model: Path) -> None:
    (bundle / "small.gguf").write_bytes(model.read_bytes())
    settings: dict[str, Any] = {
        "base_model": {},
        "licences": [],
        "domain": None,
        "corpus_sha256": None,
        "targets": [],
    }
    write_manifest(bundle, Contents(name="two", model_files=["model.gguf", "small.gguf"], **settings))
    assert read_bundle(bundle, "small.gguf").model_path == bundle / "small.gguf"
    with pytest.raises(EdgeError, match="no model file 'x.gguf'") as caught:
        read_bundle(bundle, "x.gguf")
    assert caught.value.hint == "choose one of: model.gguf, small.gguf"
    with pytest.raises(EdgeError, match="does not exist"):
        write_manifest(bundle, Contents(name="two", model_files=["none.gguf"], **settings))
    (bundle / "small.gguf").unlink()
    with pytest.raises(EdgeError, match="missing from the bundle"):
        read_bundle(bundle, "small.gguf")


def test_verify_passes_a_good_bundle_and_a_bare_file(bundle: Path, model: Path) -> None:
    result = verify(bundle, threads=1)
    assert result["ok"] and [check["ok"] for check in result["checks"]] == [True] * 4 + [None]
    assert "equal tokenizer.json's" in result["checks"][2]["detail"]
    bare = verify(model, threads=1)
    assert bare["ok"] and [check["ok"] for check in bare["checks"]] == [None, True, True, True, None]


def failed(bundle: Path) -> list[str]:
    result = verify(bundle, threads=1)
    assert not result["ok"]
    return [check["name"] for check in result["checks"] if check["ok"] is False]


def rewrite_manifest(bundle: Path) -> None:
    """A manifest that agrees with the files as they are, so that only the deeper checks can object."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    keep = ("name", "model_files", "base_model", "licences", "domain", "corpus_sha256", "targets", "checks")
    write_manifest(bundle, Contents(**{name: manifest[name] for name in keep}))


def test_verify_notices_changed_weights(bundle: Path) -> None:
    path = bundle / "model.gguf"
    data = path.read_bytes()
    path.write_bytes(data[: -len(data) // 2] + bytes(len(data) - len(data[: -len(data) // 2])))
    assert "checksums" in failed(bundle)
    rewrite_manifest(bundle)
    assert failed(bundle) == ["model.gguf: computes"]


def test_verify_notices_another_tokenizer(bundle: Path) -> None:
    content = json.loads((bundle / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][:5]
    (bundle / "tokenizer.json").write_text(json.dumps(content))
    rewrite_manifest(bundle)
    assert failed(bundle) == ["model.gguf: tokenizer"]


def test_verify_notices_truncation(bundle: Path) -> None:
    (bundle / "model.gguf").write_bytes((bundle / "model.gguf").read_bytes()[:-9999])
    assert failed(bundle) == ["checksums", "model.gguf: format"]


@pytest.mark.parametrize("verb", ["run", "serve"])
def test_a_changed_file_is_not_loaded(bundle: Path, verb: str) -> None:
    from click.testing import CliRunner

    from minigpt_edge_runtime.cli import cli

    data = bytearray((bundle / "model.gguf").read_bytes())
    data[-100] ^= 1
    (bundle / "model.gguf").write_bytes(data)
    given = [verb, str(bundle), *(["The", "--max-tokens", "1"] if verb == "run" else [])]
    refused = CliRunner().invoke(cli, given)
    assert refused.exit_code == 1 and "model.gguf has been changed" in refused.output
    assert "give its model file alone" in refused.output
    if verb == "run":
        assert CliRunner().invoke(cli, [*given, "--no-verify"]).exit_code == 0


def test_another_models_files_need_not_be_whole(both: Path) -> None:
    (both / "onnx-fp32" / "model.onnx").write_bytes(b"damaged")
    assert open_bundle(both, "tiny-f16.gguf").model_path.name == "tiny-f16.gguf"
    with pytest.raises(EdgeError, match=r"onnx-fp32/model\.onnx has"):
        open_bundle(both, "onnx-fp32")
