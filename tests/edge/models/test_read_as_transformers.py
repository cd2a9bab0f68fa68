"""A directory is read as transformers reads it, or refused by name before anything is computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch  # noqa: TID253
from safetensors.torch import load_file, save_file
from source_helpers import SPECIALS, changed, tiny_gguf, tiny_model_dir
from tiny_families import write_family
from tokenizers import AddedToken, Tokenizer
from transformers import (  # noqa: TID253
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
)

from minigpt_edge.models import from_hf
from minigpt_edge.models.base_model import resolve_model
from minigpt_edge.models.checkpoint import load_model
from minigpt_edge.models.safetensors_stream import Tensor, read_tensors
from minigpt_edge_export.architectures import KNOWN
from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_runtime.errors import EdgeError

IDS = torch.tensor([[5, 300, 310, 320, 330, 340]])
WEIGHTS = "model.safetensors"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def slow(value: Any) -> Any:
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGPT_EDGE_CACHE", str(tmp_path / "cache"))  # for the slow ones too


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp("hf") / "tiny")


@pytest.fixture
def copy(model_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model_dir, tmp_path / "copy")


def rewrite(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Store other weights, or others names of them."""
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})


def edit(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def assert_as_transformers(folder: Path) -> Path:
    """The converted directory, whose logits are those of transformers' own load of the original."""
    made = resolve_model(str(folder)).path
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        ours, theirs = (model.eval()(input_ids=IDS).logits for model in (load_model(made), stock))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    return made


@pytest.mark.parametrize("name", ["llama", "gpt_neox", slow("gpt2"), slow("opt")])
def test_a_head_that_differs_is_kept_whatever_the_config_says(
    name: str, tmp_path: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, head = copy, HEAD
    if name != "llama":
        tokenizer = copy / "tokenizer.json"
        folder = write_family(tmp_path / name, name, json.loads(tokenizer.read_text()), rows=500).path
        edit(folder, tie_word_embeddings=True)
        head = "embed_out.weight" if name == "gpt_neox" else HEAD
    own = torch.randn(500, 64, generator=torch.Generator().manual_seed(3))
    rewrite(folder, lambda weights: {**weights, head: own})
    made = assert_as_transformers(folder)
    assert json.loads((made / "config.json").read_text())["tie_word_embeddings"] is False
    assert not read_checkpoint(made).tied and torch.equal(load_file(made / WEIGHTS)[head], own)
    assert "head that is not the embedding" in capsys.readouterr().err


def test_a_head_that_is_the_embedding_or_stands_for_it_is_stored_once(copy: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(copy, tmp_path / "alone")
    rewrite(copy, lambda weights: {**weights, HEAD: weights[EMBEDDING].clone()})
    rewrite(alone, lambda weights: {HEAD if name == EMBEDDING else name: w for name, w in weights.items()})
    for folder in (copy, alone):
        made = assert_as_transformers(folder)
        assert HEAD not in load_file(made / WEIGHTS) and read_checkpoint(made).tied
    ready = shutil.copytree(made, tmp_path / "ready")
    assert resolve_model(str(ready)).path == ready
    rewrite(ready, lambda weights: {**weights, HEAD: weights[EMBEDDING] + 1})
    assert resolve_model(str(ready)).path != ready, "it is no longer in the form that stages read"
    assert_as_transformers(ready)


def test_the_files_are_those_that_transformers_takes(copy: Path) -> None:
    """A single file counts before the index of an earlier save; shards that no index names do not count."""
    stale = {name: torch.zeros_like(w) for name, w in load_file(copy / WEIGHTS).items()}
    save_file(stale, copy / "model-00001-of-00002.safetensors", {"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(stale, "model-00001-of-00002.safetensors")}
    (copy / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    torch.save(stale, copy / "pytorch_model.bin")
    made = assert_as_transformers(copy)
    assert load_file(made / WEIGHTS)[EMBEDDING].any()
    (copy / WEIGHTS).rename(copy / "model-00002-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(stale, "model-00002-of-00002.safetensors")}
    (copy / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    assert_as_transformers(copy)


def prefixed(prefix: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda weights: {prefix + name: w for name, w in weights.items()}


@pytest.mark.parametrize("saved", ["without", "head with"])
def test_prefixes_that_transformers_adds_or_takes_off(saved: str, model_dir: Path, tmp_path: Path) -> None:
    folder = tiny_model_dir(tmp_path / "m", tied=saved == "without")
    if saved == "without":
        rewrite(folder, lambda weights: {n.removeprefix("model."): w for n, w in weights.items()})
    else:
        rewrite(folder, lambda weights: {f"model.{HEAD}" if n == HEAD else n: w for n, w in weights.items()})
    assert_as_transformers(folder)


@pytest.mark.parametrize("name", ["gpt2", slow("opt")])
def test_a_base_model_of_a_family_without_head(name: str, tmp_path: Path, model_dir: Path) -> None:
    tokenizer = json.loads((model_dir / "tokenizer.json").read_text())
    checkpoint = write_family(tmp_path / name, name, tokenizer, rows=500)
    checkpoint.model.base_model.save_pretrained(checkpoint.path)
    assert_as_transformers(checkpoint.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (prefixed("_orig_mod."), "'_orig_mod.' in their names, which torch.compile"),
        (prefixed("module."), "'module.' in their names, which DataParallel"),
        (prefixed("base_model.model."), "'base_model.' in their names, which peft"),
        (prefixed("student."), "'student.' in their names"),
        (lambda w: {n.replace("mlp.", "mlp._fsdp_wrapped_module."): t for n, t in w.items()}, "FSDP"),
        (lambda w: {n: t for n, t in w.items() if "layers.1.mlp.up" not in n}, "missing model.layers.1"),
        (lambda w: {**w, "model.layers.2.x.weight": torch.ones(1)}, "unexpected model.layers.2"),
        (lambda w: {n: t.to(torch.float8_e4m3fn) for n, t in w.items()}, r"no floats of 16.*F8_E4M3"),
        (lambda w: {n: t.to(torch.int8) if "mlp" in n else t for n, t in w.items()}, r"no floats of 16.*I8"),
    ],
)  # fmt: skip
def test_weights_that_can_not_be_read_are_named(change: Any, message: str, copy: Path) -> None:
    rewrite(copy, change)
    with pytest.raises(EdgeError, match=message) as caught:
        resolve_model(str(copy))
    assert caught.value.hint


ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256, "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"rope_parameters": ROPE}, "type 'yarn'", "default, linear, llama3"),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "type 'dynamic'",
            "llama3",
        ),
        ({"hidden_act": "gelu"}, "activation 'gelu'", "silu"),
        ({"attention_bias": True}, "missing model.layers.0.self_attn.q_proj.bias", "same run"),
        ({"tie_word_embeddings": False}, "stores no lm_head.weight", "tie_word_embeddings"),
        (
            {"text_config": {"model_type": "qwen2"}, "model_type": "qwen2_vl"},
            "reads images",
            "language_model",
        ),
        ({"architectures": ["LlamaForSequenceClassification"]}, "predicts no text", "generation"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "quantized with MLX", "quantized from"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantized with bitsandbytes", "quantized from"),
        ({"transformers_weights": "other.safetensors"}, "transformers_weights", "save_pretrained"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 2}, "sliding window", "family"),
    ],
)
def test_settings_that_can_not_be_had_are_named(
    changes: dict[str, Any], message: str, hint: str, copy: Path
) -> None:
    with pytest.raises(EdgeError, match=message) as caught:
        resolve_model(str(edit(copy, **changes)))
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 500.0},
        slow({"rope_parameters": None, "rope_theta": 500.0}),
        {"rope_theta": 7.0, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        slow({"torch_dtype": "float16", "dtype": None, "sliding_window": 4, "final_logit_softcapping": 1.0}),
        {"embedding_multiplier": 12.0, "pretraining_tp": 4, "attn_implementation": "flash_attention_2"},
    ],
)
def test_settings_count_where_they_count_for_transformers(changes: dict[str, Any], copy: Path) -> None:
    assert_as_transformers(edit(copy, **changes))


@pytest.mark.parametrize("dtype", ["float64", slow("float16")])
def test_every_kind_of_float_is_read(dtype: str, copy: Path) -> None:
    rewrite(copy, lambda weights: {name: w.to(getattr(torch, dtype)) for name, w in weights.items()})
    assert_as_transformers(copy)


def test_what_is_read_wrongly_stops_with_what_differs(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(files: list[Path]) -> list[Tensor]:
        return [
            Tensor(t.name, t.shape, lambda t=t: t.load()[::-1]) if "layers.1.mlp.up" in t.name else t
            for t in read_tensors(files)
        ]

    monkeypatch.setattr(from_hf, "read_tensors", wrong)
    with pytest.raises(EdgeError, match=r"logits differ by .* spread is .*, and block 1 is the first"):
        resolve_model(str(copy))
    assert not [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()]
    gguf = tiny_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(
        "minigpt_edge.models.from_gguf._dequantized", lambda tensor, *_: lambda: _turned(tensor)
    )
    with pytest.raises(EdgeError, match="not read as llama.cpp reads it: logits are off by"):
        resolve_model(str(gguf))


def _turned(tensor: Any) -> Any:
    import gguf

    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)[::-1]


def tokenizer_of(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_added_tokens_beside_tokenizer_json_are_those_of_transformers(tmp_path: Path, copy: Path) -> None:
    """Tokens that only tokenizer_config.json knows get transformers' ids, if they have rows."""
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings |= {"pad_token": "[PAD]", "extra_special_tokens": ["<tool>"]}
    folder = changed(copy, tmp_path / "added", "tokenizer_config.json", settings)
    with pytest.raises(EdgeError, match=r"has 500 rows, none for 2 tokens .*<tool>") as caught:
        resolve_model(str(folder))
    assert "resize_token_embeddings" in (caught.value.hint or "")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(512, mean_resizing=False)  # padded: more rows than tokens
    model.save_pretrained(folder)
    made = assert_as_transformers(folder)
    theirs, text = AutoTokenizer.from_pretrained(folder), "the [PAD] licence<tool> to"
    assert theirs.convert_tokens_to_ids("<tool>") >= 500
    ours = tokenizer_of(made).encode(text, add_special_tokens=False).ids
    assert ours == theirs(text, add_special_tokens=False).input_ids


def test_tokens_without_rows_are_named(copy: Path) -> None:
    tokenizer = tokenizer_of(copy)
    tokenizer.add_special_tokens([AddedToken(f"<extra_{i}>", special=True) for i in range(7)])
    tokenizer.save(str(copy / "tokenizer.json"))
    with pytest.raises(EdgeError, match=r"none for 7 tokens .*: <extra_0>, .*<extra_4>, …"):
        resolve_model(str(copy))


def test_what_only_this_program_reads_does_not_count_where_it_is_wrong(copy: Path, tmp_path: Path) -> None:
    """A model that was made here and got another tokenizer since."""
    made = resolve_model(str(copy))
    ours = json.loads((made.path / "config.json").read_text())["minigpt_edge"]
    ready = shutil.copytree(made.path, tmp_path / "ready")
    again = resolve_model(str(edit(ready, minigpt_edge={**ours, "tokenizer_pre": "qwen2"})))
    assert again.path not in (ready, made.path)
    assert json.loads((again.path / "config.json").read_text())["minigpt_edge"] == ours
    sizes = {"intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    assert_as_transformers(edit(copy, per_layer_config={"0": sizes, "1": sizes}))


def test_a_class_that_splits_otherwise_is_told(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = resolve_model(str(copy)).path  # SmolLM2's: GPT2Tokenizer does not know that digits are single
    assert "GPT2Tokenizer splits 9 of 31 texts" in capsys.readouterr().err
    text = f"In 1984 {SPECIALS[1]}"
    assert tokenizer_of(made).encode(text).ids == tokenizer_of(copy).encode(text).ids
    folder = changed(copy, tmp_path / "prefix", "tokenizer_config.json", {"add_prefix_space": True})
    with pytest.raises(EdgeError, match="splits 30 of 31 texts otherwise than tokenizer.json"):
        resolve_model(str(folder))


# What config classes have that changes nothing here: dropout, initial values, classifiers.
_IDLE = {
    *(
        "attention_dropout",
        "attn_pdrop",
        "embd_pdrop",
        "resid_pdrop",
        "dropout",
        "hidden_dropout",
        "layerdrop",
    ),
    *("initializer_range", "init_std", "use_cache", "pretraining_tp", "is_decoder", "classifier_dropout"),
    *(
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    ),
    *("bos_token_id", "eos_token_id", "pad_token_id", "reorder_and_upcast_attn", "max_window_layers"),
}
# What is read, or refused by its value or by the weights that it wants.
_READ = {
    *(
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_act",
    ),
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "layer_norm_eps"),
    *("tie_word_embeddings", "rope_parameters", "attention_bias", "mlp_bias", "use_qkv_bias", "enable_bias"),
    *("qk_layernorm", "use_parallel_residual", "sliding_window", "use_sliding_window", "layer_types"),
    *("n_embd", "n_head", "n_inner", "n_layer", "n_positions", "layer_norm_epsilon", "activation_function"),
    *("add_cross_attention", "scale_attn_by_inverse_layer_idx", "scale_attn_weights", "ffn_dim"),
    *(
        "do_layer_norm_before",
        "word_embed_proj_dim",
        "layer_norm_elementwise_affine",
        "_remove_final_layer_norm",
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_every_setting_of_a_config_is_read_or_idle(name: str) -> None:
    """A few tokens do not show what a new setting does to long texts: it must be looked at."""
    settings = CONFIG_MAPPING[name]().to_dict().keys() - PreTrainedConfig().to_dict().keys()
    assert settings <= _IDLE | _READ
