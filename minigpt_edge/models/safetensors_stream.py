"""Safetensors one tensor at a time: memory holds one tensor, not the model. No torch."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import need_space, os_error

if TYPE_CHECKING:
    import numpy as np

_WIDTH = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # numpy has no bfloat16: its bits
STORED = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Tensor:
    """A tensor that is read when it is needed.

    Attributes:
        load: returns it, contiguous and of `shape`.
        dtype: "F32", "F16" or "BF16", which `load` returns as float32, float16, or bits in uint16.
    """

    name: str
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]
    dtype: str = "F32"

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def write_tensors(path: Path, tensors: Iterable[Tensor]) -> None:
    """Write the tensors, sorted by name, each in its own type."""
    import numpy as np

    ordered = sorted(tensors, key=lambda tensor: tensor.name)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        start, end = end, end + _WIDTH[tensor.dtype] * tensor.parameters
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    need_space(path.parent, end + len(encoded) + 8, "the model")
    try:
        with open(path, "wb") as out:
            out.write(struct.pack("<Q", len(encoded)) + encoded)
            for tensor in ordered:
                array = np.ascontiguousarray(tensor.load(), dtype=_NUMPY[tensor.dtype])
                out.write(array.reshape(tensor.shape).data)
    except OSError as error:
        raise os_error(error, path) from error


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """The tensors of a safetensors file: name -> dtype, shape, data_offsets (absolute, in bytes).

    Raises:
        EdgeError: it is not a safetensors file, or is shorter than its header says.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as f:
            first = f.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else size
            if length > size - 8:
                raise _damaged(path, "its header is cut off")
            header = json.loads(f.read(length))
        header.pop("__metadata__", None)
        for entry in header.values():
            entry["data_offsets"] = [8 + length + offset for offset in entry["data_offsets"]]
    except OSError as error:
        raise os_error(error, path) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, "its header can't be read") from error
    if any(entry["data_offsets"][1] > size for entry in header.values()):
        raise _damaged(path, "it ends before its last tensor")
    return header


def read_tensors(path: Path) -> list[Tensor]:
    """The tensors of a safetensors file; float64 becomes float32, other types stay.

    Raises:
        EdgeError: the file is damaged, or holds integers or other types that are no plain weights.
    """
    tensors = []
    for name, entry in read_header(path).items():
        dtype, shape = str(entry["dtype"]), tuple(entry["shape"])
        start, end = entry["data_offsets"]
        if dtype not in _WIDTH:
            raise EdgeError(
                f"{path.name}: {name} has type {dtype}", "use weights in float32, float16 or bfloat16"
            )
        if end - start != math.prod(shape) * _WIDTH[dtype]:
            raise _damaged(path, f"{name} has a wrong size")
        stored = dtype if dtype in STORED else "F32"
        tensors.append(Tensor(name, shape, partial(_load, path, dtype, shape, start), stored))
    return tensors


def _load(path: Path, dtype: str, shape: tuple[int, ...], start: int) -> np.ndarray:
    import numpy as np

    return np.fromfile(path, dtype=_NUMPY[dtype], count=math.prod(shape), offset=start).reshape(shape)


def _damaged(path: Path, how: str) -> EdgeError:
    return EdgeError(f"{path} is not a whole safetensors file: {how}", "download or copy it again")
