"""Quantize a GGUF file with llama.cpp's quantizer, and ask it beforehand which types a model would get."""

from __future__ import annotations

import ctypes
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minigpt_edge_export.decoder import Decoder
from minigpt_edge_export.gguf.layout import fitted_imatrix, layout_of, tensor_shapes, tensors_of
from minigpt_edge_export.gguf.write import write_outline
from minigpt_edge_export.targets import QUANTIZATIONS, UNQUANTIZED
from minigpt_edge_export.weights import Weights, listed
from minigpt_edge_runtime.engines import llama_log
from minigpt_edge_runtime.engines.llama_vocabulary import load_library
from minigpt_edge_runtime.errors import EdgeError, UsageError
from minigpt_edge_runtime.files import need_space, replacing
from minigpt_edge_runtime.formats.gguf_header import TENSOR_TYPES, TensorInfo, read_header
from minigpt_edge_runtime.formats.gguf_names import BLOCK, EMBEDDING, HEAD

_DRY_LINE = re.compile(
    r"^\[ *\d+/ *\d+\] (\S+) +- \[.*?\], type = +(\w+), size =.*?(?:\((\w+)\))?$", re.MULTILINE
)


class TensorType(NamedTuple):
    """One of ggml's types: its number in files, weights in a block, bytes of a block."""

    number: int
    block: int
    size: int


TYPES = {name: TensorType(number, *sizes) for number, (name, *sizes) in TENSOR_TYPES.items()}


def quantize(
    source: Path,
    destination: Path,
    quantization: str,
    *,
    imatrix: Mapping[str, np.ndarray] | None = None,
    threads: int = 0,
    tensor_types: Mapping[str, str] | None = None,
) -> dict[str, dict[str, int]]:
    """Quantize an F32, F16 or BF16 GGUF file.

    Args:
        source: the unquantized file.
        destination: appears whole or not at all.
        quantization: a quantized type of `targets.QUANTIZATIONS`, such as "q4_k_m".
        imatrix: GGUF tensor name -> float32 [row length], mean squared input. All matrices of the blocks
            must be there; the head's entry, "output.weight" or "token_embd.weight", may be missing.
        threads: CPU threads, 0 for all. The bytes do not depend on it.
        tensor_types: regular expression on tensor names -> tensor type ("q6_K", …).

    Returns:
        What the file really holds: tensor type -> {"tensors", "parameters", "bytes"}.

    Raises:
        UsageError: unknown type, or a pattern that names no tensor.
        EdgeError: the source is damaged or already quantized, the imatrix does not fit it, the type needs an
            imatrix, a row does not divide by a demanded type's block, or no space is left.
    """
    header = read_header(source)
    foreign = sorted({tensor.type for tensor in header.tensors} - {"F32", "F16", "BF16"})
    if foreign:
        raise EdgeError(f"{source} is already quantized ({', '.join(foreign)})", "quantize the F16 file")
    if imatrix is None and _known(quantization).needs_imatrix:
        raise EdgeError(
            f"{quantization} needs an importance matrix", "calibrate first, or choose another type"
        )
    tensors = {tensor.name: tensor for tensor in header.tensors}
    request = _Request(quantization, threads)
    if imatrix is not None:
        request.set_imatrix(_checked_imatrix(imatrix, tensors))
    demanded = _demanded(tensors, tensor_types or {})  # the first pattern that matches decides
    request.set_types(demanded | _others(quantization, {n: info.shape[0] for n, info in tensors.items()}))
    need_space(destination.parent, source.stat().st_size, f"quantizing to {quantization}")
    with replacing(destination) as temporary:
        request.run(source, temporary)
        return read_header(temporary).types()


def imatrix_from_file(path: Path) -> dict[str, np.ndarray]:
    """An importance matrix (imatrix.safetensors): GGUF tensor name -> float32 [row length].

    Raises:
        EdgeError: the file is missing or damaged, or an entry is not a vector of numbers.
    """
    weights = Weights([path])
    wrong = sorted(n for n, shape in weights.shapes.items() if len(shape) != 1 or weights.types[n] != "F32")
    if wrong:
        raise EdgeError(
            f"{path} is not an importance matrix: {wrong[0]} is no float32 vector", "calibrate again"
        )
    return {name: weights.load(name) for name in weights.shapes}


