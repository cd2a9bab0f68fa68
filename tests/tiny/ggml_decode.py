"""What a GGUF file's tensors hold, by ggml's own code: the package gguf knows fewer types than llama.cpp."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import llama_cpp
import numpy as np

from minigpt_edge_runtime.formats.gguf_header import TensorInfo, read_header


def ggml_decoded(kind: str, data: np.ndarray, count: int) -> np.ndarray:
    """Float32 [count] of a quantized type's bytes, such as "Q2_0"'s."""
    values = np.zeros(count, dtype=np.float32)
    source, target = (np.ascontiguousarray(a).ctypes.data_as(ctypes.c_void_p) for a in (data, values))
    getattr(_library(), f"dequantize_row_{kind.lower()}")(source, target, ctypes.c_int64(count))
    return values


def quantized_tensors(path: Path) -> dict[str, tuple[TensorInfo, np.ndarray]]:
    """Name -> (what the header says, float32 [rows, row length]) of a file's quantized matrices."""
    header, data = read_header(path), np.fromfile(path, dtype=np.uint8)
    found = {}
    for tensor in header.tensors:
        if len(tensor.shape) == 2 and tensor.type not in ("F32", "F16", "BF16"):
            start = header.data_start + tensor.offset
            values = ggml_decoded(tensor.type, data[start : start + tensor.nbytes], tensor.elements)
            found[tensor.name] = tensor, values.reshape(tensor.shape[::-1])
    return found


@cache
def _library() -> ctypes.CDLL:
    folder = Path(llama_cpp.__file__).parent / "lib"
    return ctypes.CDLL(str(next(path for path in folder.glob("*ggml-base*") if not path.is_symlink())))
