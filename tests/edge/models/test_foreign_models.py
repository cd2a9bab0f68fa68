"""What people give for a model by mistake is said by name, with what to give instead."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import pytest
from source_helpers import tiny_model_dir
from tiny_build import write_corpus

from minigpt_edge.cli import cli
from minigpt_edge.models.base_model import resolve_model
from minigpt_edge_runtime.errors import EdgeError

MODEL = "model.safetensors"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp("hf") / "tiny")


@pytest.mark.parametrize(
    ("files", "message", "hint"),
    [
        ("manifest.json model.gguf", "is a bundle", "model.gguf"),
        ("model.onnx genai_config.json config.json", "is an ONNX export", "exported from"),
        ("model_q4.onnx", "is an ONNX export", "exported from"),
        ("a.Q4_K_M.gguf b.gguf", "holds GGUF files", "a.Q4_K_M.gguf"),
        ("checkpoint-50/config.json checkpoint-500/config.json", "output folder of", "checkpoint-500"),
        ("checkpoint-9/adapter_config.json", "output folder of a training", "checkpoint-9"),
        ("optimizer.pt scheduler.pt trainer_state.json", "state of a training", "save_pretrained"),
        ("config.json optimizer.bin", "state of a training", "save_pretrained"),
        ("zero_to_fp32.py latest", "DeepSpeed", "zero_to_fp32.py"),
        ("__0_0.distcp .metadata", "distributed training state", "merge-weights"),
        ("consolidated.00.pth params.json", "Meta's or Mistral's", "Hugging Face form"),
        ("config.json tf_model.h5", "TensorFlow", "safetensors"),
        ("config.json weights.npz", "MLX", "safetensors"),
        ("config.json model-00001-of-00002.safetensors", "lacks model.*index", "save"),
        ("config.json my.safetensors", "holds my.safetensors, but no model.safetensors", "copy"),
        ("model.safetensors tokenizer.json", "has no config.json", "copy"),
        ("llama/config.json llama/model.safetensors", "has no config.json, but .*llama has", "llama"),
        ("snapshots/abc/config.json refs/main", "has no config.json, but .*abc has", "abc"),
        ("model_index.json unet/config.json", "has no config.json, but|diffusion", ""),
        ("", "has no config.json", "directory"),
        ("config.json adapter_config.json model.safetensors", "holds a model and an adapter", "--adapter"),
    ],
)  # fmt: skip
def test_directories(files: str, message: str, hint: str, model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    for name in files.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    for config in folder.rglob("config.json"):
        shutil.copyfile(model_dir / "config.json", config)
    for manifest in folder.glob("manifest.json"):
        manifest.write_text('{"model_files": ["model.gguf"]}')
    with pytest.raises(EdgeError, match=message) as caught:
        resolve_model(str(folder))
    assert hint in (caught.value.hint or "")


def test_files(model_dir: Path, tmp_path: Path) -> None:
    cases = [(model_dir / name, "is one file of a model", str(model_dir)) for name in (MODEL, "config.json")]
    for name, start, message, hint in (
        ("a.bin", b"PK\3\4", "is one file of a model", str(tmp_path)),
        ("a.onnx", b"\x08\7", "is an ONNX export", "exported from"),
        ("a.zip", b"PK\3\4", "is a zip file", "unpack"),
        ("ggml-model", b"tjgg", "before GGUF", "download"),
        ("notes.txt", b"text", "not a GGUF file", "GGUF"),
        ("a.gguf", b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer", "git lfs pull"),
    ):
        (tmp_path / name).write_bytes(start + bytes(64))
        cases.append((tmp_path / name, message, hint))
    kinds: tuple[tuple[str, str, dict[str, object], str, str], ...] = (
        ("lora.gguf", "llama", {"general.type": "adapter"}, "LoRA adapter as GGUF", "--adapter"),
        ("mmproj.gguf", "clip", {}, "projector of a vision model", "language model"),
        ("imatrix.gguf", "llama", {"general.type": "imatrix"}, "importance matrix", "own GGUF"),
        ("a-00001-of-00003.gguf", "llama", {"split.count": 3}, "one of 3 parts", "llama-gguf-split"),
    )
    for name, arch, fields, message, hint in kinds:
        writer = gguf.GGUFWriter(tmp_path / name, arch)
        for key, value in fields.items():
            writer.add_string(key, value) if isinstance(value, str) else writer.add_uint16(key, value)  # type: ignore[arg-type]
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        cases.append((tmp_path / name, message, hint))
    shutil.copytree(model_dir, tmp_path / "pointed")
    (tmp_path / "pointed" / MODEL).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    cases.append((tmp_path / "pointed", f"{MODEL} is a Git LFS pointer", "git lfs pull"))
    for path, message, hint in cases:
        with pytest.raises(EdgeError, match=message) as caught:
            resolve_model(str(path))
        assert hint in (caught.value.hint or ""), path


def test_the_command_says_so_without_a_traceback(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is computed, and with the option that names an adapter."""
    write_corpus(tmp_path / "corpus", documents=4)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_dir, "lora")
    Path("lora/model.safetensors").unlink()
    about = {"peft_type": "LORA", "base_model_name_or_path": "acme/base", "r": 8}
    Path("lora/adapter_config.json").write_text(json.dumps(about))
    Path("lora/adapter_model.safetensors").write_bytes(b"")
    for given in (["--model", "lora"], ["--adapter", "lora"]):
        with pytest.raises(EdgeError, match="lora is a LoRA adapter .* for acme/base, not a model") as caught:
            cli.main(["build", "--corpus", "corpus", "--offline", "--dry-run", *given], standalone_mode=False)
        assert "--model BASE --adapter lora" in (caught.value.hint or "")