def expected_types(decoder: Decoder, quantization: str, *, imatrix: bool = True) -> dict[str, str]:
    """The tensor types ("Q4_0", …) that a model's file would have, by GGUF name; nothing is quantized.

    Args:
        quantization: one of `targets.QUANTIZATIONS`; llama.cpp is asked about the quantized ones.
        imatrix: whether there will be an importance matrix (some recipes depend on it).
    """
    shapes = tensor_shapes(decoder)
    if quantization in UNQUANTIZED:
        return {name: quantization.upper() if len(shape) > 1 else "F32" for name, shape in shapes.items()}
    request = _Request(quantization, 1)
    request.parameters.dry_run = True
    request.set_types(_others(quantization, {name: shape[-1] for name, shape in shapes.items()}))
    if imatrix:
        request.set_imatrix({"none": np.ones(1, dtype=np.float32)})
    with tempfile.TemporaryDirectory() as folder:
        outline = Path(folder) / "outline.gguf"
        write_outline(decoder, outline)
        log = request.run(outline, Path(folder) / "unused.gguf")
    types = {name: (new or old).upper() for name, old, new in _DRY_LINE.findall(log)}
    missing = [name for name in shapes if name not in types]
    if missing:
        raise EdgeError(
            f"llama.cpp did not say which type {missing[0]} would get",
            "this llama-cpp-python is not supported yet",
        )
    return types


def matrices_in(decoder: Decoder, kind: str) -> list[str]:
    """The blocks' matrices that a file of a type holds in it: all but those whose rows do not divide.

    Args:
        kind: of `gguf.grids`, such as "IQ4_NL".

    Returns:
        canonical names, such as "blocks.3.up.weight".
    """
    types = expected_types(decoder, kind.lower())
    tensors = tensors_of(decoder, layout_of(decoder))
    held = [part for name, tensor in tensors.items() if types[name] == kind for part in tensor.parts]
    return [part for part in held if part.startswith("blocks.")]


def expected_sizes(decoder: Decoder, types: Mapping[str, str]) -> dict[str, int]:
    """Bytes of each of a model's tensors, by GGUF name, in the types that `expected_types` gave."""
    return {name: tensor_bytes(shape, types[name]) for name, shape in tensor_shapes(decoder).items()}


def expected_bytes(decoder: Decoder, types: Mapping[str, str]) -> int:
    """Bytes of a model's weights in the types that `expected_types` gave."""
    return sum(expected_sizes(decoder, types).values())


def tensor_bytes(shape: Sequence[int], kind: str) -> int:
    """Bytes of a tensor in a type such as "Q4_0"."""
    _, block, size = TYPES[kind.upper()]
    return math.prod(shape) // block * size


