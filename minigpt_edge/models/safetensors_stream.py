"""Safetensors one tensor at a time: memory holds one tensor, not the model. No torch."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt_edge_export.weights import Weights
from minigpt_edge_runtime.files import need_space, os_error

if TYPE_CHECKING:
    import numpy as np

_NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "bfloat16"}
STORED = tuple(_NUMPY)


@dataclass(frozen=True)
class Tensor:
    """A tensor that is read when it is needed.

    Attributes:
        load: returns it, of `shape`.
        dtype: "F32", "F16" or "BF16": what it is written as.
    """

    name: str
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]
    dtype: str = "F32"

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_tensors(paths: Sequence[Path]) -> list[Tensor]:
    """The tensors of safetensors files, read as `Weights` does; float64 becomes float32."""
    weights = Weights(paths)
    return [
        Tensor(name, shape, partial(weights.stored, name), kind if kind in STORED else "F32")
        for (name, shape), kind in zip(weights.shapes.items(), weights.types.values(), strict=True)
    ]


def write_tensors(path: Path, tensors: Iterable[Tensor]) -> None:
    """Write the tensors, sorted by name, each in its own type."""
    import ml_dtypes  # noqa: F401 - its import teaches numpy bfloat16
    import numpy as np

    ordered = sorted(tensors, key=lambda tensor: tensor.name)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        start, end = end, end + np.dtype(_NUMPY[tensor.dtype]).itemsize * tensor.parameters
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
                out.write(array.reshape(tensor.shape).ravel().view(np.uint8).data)
    except OSError as error:
        raise os_error(error, path) from error
