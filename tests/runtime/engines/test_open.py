"""What may be given to `open_engine`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import minigpt_edge_runtime
from minigpt_edge_runtime.engines.open import open_engine
from minigpt_edge_runtime.errors import EdgeError


def test_the_directory_of_one_model_is_that_model(bundle: Path, onnx_model: Path, tmp_path: Path) -> None:
    shutil.copytree(onnx_model.parent, tmp_path / "onnx bundle" / "onnx-fp32")
    sizes = set()
    for folder in (bundle, onnx_model.parent, tmp_path / "onnx bundle", str(bundle)):
        with open_engine(folder, 64, 1) as engine:
            sizes.add(engine.vocab_size)
    assert len(sizes) == 1


def test_a_bundle_of_several_models_names_them(whole_bundle: Path) -> None:
    with pytest.raises(
        EdgeError, match=r"several model files \(onnx-fp32/model.onnx, tiny-f16.gguf\)"
    ) as caught:
        open_engine(whole_bundle, 64, 1)
    assert "minigpt_edge_runtime.load" in str(caught.value.hint)
    with minigpt_edge_runtime.load(whole_bundle, threads=1) as model:
        assert model.path == whole_bundle / "onnx-fp32" / "model.onnx"


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("model.safetensors", "is a checkpoint", "minigpt-edge build --model"),
        ("notes.txt", "holds no model file", "bundle's directory"),
        (None, "does not exist", "check the path"),
    ],
)
def test_other_directories_are_told_apart(tmp_path: Path, name: str | None, message: str, hint: str) -> None:
    folder = tmp_path / "folder"
    if name:
        folder.mkdir()
        (folder / name).write_text("")
    with pytest.raises(EdgeError, match=message) as caught:
        open_engine(folder, 64, 1)
    assert hint in str(caught.value.hint)


def test_other_files_are_told_apart(tmp_path: Path) -> None:
    for name, hint in (("bundle.zip", "load takes the zip"), ("model.bin", "give a .gguf or .onnx file")):
        (tmp_path / name).write_text("PK")
        with pytest.raises(EdgeError, match="is not a model this runtime can run") as caught:
            open_engine(tmp_path / name, 64, 1)
        assert hint in str(caught.value.hint)


def test_a_checkpoint_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(EdgeError, match="is a checkpoint, not a bundle"):
        minigpt_edge_runtime.load(tmp_path)