def padded(size: int) -> int:
    """Bytes that a tensor, or the header, takes in a file: a multiple of GGUF's default alignment."""
    return -(-size // 32) * 32


def _known(quantization: str) -> Any:
    if quantization not in QUANTIZATIONS or quantization in UNQUANTIZED:
        known = ", ".join(name for name in QUANTIZATIONS if name not in UNQUANTIZED)
        raise UsageError(f"unknown quantization type {quantization!r}", f"known: {known}")
    return QUANTIZATIONS[quantization]


class _Request:
    """llama.cpp's quantization parameters, with the C arrays they point to kept alive."""

    def __init__(self, quantization: str, threads: int) -> None:
        _known(quantization)
        self.library, self.quantization = load_library(), quantization
        self.parameters = self.library.llama_model_quantize_default_params()
        self.parameters.ftype = getattr(self.library, f"LLAMA_FTYPE_MOSTLY_{quantization.upper()}")
        self.parameters.nthread = threads
        self._alive: list[Any] = []

    def set_imatrix(self, imatrix: Mapping[str, np.ndarray]) -> None:
        """Give the importance matrix; the array ends with an entry without a name."""
        entries = (self.library.llama_model_imatrix_data * (len(imatrix) + 1))()
        for entry, (name, values) in zip(entries, imatrix.items(), strict=False):
            values = np.ascontiguousarray(values, dtype=np.float32)
            entry.name = name.encode()
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entry.size = len(values)
            self._alive.append(values)
        self.parameters.imatrix = entries
        self._alive.append(entries)

    def set_types(self, types: Mapping[str, int]) -> None:
        """Demand types, by number, for tensors whose names match a pattern."""
        overrides = (self.library.llama_model_tensor_override * (len(types) + 1))()
        for override, (pattern, number) in zip(overrides, types.items(), strict=False):
            override.pattern, override.type = pattern.encode(), number
        self.parameters.tt_overrides = overrides
        self._alive.append(overrides)

    def run(self, source: Path, destination: Path) -> str:
        """Quantize; returns llama.cpp's log."""
        with llama_log.capturing() as pieces:
            code = self.library.llama_model_quantize(
                str(source).encode(), str(destination).encode(), ctypes.byref(self.parameters)
            )
        log = "".join(pieces)
        if code:
            said = re.findall(r"failed to quantize: (.*)", log) or log.strip().splitlines()
            reason = said[-1].strip() if said else "no reason given"
            raise EdgeError(f"llama.cpp could not quantize to {self.quantization}: {reason}", None)
        return log


def _demanded(tensors: Mapping[str, TensorInfo], patterns: Mapping[str, str]) -> dict[str, int]:
    """The numbers of the types that a caller demands by pattern; errors as `quantize`."""
    found = {}
    for pattern, name in patterns.items():
        matches = [tensor for tensor in tensors.values() if re.search(pattern, tensor.name)]
        if not matches:
            raise UsageError(
                f"no tensor is called {pattern!r}", "patterns are regular expressions on GGUF names"
            )
        found[pattern] = _fitting(name, *matches)
    return found


def _others(quantization: str, rows: Mapping[str, int]) -> dict[str, int]:
    """The numbers of the types that `Quantization.others` wants, where they fit; `rows` has lengths."""
    found = {}
    for part, kind in _known(quantization).others.items():
        number, block, _ = TYPES[kind.upper()]
        for name, length in rows.items():
            if name.startswith(f"{BLOCK}.") and name.endswith(f".{part}.weight") and length % block == 0:
                found[f"^{re.escape(name)}$"] = number
    return found


def _fitting(name: str, *tensors: TensorInfo) -> int:
    """The number of a tensor type that fits the tensors' rows: llama.cpp aborts where it does not."""
    kind = TYPES.get(name.upper())
    if kind is None:
        raise UsageError(f"unknown tensor type {name!r}", "such as f16, q8_0, q6_K, iq4_nl")
    for tensor in tensors:
        if len(tensor.shape) > 1 and tensor.shape[0] % kind.block:
            raise EdgeError(
                f"{tensor.name} has rows of {tensor.shape[0]}, {name} needs a multiple of {kind.block}",
                "choose a type with smaller blocks, such as q8_0",
            )
    return kind.number


def _checked_imatrix(
    imatrix: Mapping[str, np.ndarray], tensors: Mapping[str, TensorInfo]
) -> dict[str, np.ndarray]:
    """The entries under the names llama.cpp looks for; it silently ignores those it does not know."""
    entries = fitted_imatrix(imatrix, {name: info.shape[::-1] for name, info in tensors.items()})
    head = entries.pop(HEAD, None)
    if HEAD in tensors:
        entries.pop(EMBEDDING, None)  # rows of an untied embedding are looked up: they have no input
        if head is not None:
            entries[HEAD] = head
    elif head is not None:
        entries.setdefault(EMBEDDING, head)
    problems = [
        f"{name} is missing"
        for name, info in tensors.items()
        if name.startswith(f"{BLOCK}.") and len(info.shape) > 1 and name not in entries
    ]
    for name, values in entries.items():
        if name not in tensors:
            problems.append(f"{name} is not in the model")
        elif np.shape(values) != tensors[name].shape[:1]:
            shape, length = list(np.shape(values)), tensors[name].shape[0]
            problems.append(f"{name} has shape {shape} but rows of {length}")
        elif not np.isfinite(values).all() or np.min(values) < 0:
            problems.append(f"{name} holds negative or infinite values")
    if problems:
        raise EdgeError(
            f"the importance matrix does not fit the model: {listed(problems, 5)}",
            "it must come from the calibration of this very model",
        )
    return entries
