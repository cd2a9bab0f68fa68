"""The tensors of safetensors files, read one by one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt_edge_export.architectures.base import BUFFERS
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import os_error, read_json, understanding

if TYPE_CHECKING:
    import numpy as np

WEIGHTS = "model.safetensors"
FACTORS = "factors.safetensors"  # beside the weights: matrices that are products of two smaller ones
_FLOATS = ("F32", "F16", "BF16", "F64")
_LARGEST_HALF = 65504.0


# What wraps a model puts these into the names of its weights; transformers does not take them off.
_WRAPPERS = {
    "_orig_mod": "torch.compile puts there",
    "_fsdp_wrapped_module": "FSDP puts there",
    "_checkpoint_wrapped_module": "activation checkpointing puts there",
    "_forward_module": "a trainer puts there",
    "module": "DataParallel, DDP or DeepSpeed put there",
    "base_model": "peft puts there",
    "base_layer": "peft puts there: an adapter that was not merged",
}


class Weights:
    """The tensors of safetensors files, by the names they have there.

    Attributes:
        shapes: of every tensor.
        types: "F64", "F32", "F16" or "BF16" of every tensor.

    Raises:
        EdgeError: a file is damaged, or holds weights that are no floats.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, str] = {}
        for path in paths:
            self._open(path)

    def _open(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    view = file.get_slice(name)
                    self._files[name] = path
                    self.shapes[name], self.types[name] = tuple(view.get_shape()), view.get_dtype()
        except SafetensorError as error:
            raise EdgeError(
                f"{path} is not a whole safetensors file ({error})",
                "download or copy it again, or delete it and run the stage that wrote it again",
            ) from error
        except OSError as error:
            raise os_error(error, path) from error
        bad = sorted(
            f"{name} ({kind})"
            for name, kind in self.types.items()
            if kind not in _FLOATS and not BUFFERS.search(name)
        )
        if bad:
            raise EdgeError(
                f"{path} holds weights that are no floats of 16, 32 or 64 bits: {listed(bad)}",
                "give the model that is not quantized",
            )

    def load(self, name: str) -> np.ndarray:
        """A tensor as contiguous float32."""
        import numpy as np

        return np.ascontiguousarray(self.stored(name), dtype=np.float32)

    def stored(self, name: str) -> np.ndarray:
        """A tensor in the type that it has in the file; bfloat16 is the type of ml_dtypes."""
        import ml_dtypes  # noqa: F401 - its import teaches numpy, and so safetensors, bfloat16
        from safetensors import safe_open

        with safe_open(self._files[name], framework="np") as file:
            tensor: np.ndarray = file.get_tensor(name)
            return tensor


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint's weights, and that of its factors if it has one."""
    factors = directory / FACTORS
    return shards(directory) + [factors] * factors.is_file()


def shards(directory: Path, single: str = WEIGHTS) -> list[Path]:
    """The one file of weights, or else those that its index names: transformers' order, too.

    Raises:
        EdgeError: one of them is missing, or the index is damaged.
    """
    index, names = directory / f"{single}.index.json", [single]
    if index.exists() and not (directory / single).is_file():
        with understanding(index):
            names = sorted(set(read_json(index)["weight_map"].values()))
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise EdgeError(f"{directory} lacks {listed(missing)}", "use a complete checkpoint")
    return [directory / name for name in names]


def check_half(array: np.ndarray, name: str, hint: str) -> None:
    """Raise EdgeError if a tensor's values do not fit into float16."""
    import numpy as np

    if np.abs(array).max() > _LARGEST_HALF:
        raise EdgeError(f"{name} holds values beyond float16's {_LARGEST_HALF:,.0f}", hint)


def wrapper_of(names: Iterable[str], embedding: str) -> tuple[str, str] | None:
    """What a wrapper put into names of weights, and which wrapper; None where there is nothing.

    Args:
        embedding: name of the embedding's weight in a model without a wrapper.
    """
    for name in names:
        for part in name.split("."):
            if part in _WRAPPERS:
                return f"{part}.", _WRAPPERS[part]
        if name.endswith(f".{embedding}"):
            return name.removesuffix(embedding), "transformers does not know"
    return None


def listed(items: Sequence[str], most: int = 20) -> str:
    """The first items, and how many more there are."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
