"""Which GGUF files can be read as models. No torch."""

from __future__ import annotations

from pathlib import Path

from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.formats.gguf_header import GgufHeader

# llama.cpp's architecture -> model_type. deci and openelm have a size for each block.
MODEL_TYPES = {"llama": "llama", "deci": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "openelm": "qwen3"}


def check_kind(header: GgufHeader, path: Path) -> None:
    """EdgeError unless the file holds the weights of a known architecture in known types."""
    architecture = header.architecture
    if architecture not in MODEL_TYPES:
        raise EdgeError(
            f"{path}: GGUF files of the architecture {architecture!r} can't be read",
            f"known: {', '.join(MODEL_TYPES)}; or give the model's Hugging Face directory",
        )
    if not header.tensors:
        raise EdgeError(f"{path} holds a vocabulary or metadata alone, no weights", "give the model's file")
    wrong = next((tensor for tensor in header.tensors if not _dequantizes(tensor.type)), None)
    if wrong:
        raise EdgeError(
            f"{path}: {wrong.name} has the type {wrong.type}, which can't be dequantized",
            "make it F16 first: llama-quantize --allow-requantize FILE.gguf F16.gguf F16",
        )


def _dequantizes(kind: str) -> bool:
    """Whether the gguf package makes floats of a type, which one block of zeros shows."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

    if kind not in GGMLQuantizationType.__members__:
        return False
    known = GGMLQuantizationType[kind]
    try:
        quants.dequantize(np.zeros((1, GGML_QUANT_SIZES[known][1]), np.uint8), known)
    except (NotImplementedError, KeyError):
        return False
    return True
