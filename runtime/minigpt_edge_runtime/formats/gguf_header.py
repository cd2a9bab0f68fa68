"""What a GGUF file says about itself, read with the standard library and checked against the file's size.

llama.cpp aborts or reads past the end on some damaged files, so nothing is handed to it before this check.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import os_error
from minigpt_edge_runtime.formats.types import by_type

# The name, elements in a block and bytes of a block of each ggml type id.
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip

# Types of files that circulate and that llama.cpp read once.
REMOVED_TYPES = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4"}

# What general.file_type says: the recipe a file was quantized with (single tensors may have another type).
FILE_TYPES: dict[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0",
    37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0",
    41: "Q2_0",
}  # fmt: skip

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_TOKENS = "tokenizer.ggml.tokens"
_KEPT_STRINGS = 64  # longer string arrays are vocabularies: only their length is kept


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: `shape` in ggml's order (row length first), `offset` and `nbytes` in the data section."""

    name: str
    shape: tuple[int, ...]
    type: str
    elements: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Strings:
    """A long array of strings of which only the length was kept."""

    length: int


@dataclass(frozen=True)
class GgufHeader:
    """The header of a complete GGUF file."""

    version: int
    metadata: dict[str, Any]
    tensors: tuple[TensorInfo, ...]
    file_bytes: int
    data_start: int  # in bytes; offsets of tensors count from here

    @property
    def architecture(self) -> str:
        """The value of general.architecture, "" if there is none."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def parameters(self) -> int:
        """Elements of all tensors in the file; a tied embedding is stored, and so counted, once."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def quantization(self) -> str:
        """The file's declared type ("Q4_0", "Q4_K_M", …), else the type that takes most bytes."""
        declared = FILE_TYPES.get(int(self.metadata.get("general.file_type", -1)))
        if declared is not None:
            return declared
        return max(self.types().items(), key=lambda item: item[1]["bytes"])[0] if self.tensors else ""

    def of_architecture(self, key: str, default: Any = None) -> Any:
        """The value of `<architecture>.<key>`."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def types(self) -> dict[str, dict[str, int]]:
        """Tensor type -> {"tensors", "parameters", "bytes"}, sorted."""
        return by_type((t.type, t.elements, t.nbytes) for t in sorted(self.tensors, key=lambda t: t.type))

    def vocabulary(self) -> int:
        """Number of tokens, 0 if the file has no vocabulary."""
        tokens = self.metadata.get(_TOKENS, [])
        return tokens.length if isinstance(tokens, Strings) else len(tokens)


class _Reader:
    """Reads little-endian values from a mapped file; struct.error past its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        start = self._skip_string()
        return self.data[start : self.at].decode("utf-8", errors="replace")

    def _skip_string(self) -> int:
        length = self.scalar("Q")
        start = self.at
        if start + length > len(self.data):
            raise struct.error("string reaches past the end")
        self.at = start + length
        return start

    def pair(self) -> tuple[str, Any]:
        key = self.string()
        return key, self.value(self.scalar("I"), distinct=key == _TOKENS)

    def value(self, kind: int, distinct: bool = False) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise ValueError(f"unknown value type {kind}")
        element, count = self.scalar("I"), self.scalar("Q")
        if element == _STRING:
            return self._strings(count, distinct)
        if element not in _SCALARS:
            raise ValueError(f"unknown array type {element}")
        size = struct.calcsize("<" + _SCALARS[element])
        if self.at + count * size > len(self.data):
            raise struct.error("array reaches past the end")
        values = struct.unpack_from(f"<{count}{_SCALARS[element]}", self.data, self.at)
        self.at += count * size
        return list(values)

    def _strings(self, count: int, distinct: bool) -> list[str] | Strings:
        if count <= _KEPT_STRINGS:
            return [self.string() for _ in range(count)]
        unpack, data, at = struct.Struct("<Q").unpack_from, self.data, self.at
        seen: set[bytes] = set()
        for _ in range(count):
            start = at + 8
            at = start + unpack(data, at)[0]
            if distinct:  # as llama.cpp takes them: up to a zero byte, and empty ones under other names
                seen.add(data[start:at].partition(b"\0")[0] or b"[EMPTY_%d]" % at)
        if distinct and len(seen) != count:  # llama.cpp would end the process
            raise ValueError("a token is there twice")
        self.at = at
        return Strings(count)


def read_header(path: Path) -> GgufHeader:
    """Read and check a GGUF file's header.

    Raises:
        EdgeError: the file is missing, empty, not GGUF, of an unknown version, damaged, or shorter than its
            tensors need.
    """
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise EdgeError(f"{path} is a directory, not a GGUF file", "give the .gguf file or a bundle")
        if size == 0:
            raise EdgeError(f"{path} is empty", "download or export the file again")
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(data, path)
    except OSError as error:
        raise os_error(error, path) from error


def _parse(data: mmap.mmap, path: Path) -> GgufHeader:
    if data[:4] != b"GGUF":
        raise EdgeError(
            f"{path} is not a GGUF file (it starts with {bytes(data[:4])!r})", "give a .gguf model file"
        )
    reader = _Reader(data)
    reader.at = 4
    try:
        version = reader.scalar("I")
        if version not in (2, 3):
            swapped = version.to_bytes(4, "little") in (b"\0\0\0\2", b"\0\0\0\3")
            reason = "is big-endian" if swapped else f"has GGUF version {version}, known are 2 and 3"
            raise EdgeError(f"{path} {reason}", "export or convert it again with current tools")
        tensors, pairs = reader.scalar("Q"), reader.scalar("Q")
        metadata = dict(reader.pair() for _ in range(pairs))
        infos = tuple(_tensor_infos(reader, tensors, path))
        alignment = int(metadata.get("general.alignment", 32)) or 32
    except (struct.error, OverflowError) as error:  # the latter: an offset beyond what an index can be
        raise _truncated(path, len(data)) from error
    except (ValueError, TypeError) as error:
        raise EdgeError(
            f"{path} has a damaged GGUF header ({error})", "download or export the file again"
        ) from error
    start = -(-reader.at // alignment) * alignment
    need = max((start + info.offset + info.nbytes for info in infos), default=start)
    if infos and need > len(data):
        raise _truncated(path, len(data), need)
    return GgufHeader(version, metadata, infos, len(data), start)


def _tensor_infos(reader: _Reader, count: int, path: Path) -> Iterator[TensorInfo]:
    for _ in range(count):
        name = reader.string()
        dimensions = reader.scalar("I")
        if not 0 < dimensions <= 4:
            raise ValueError(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(reader.scalar("Q") for _ in range(dimensions))
        kind, offset = reader.scalar("I"), reader.scalar("Q")
        if kind not in TENSOR_TYPES:
            raise EdgeError(
                f"{path}: {name} has the type {REMOVED_TYPES.get(kind, kind)}, which llama.cpp does not have"
                + (" any more" if kind in REMOVED_TYPES else ""),
                "get or make the file in another type, such as Q4_0, Q8_0 or F16",
            )
        type_name, block, block_bytes = TENSOR_TYPES[kind]
        elements = 1
        for length in shape:
            elements *= length
        if shape[0] % block:
            raise ValueError(
                f"rows of {name!r} have {shape[0]} elements, {type_name} needs a multiple of {block}"
            )
        yield TensorInfo(name, shape, type_name, elements, offset, elements // block * block_bytes)


def _truncated(path: Path, size: int, need: int | None = None) -> EdgeError:
    detail = f"it has {size:,} bytes" + (
        f" of {need:,}" if need is not None else " and ends inside its header"
    )
    return EdgeError(f"{path} is truncated: {detail}", "download or export the file again")
