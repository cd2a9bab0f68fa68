"""The tensors of safetensors files, read one by one as float32."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import os_error, read_json

if TYPE_CHECKING:
    import numpy as np

FACTORS = "factors.safetensors"  # beside the weights: matrices that are products of two smaller ones
_FLOATS = ("F32", "F16", "BF16", "F64")
_SHOWN = 20  # names listed in an error before "and n more"


class Weights:
    """The tensors of safetensors files, by the names they have there."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._types: dict[str, str] = {}
        for path in paths:
            self._open(path)

    def _open(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    view = file.get_slice(name)
                    self._files[name] = path
                    self.shapes[name], self._types[name] = tuple(view.get_shape()), view.get_dtype()
        except SafetensorError as error:
            raise EdgeError(
                f"{path} is not a whole safetensors file ({error})",
                "delete it and run the stage that wrote it again",
            ) from error
        except OSError as error:
            raise os_error(error, path) from error
        bad = sorted(
            f"{name} ({self._types[name]})" for name in self.shapes if self._types[name] not in _FLOATS
        )
        if bad:
            raise EdgeError(
                f"{path} holds weights that are no floats: {listed(bad)}", "export the unquantized model"
            )

    def load(self, name: str) -> np.ndarray:
        """A tensor as contiguous float32."""
        import numpy as np
        from safetensors import safe_open

        if self._types[name] == "BF16":
            return self._load_bfloat16(name)
        with safe_open(self._files[name], framework="np") as file:
            return np.ascontiguousarray(file.get_tensor(name), dtype=np.float32)

    def _load_bfloat16(self, name: str) -> np.ndarray:
        """numpy has no bfloat16, so safetensors can't give it: it is the upper half of a float32."""
        import numpy as np

        with open(self._files[name], "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            start = json.loads(file.read(length))[name]["data_offsets"][0] + 8 + length
            file.seek(start)
            halves = np.fromfile(file, dtype="<u2", count=math.prod(self.shapes[name]))
        return (halves.astype("<u4") << 16).view("<f4").reshape(self.shapes[name])


def weight_files(directory: Path) -> list[Path]:
    """The one safetensors file, or those that the index names; and that of the factors."""
    index = directory / "model.safetensors.index.json"
    single = directory / "model.safetensors"
    names = sorted(set(read_json(index)["weight_map"].values())) if index.exists() else [single.name]
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise EdgeError(f"{directory} lacks {listed(missing)}", "use a complete checkpoint")
    names += [FACTORS] * (directory / FACTORS).is_file()
    return [directory / name for name in names]


def listed(items: Sequence[str]) -> str:
    """The first items, and how many more there are."""
    shown = ", ".join(items[:_SHOWN])
    return shown + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")
