"""What a model file is, whatever its format: bytes, checksum, parameters, types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minigpt_edge_runtime.files import sha256_file, sha256_json
from minigpt_edge_runtime.formats.gguf_header import read_header
from minigpt_edge_runtime.formats.gguf_names import EMBEDDING, HEAD
from minigpt_edge_runtime.formats.onnx_header import read_onnx


def describe_model(path: Path) -> dict[str, Any]:
    """What a model file says of itself.

    Returns:
        "file", "format", "bytes", "sha256", "parameters" (embeddings once; None if unknown), "quantization",
        "architecture", "vocabulary", "context_length", "name", "tensor_types", and "weight_bytes_per_token":
        what decoding one token reads. An ONNX model is all files that running it needs; its "sha256" is that
        of their names' and checksums' JSON.

    Raises:
        EdgeError: it is damaged, or no model.
    """
    return _onnx(path) if path.suffix.lower() == ".onnx" else _gguf(path)


def _gguf(path: Path) -> dict[str, Any]:
    header = read_header(path)
    sizes = {tensor.name: tensor.nbytes for tensor in header.tensors}
    # A lookup reads one row of the embedding; where it is also the head, all of it is read.
    looked_up = sizes.get(EMBEDDING, 0) if HEAD in sizes else 0
    return {
        "file": path.name,
        "format": "gguf",
        "bytes": header.file_bytes,
        "sha256": sha256_file(path),
        "parameters": header.parameters,
        "quantization": header.quantization,
        "architecture": header.architecture,
        "vocabulary": header.vocabulary(),
        "context_length": int(header.of_architecture("context_length", 0)) or None,
        "name": header.metadata.get("general.name"),
        "tensor_types": header.types(),
        "weight_bytes_per_token": sum(sizes.values()) - looked_up,
    }


def _onnx(path: Path) -> dict[str, Any]:
    header = read_onnx(path)
    looked_up = 0 if header.fact("tied_embeddings") else header.bytes_of("embedding.")
    return {
        "file": path.name,
        "format": "onnx",
        "bytes": header.file_bytes,
        "sha256": sha256_json({file.name: sha256_file(file) for file in header.files}),
        "parameters": header.fact("parameters"),
        "quantization": header.fact("quantization"),
        "architecture": header.fact("architecture") or header.config.get("model", {}).get("type"),
        "vocabulary": header.config.get("model", {}).get("vocab_size"),
        "context_length": header.context_length,
        "name": header.fact("name"),
        "tensor_types": header.types(),
        "weight_bytes_per_token": header.weight_bytes - looked_up,
    }
