"""GGUF files as they circulate: tiny LLaMAs exported, then changed in metadata, tensors or types."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tiny_llama import build_model, write_tokenizer

from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.gguf.write import write_gguf

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}


def llama_dir(
    folder: Path, tokenizer: dict[str, Any], blocks: Sequence[tuple[int, int, int]], **changes: Any
) -> Path:
    """A random LLaMA with blocks of (width, heads, key/value heads) as a checkpoint directory."""
    from safetensors.torch import save_file

    folder.mkdir()
    model, config = build_model(blocks, vocab_size=len(tokenizer["model"]["vocab"]), **changes)
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    if config["tie_word_embeddings"]:
        weights.pop("lm_head.weight")
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, tokenizer)
    return folder


def llama_gguf(
    path: Path,
    tokenizer: dict[str, Any],
    blocks: Sequence[tuple[int, int, int]],
    *,
    kind: str = "f32",
    names: dict[str, str] | None = None,
    **changes: Any,
) -> Path:
    """The same as a GGUF file; `names` are its special tokens in tokenizer_config.json."""
    folder = llama_dir(path.with_suffix(""), tokenizer, blocks, **changes)
    if names:
        write_tokenizer(folder, tokenizer, **names)
    write_gguf(read_checkpoint(folder), path, file_type=kind)
    return path


def changed_gguf(
    source: Path,
    path: Path,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray | None] | None = None,
    architecture: str = "llama",
) -> Path:
    """A copy with other metadata and tensors; None takes one away."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, architecture)
    own = {**(metadata or {})}
    for name, field in reader.fields.items():
        key = name.replace("llama.", f"{architecture}.", 1) if name.startswith("llama.") else name
        if name.startswith("GGUF.") or name == "general.architecture" or key in own:
            continue
        list_of = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), field.types[0], sub_type=list_of)
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    for key, value in own.items():
        if value is not None:
            adders.get(type(value), writer.add_string if isinstance(value, str) else writer.add_array)(
                key, value
            )
    contents = {t.name: (np.array(t.data), t.tensor_type) for t in reader.tensors}
    for name, data in (tensors or {}).items():
        contents.pop(name, None)
        if data is not None:
            contents[name] = (data, gguf.GGMLQuantizationType.F32)
    for name, (data, kind) in contents.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantized(source: Path, path: Path, kind: str) -> Path:
    """A copy that llama.cpp itself quantized, "Q4_K_M", or made F32 again, "F32"."""
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    name = "LLAMA_FTYPE_ALL_F32" if kind == "F32" else f"LLAMA_FTYPE_MOSTLY_{kind}"
    options.ftype, options.nthread, options.allow_requantize = getattr(llama_cpp, name), 1, True
    done = llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(options))
    assert done == 0, kind
    return path
