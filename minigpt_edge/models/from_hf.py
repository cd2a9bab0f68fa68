"""A Hugging Face directory as anyone made it, brought into the one form that the stages read."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from minigpt_edge.models.checkpoint import special_ids, standard_names, write_converted
from minigpt_edge.models.compare import compare_with_transformers
from minigpt_edge.models.fit_tokenizer import complete_settings, fit_tokenizer
from minigpt_edge.models.hf_tokenizer import check_rows, compare_tokenizers, read_hf_tokenizer
from minigpt_edge.models.recognise import refuse_config
from minigpt_edge.models.safetensors_stream import STORED, Tensor, read_tensors
from minigpt_edge_export.architectures import architecture_of
from minigpt_edge_export.architectures.base import BUFFERS, Architecture
from minigpt_edge_export.gguf.pretokenizers import PRE_TOKENIZERS, has_form, name_of
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
    refuse_config(config, folder)
    architecture_of(config.get("model_type"))
    return config


def is_ready(folder: Path) -> bool:
    """Whether a directory already has the form that `convert_directory` writes."""
    config = read_config(folder)
    ours = config.get("minigpt_edge") or {}
    if not {"tokenizer_pre", "document_start"} <= ours.keys() or not config.get("head_dim"):
        return False
    files = original_weights(folder)
    if [path.name for path in files] != [WEIGHTS] or not (folder / TOKENIZER).is_file():
        return False
    if (folder / MORE_CHAT_TEMPLATES).is_dir():
        return False
    weights, architecture = Weights(files), architecture_of(config["model_type"])
    tied = bool(config.get("tie_word_embeddings", architecture.tied))
    own_head = f"{architecture.names['head']}.weight" in weights.shapes
    with understanding(folder / TOKENIZER):
        named = _splitting(read_json(folder / TOKENIZER), ours["tokenizer_pre"]) == ours["tokenizer_pre"]
    return named and own_head != tied and set(weights.types.values()) <= set(STORED)


def convert_directory(source: Path, target: Path) -> None:
    """Write `source` into the folder `target` with one weights file and an explicit config.

    Raises:
        EdgeError: unknown architecture or tokenizer, pickled, quantized, damaged or incomplete weights, or
            what was read computes or tokenizes otherwise than transformers does.
    """
    config = read_config(source)
    tokenizer = fit_tokenizer(read_hf_tokenizer(source), source)
    with understanding(source / TOKENIZER):
        tokenizer_pre = _splitting(tokenizer, (config.get("minigpt_edge") or {}).get("tokenizer_pre"))
    config = _explicit_config(source)
    config["minigpt_edge"] = {"tokenizer_pre": tokenizer_pre}
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        files = [_safe(path, Path(folder)) for path in original_weights(source)]
        tensors = [t for t in read_tensors(files) if not BUFFERS.search(t.name)]
        architecture = architecture_of(config["model_type"])
        tensors = _with_head(_with_names(tensors, architecture), config, source)
        embedding = f"{architecture.names['embedding']}.weight"
        for rows in (tensor.shape[0] for tensor in tensors if tensor.name == embedding and tensor.shape):
            check_rows(tokenizer, rows, source)
        _copy_tokenizer(source, target, config, tokenizer)
        write_converted(target, config, tensors, source)
    complete_settings(source, target)
    compare_directory(source, target, target.parent)


def _splitting(tokenizer: dict[str, Any], stated: str | None) -> str:
    """llama.cpp's name for how a tokenizer splits text; what a config states counts unless another is known.

    Raises:
        EdgeError: none is stated, and none is known.
    """
    try:
        found = name_of(tokenizer)
    except EdgeError:
        if stated is None:
            raise
        return stated
    same = stated in PRE_TOKENIZERS and has_form(tokenizer, PRE_TOKENIZERS[stated])
    return stated if stated is not None and same else found


def compare_directory(source: Path, directory: Path, scratch: Path) -> None:
    """Compare a converted directory's token ids and logits with transformers', where that can load both.

    Blocks of sizes of their own are a form of ours, which transformers can't build.

    Args:
        scratch: a folder for what is needed meanwhile.

    Raises:
        EdgeError: they differ.
    """
    compare_tokenizers(source, directory)
    config = read_json(directory / "config.json")
    if all(sizes.items() <= config.items() for sizes in (config.get("per_layer_config") or {}).values()):
        compare_with_transformers(source, directory, scratch)


def _with_names(tensors: list[Tensor], architecture: Architecture) -> list[Tensor]:
    """Names as `ForCausalLM` models have them; as transformers does, the first part is added or taken off."""
    head = architecture.names["head"]
    first = architecture.names["embedding"].partition(".")[0] + "."
    inner = {".".join(name.split(".")[1:2]) for name in architecture.names.values() if name.startswith(first)}

    def named(name: str) -> str:
        module, _, kind = name.removeprefix(first).rpartition(".")
        if module in (head, "lm_head"):
            return f"{head}.{kind}"
        return first + name if name.partition(".")[0] in inner else name

    return [replace(tensor, name=named(tensor.name)) for tensor in tensors]


def _with_head(tensors: list[Tensor], config: dict[str, Any], source: Path) -> list[Tensor]:
    """The tensors with a head if it is not the embedding; "tie_word_embeddings" then says so.

    As transformers 5 does: what a config ties is not tied if both are stored and differ.

    Raises:
        EdgeError: the config has a head of its own, and none is stored.
    """
    names = architecture_of(config["model_type"]).names
    embedding, head = (f"{names[part]}.weight" for part in ("embedding", "head"))
    stored = {tensor.name: tensor for tensor in tensors}
    if not config["tie_word_embeddings"]:
        if embedding in stored and head not in stored:
            raise EdgeError(
                f"{source} stores no {head}, but its config.json says that the head is not the embedding "
                "(tie_word_embeddings): transformers would draw one at random",
                "save the model with its head; or set tie_word_embeddings to true, if it is the embedding",
            )
    elif head in stored and embedding not in stored:
        return [replace(t, name=embedding) if t.name == head else t for t in tensors]
    elif head in stored:
        if _equal(stored[head], stored[embedding]):
            return [tensor for tensor in tensors if tensor.name != head]
        config["tie_word_embeddings"] = False
        print(
            f"{source} stores a head that is not the embedding, though its config.json ties them "
            "(tie_word_embeddings): both are kept, as transformers does",
            file=sys.stderr,
        )
    return tensors


def _equal(a: Tensor, b: Tensor) -> bool:
    import numpy as np

    return a.shape == b.shape and np.array_equal(a.load(), b.load())


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
        raise EdgeError(
            f"transformers can't use {source / 'config.json'}: {error}",
            "put right what it says; a model that transformers does not load can't be a base",
        ) from error
    where = ("_name_or_path", "transformers_version", "torch_dtype", "auto_map")
    for noise in (*where, "attn_implementation", "_attn_implementation"):
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
    with understanding(source / GENERATION_CONFIG, "restore or delete the file"):
        write_json(target / GENERATION_CONFIG, special_ids(config) | given)
