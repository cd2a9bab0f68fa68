"""What a model file is, whatever its format: bytes, checksum, parameters, types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minigpt_edge_runtime.files import sha256_file
from minigpt_edge_runtime.gguf_header import read_header


def describe_model(path: Path) -> dict[str, Any]:
    """What a model file says of itself.

    Returns:
        "file", "format", "bytes", "sha256", "parameters" (embeddings once), "quantization", "architecture",
        "vocabulary", "name", "tensor_types", and "weight_bytes_per_token": what decoding one token reads.

    Raises:
        EdgeError: it is damaged, or no model.
    """
    header = read_header(path)
    sizes = {tensor.name: tensor.nbytes for tensor in header.tensors}
    # a lookup reads one row of the embedding; where it is also the head all of it is read
    looked_up = sizes.get("token_embd.weight", 0) if "output.weight" in sizes else 0
    return {
        "file": path.name,
        "format": "gguf",
        "bytes": header.file_bytes,
        "sha256": sha256_file(path),
        "parameters": header.parameters,
        "quantization": header.quantization,
        "architecture": header.architecture,
        "vocabulary": header.vocabulary(),
        "name": header.metadata.get("general.name"),
        "tensor_types": header.types(),
        "weight_bytes_per_token": sum(sizes.values()) - looked_up,
    }
