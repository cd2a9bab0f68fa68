"""A Hugging Face directory as anyone made it, brought into the one form that the stages read."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from minigpt_edge.models.checkpoint import special_ids, standard_names, write_converted
from minigpt_edge.models.safetensors_stream import STORED, Tensor, read_tensors
from minigpt_edge_export.architectures import architecture_of
from minigpt_edge_export.architectures.base import BUFFERS, Architecture
from minigpt_edge_export.gguf.pretokenizers import check_tokenizer, name_of
from minigpt_edge_export.weights import WEIGHTS, Weights, shards
from minigpt_edge_runtime.engines.text import open_tokenizer
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json, understanding, write_json, write_text
from minigpt_edge_runtime.formats.tokenizer_files import (
    CHECKPOINT_TOKENIZER_FILES,
    GENERATION_CONFIG,
    MORE_CHAT_TEMPLATES,
    SPECIAL_TOKENS,
    TOKENIZER,
    TOKENIZER_CONFIG,
    chat_templates,
    write_chat_templates,
)

SMALL_FILES = (
    "config.json",
    *CHECKPOINT_TOKENIZER_FILES,
    "README.md",
)


def original_weights(folder: Path) -> list[Path]:
    """The files of a directory's weights: model.safetensors or its shards, else pytorch_model.bin or its.

    Raises:
        EdgeError: there are none, or a shard is missing.
    """
    for single in (WEIGHTS, "pytorch_model.bin"):
        if any((folder / name).is_file() for name in (single, f"{single}.index.json")):
            return shards(folder, single)
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickled:
        raise EdgeError(
            f"{folder} has its weights as pickle ({pickled[0]}), which can run code when read",
            "convert them to safetensors first",
        )
    raise EdgeError(
        f"{folder} has no model.safetensors", "give a Hugging Face directory with safetensors weights"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a known architecture with plain weights; EdgeError otherwise."""
    if not (folder / "config.json").is_file():
        raise EdgeError(
            f"{folder} has no config.json", "give a Hugging Face directory, a GGUF file or a short name"
        )
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise EdgeError(f"{folder / 'config.json'} is not a JSON object", "restore the file")
    architecture_of(config.get("model_type"))
    if method := (config.get("quantization_config") or {}).get("quant_method"):
        raise EdgeError(f"{folder} holds weights quantized with {method}", "give the unquantized model")
    return config


def is_ready(folder: Path) -> bool:
    """Whether a directory already has the form that `convert_directory` writes."""
    config = read_config(folder)
    ours = config.get("minigpt_edge") or {}
    if not {"tokenizer_pre", "document_start"} <= ours.keys() or not config.get("head_dim"):
        return False
    files = original_weights(folder)
    return (
        [path.name for path in files] == [WEIGHTS]
        and (folder / TOKENIZER).is_file()
        and not (folder / MORE_CHAT_TEMPLATES).is_dir()
        and set(Weights(files).types.values()) <= set(STORED)
    )


def convert_directory(source: Path, target: Path) -> None:
    """Write `source` into the folder `target` with one weights file and an explicit config.

    Raises:
        EdgeError: unknown architecture or tokenizer, pickled, quantized, damaged or incomplete weights.
    """
    config = read_config(source)
    if not (source / TOKENIZER).is_file():
        raise EdgeError(
            f"{source} has no tokenizer.json, so its tokenizer can't be read",
            "save it with AutoTokenizer.from_pretrained(…).save_pretrained(…), or use another model",
        )
    tokenizer = read_json(source / TOKENIZER)
    with understanding(source / TOKENIZER):
        if (tokenizer.get("normalizer") or {}).get("type") == "NFC":
            # llama.cpp takes text as it comes: so do we, or the same text would have other tokens there
            tokenizer["normalizer"] = None
        check_tokenizer(tokenizer)
        # A config that names it is believed; the export compares token ids with llama.cpp in any case.
        tokenizer_pre = (config.get("minigpt_edge") or {}).get("tokenizer_pre") or name_of(tokenizer)
    config = _explicit_config(source)
    config["minigpt_edge"] = {"tokenizer_pre": tokenizer_pre}
    _copy_tokenizer(source, target, config, tokenizer)
    architecture = architecture_of(config["model_type"])
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        files = [_safe(path, Path(folder)) for path in original_weights(source)]
        tensors = [t for t in read_tensors(files) if not BUFFERS.search(t.name)]
        tensors = _with_prefix(tensors, architecture)
        if config["tie_word_embeddings"]:
            tensors = [tensor for tensor in tensors if tensor.name != f"{architecture.names['head']}.weight"]
        write_converted(target, config, tensors, source)


