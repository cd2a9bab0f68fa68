"""What people give for a base model by mistake: said by name, with what to give instead."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minigpt_edge_export.architectures import KNOWN
from minigpt_edge_export.weights import WEIGHTS
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json, refuse_pointer
from minigpt_edge_runtime.formats.gguf_header import read_header
from minigpt_edge_runtime.formats.tokenizer_files import TOKENIZER

ADAPTER_CONFIG = "adapter_config.json"
_TRAINING = "the directory that save_pretrained wrote"
# Patterns of files -> what a directory with them, and without a model, is, and what to do. The first counts.
_FOREIGN: tuple[tuple[str, str, str], ...] = (
    (ADAPTER_CONFIG, "is an adapter, not a model", "merge it with peft, and give the merged model"),
    ("genai_config.json", "is an ONNX export", "give the model it was exported from"),
    ("*.onnx", "is an ONNX export", "give the model it was exported from"),
    ("openvino_model.xml", "is an OpenVINO export", "give the model it was exported from"),
    ("model_index.json", "is a diffusion pipeline", "give a language model"),
    ("zero_to_fp32.py", "holds DeepSpeed's training state", "run its zero_to_fp32.py, then give its output"),
    ("*.distcp", "holds a distributed training state", "merge it: accelerate merge-weights"),
    ("optimizer.*", "holds the state of a training, but no model", f"give {_TRAINING}"),
    ("trainer_state.json", "holds the state of a training, but no model", f"give {_TRAINING}"),
    ("consolidated*", "holds Meta's or Mistral's own files", "give the model's Hugging Face form"),
    ("tf_model.h5", "holds weights for TensorFlow", "give the model's safetensors weights"),
    ("flax_model.msgpack", "holds weights for Flax", "give the model's safetensors weights"),
    ("*.npz", "holds weights for MLX or numpy", "give the model's safetensors weights"),
)  # fmt: skip


def refuse_directory(path: Path) -> None:
    """Say what a directory is that holds no model as transformers saves it; nothing if it may be one.

    Raises:
        EdgeError: it is known to be something else, or holds a model and an adapter.
    """
    config = (path / "config.json").is_file()
    weights = [p for glob in (f"{WEIGHTS}*", "pytorch_model.bin*") for p in sorted(path.glob(glob))]
    if config and weights:
        for file in (*weights, path / TOKENIZER):
            if file.is_file():
                refuse_pointer(file)
        if (path / ADAPTER_CONFIG).is_file():
            raise EdgeError(
                f"{path} holds a model and an adapter: transformers would apply the adapter to it",
                f"move {ADAPTER_CONFIG} and its weights to a folder of their own; then --model {path}, with "
                "--adapter FOLDER if it is to be applied",
            )
        return
    _refuse_outputs(path)
    for glob, what, hint in _FOREIGN:
        if any(path.glob(glob)):
            raise EdgeError(f"{path} {what}", hint)
    if shards := sorted(p.name for p in path.glob("*.safetensors")):
        index = f"{WEIGHTS}.index.json"
        lost = config and re.search(r"-of-\d+\.", shards[0])
        what = (
            f"lacks {index}"
            if lost
            else f"holds {shards[0]}, but no {WEIGHTS}"
            if config
            else "has no config.json"
        )
        raise EdgeError(f"{path} {what}", "copy all files of the model that it comes from, of one save")


def _refuse_outputs(path: Path) -> None:
    """EdgeError for what this program, trainers, converters and caches leave: the model is elsewhere."""
    ggufs = sorted(path.glob("*.gguf"))
    manifest = path / "manifest.json"
    if manifest.is_file() and "model_files" in (read_json(manifest) or ()):
        instead = f"; or its GGUF file, to start from that: --model {ggufs[0]}" if ggufs else ""
        raise EdgeError(
            f"{path} is a bundle, which a build has made, and no base model",
            f"give the model that it was made from{instead}",
        )
    if ggufs:
        raise EdgeError(f"{path} holds GGUF files", f"give one of them: --model {ggufs[0]}")
    saved = [p.parent for name in ("config.json", ADAPTER_CONFIG) for p in path.glob(f"checkpoint-*/{name}")]
    if saved:
        last = max(saved, key=lambda p: int(re.sub(r"\D", "", p.name) or 0))
        raise EdgeError(
            f"{path} is the output folder of a training, whose models are in its checkpoints",
            f"give one of them, such as --model {last}",
        )
    inner = sorted(p.parent for glob in ("*/config.json", "snapshots/*/config.json") for p in path.glob(glob))
    if inner and not (path / "config.json").is_file():
        raise EdgeError(f"{path} has no config.json, but {inner[0]} has", f"give --model {inner[0]}")


def refuse_file(path: Path) -> None:
    """Say what a file is that is no GGUF file of a language model.

    Raises:
        EdgeError: it is anything else.
    """
    refuse_pointer(path)
    with open(path, "rb") as file:
        start = file.read(4)
    if start == b"GGUF":
        _refuse_gguf(path)
    elif path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json"):
        raise EdgeError(
            f"{path} is one file of a model",
            f"give the directory that holds all of them: --model {path.parent}",
        )
    elif path.suffix == ".onnx":
        raise EdgeError(f"{path} is an ONNX export", "give the model it was exported from")
    elif path.suffix == ".zip":
        raise EdgeError(f"{path} is a zip file, perhaps of a bundle", "unpack it, and give the model inside")
    elif start in (b"lmgg", b"fmgg", b"tjgg"):
        raise EdgeError(f"{path} is of the format that came before GGUF", "download the model as GGUF")
    else:
        raise EdgeError(
            f"{path} is not a GGUF file",
            "give a GGUF file, or the Hugging Face directory that holds the weights",
        )


def _refuse_gguf(path: Path) -> None:
    header = read_header(path)
    kind = header.metadata.get("general.type")
    if kind == "adapter" or "adapter.type" in header.metadata:
        raise EdgeError(
            f"{path} is a LoRA adapter as GGUF, not a model",
            "give the adapter as peft saved it: --model BASE --adapter DIRECTORY",
        )
    if kind == "mmproj" or header.architecture == "clip":
        raise EdgeError(
            f"{path} is the projector of a vision model (mmproj)", "give the GGUF file of its language model"
        )
    if kind == "imatrix" or header.architecture == "imatrix":
        raise EdgeError(f"{path} is an importance matrix, not a model", "give the model's own GGUF file")
    if isinstance(parts := header.metadata.get("split.count"), int) and parts > 1:
        raise EdgeError(
            f"{path} is one of {parts} parts of a model",
            "join them first: llama-gguf-split --merge FIRST OUT",
        )


def refuse_config(config: Mapping[str, Any], folder: Path) -> None:
    """Say what is wrong with the model that a config.json is of; nothing if it may be read.

    Raises:
        EdgeError: it reads more than text, predicts no text, or its weights are quantized.
    """
    inner = config.get("text_config")
    if isinstance(inner, dict):
        kind = inner.get("model_type")
        known = kind in KNOWN
        raise EdgeError(
            f"{folder} is a {config.get('model_type')} model, which reads images or sound too; its language "
            f"model ({kind}) is a part of it",
            "save that part alone: model.language_model.save_pretrained(…)"
            if known
            else "give a language model",
        )
    for name in config.get("architectures") or ():
        if re.search(r"Classification|QuestionAnswering|Reward|ForEmbedding", str(name)):
            raise EdgeError(
                f"{folder} is a {name}, which predicts no text", "give a model for text generation"
            )
    stored = (
        config.get("quantization_config") or config.get("compression_config") or config.get("quantization")
    )
    if stored:
        method = stored.get("quant_method") if isinstance(stored, dict) else None
        if not method and isinstance(stored, dict):
            method = "MLX" if "group_size" in stored else "bitsandbytes" if "load_in_4bit" in stored else None
        raise EdgeError(
            f"{folder} holds weights quantized with {method or 'a method that config.json does not name'}",
            "give the model that it was quantized from",
        )
    if config.get("transformers_weights"):
        raise EdgeError(
            f"{folder / 'config.json'} names a file of weights of its own (transformers_weights)",
            f"save the model again with save_pretrained, as {WEIGHTS}",
        )