def _with_prefix(tensors: list[Tensor], architecture: Architecture) -> list[Tensor]:
    """Names as `ForCausalLM` models have them; old checkpoints of GPT-2 and OPT lack the first part."""
    prefix = architecture.names["embedding"].partition(".")[0] + "."
    if any(tensor.name.startswith(prefix) for tensor in tensors):
        return tensors
    head = architecture.names["head"]
    return [
        tensor if tensor.name.startswith(head) else replace(tensor, name=prefix + tensor.name)
        for tensor in tensors
    ]


def _safe(path: Path, folder: Path) -> Path:
    """The file itself, or a safetensors copy of an old pickled one, read by torch's loader for weights alone.

    Raises:
        EdgeError: it holds anything but tensors, or is damaged.
    """
    if path.suffix == ".safetensors":
        return path
    import torch
    from safetensors.torch import save_file

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        weights = {name: tensor.contiguous().clone() for name, tensor in loaded.items()}
        save_file(weights, folder / f"{path.name}.safetensors")
    except Exception as error:  # torch, zipfile and pickle raise many kinds
        raise EdgeError(
            f"{path} can't be read as weights alone ({str(error).splitlines()[0][:200]})",
            "convert it to safetensors where you trust it",
        ) from error
    return folder / f"{path.name}.safetensors"


def _explicit_config(source: Path) -> dict[str, Any]:
    """The config with every default written out, as transformers understands it."""
    from transformers import AutoConfig

    try:
        config: dict[str, Any] = AutoConfig.from_pretrained(str(source), local_files_only=True).to_dict()
    except Exception as error:  # transformers and what it uses raise many kinds
        raise EdgeError(f"{source / 'config.json'} can't be used: {error}", "restore the file") from error
    for noise in ("_name_or_path", "transformers_version", "torch_dtype", "auto_map"):
        config.pop(noise, None)
    config["dtype"] = "float32"
    return standard_names(config)


def _copy_tokenizer(source: Path, target: Path, config: dict[str, Any], content: dict[str, Any]) -> None:
    """Tokenizer, generation config and chat template; ids that the config lacks are filled in."""
    tokenizer = open_tokenizer(source / TOKENIZER, "restore the file")
    write_text(target / TOKENIZER, json.dumps(content, ensure_ascii=False))
    settings: dict[str, Any] = {}
    for name in (SPECIAL_TOKENS, TOKENIZER_CONFIG):
        if (source / name).is_file():
            settings.update(read_json(source / name))
    for name, token in settings.items():
        if name.endswith("_token") and isinstance(token, dict):  # older files spell out a token's settings
            settings[name] = token.get("content")
    for role in ("bos", "eos", "pad"):
        text = settings.get(f"{role}_token")
        if config.get(f"{role}_token_id") is None and text:
            config[f"{role}_token_id"] = tokenizer.token_to_id(text)
    write_chat_templates(target, settings, chat_templates(source, settings, "restore the file"))
    # Classes made for one model may split text by rules of their own; this one reads tokenizer.json.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.pop("auto_map", None)
    write_json(target / TOKENIZER_CONFIG, settings)
    given = read_json(source / GENERATION_CONFIG) if (source / GENERATION_CONFIG).is_file() else {}
    write_json(target / GENERATION_CONFIG, special_ids(config) | given)
