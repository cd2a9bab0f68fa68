"""What an ONNX model directory says about itself, read with the standard library and checked.

onnxruntime finds a short data file only when it reads past its end, so the directory is checked before.
"""

from __future__ import annotations

import json
import math
import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import os_error, read_json
from minigpt_edge_runtime.formats.tokenizer_files import TOKENIZER_FILES
from minigpt_edge_runtime.formats.types import by_type

CONFIG = "genai_config.json"  # onnxruntime-genai's name
_AGAIN = "copy or build the bundle again"
# The name and the bits of an element of each onnx.TensorProto.DataType.
_TYPES: dict[int, tuple[str, int]] = {
    1: ("F32", 32), 2: ("U8", 8), 3: ("I8", 8), 4: ("U16", 16), 5: ("I16", 16), 6: ("I32", 32),
    7: ("I64", 64), 9: ("BOOL", 8), 10: ("F16", 16), 11: ("F64", 64), 12: ("U32", 32), 13: ("U64", 64),
    16: ("BF16", 16), 21: ("U4", 4), 22: ("I4", 4),
}  # fmt: skip


@dataclass(frozen=True)
class OnnxTensor:
    """One stored weight. `place` is (file, offset) where its bytes lie outside the graph, else None."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    place: tuple[str, int] | None


@dataclass(frozen=True)
class OnnxHeader:
    """The graph without its weights' values, and onnxruntime-genai's settings beside it.

    `facts` are what our exporter wrote about the model; none in a foreign file.
    """

    path: Path
    operators: Counter[str]
    opsets: dict[str, int]
    tensors: list[OnnxTensor]
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    facts: dict[str, Any]
    config: dict[str, Any]

    @property
    def files(self) -> list[Path]:
        """Every file that running the model needs, the graph first."""
        folder = self.path.parent
        data = sorted({tensor.place[0] for tensor in self.tensors if tensor.place})
        names = [*data, *(name for name in (CONFIG, *TOKENIZER_FILES) if (folder / name).is_file())]
        return [self.path, *(folder / name for name in names)]

    @property
    def file_bytes(self) -> int:
        """Bytes of `files` together."""
        return sum(path.stat().st_size for path in self.files)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights; those that two names share count once."""
        return self.bytes_of("")

    def bytes_of(self, prefix: str) -> int:
        """Bytes of the weights whose names begin so; those that two names share count once."""
        stored = {t.place or (t.name, 0): t.nbytes for t in self.tensors if t.name.startswith(prefix)}
        return sum(stored.values())

    @property
    def context_length(self) -> int:
        """Tokens the model was made for, 2,048 if it does not say."""
        return int(self.config.get("model", {}).get("context_length", 2048))

    @property
    def end_ids(self) -> list[int]:
        """Token ids that end a generation."""
        ends = self.config.get("model", {}).get("eos_token_id", [])
        return [int(value) for value in (ends if isinstance(ends, list) else [ends])]

    @property
    def shares_cache(self) -> bool:
        """Whether past and present may be one buffer."""
        return bool(self.config.get("search", {}).get("past_present_share_buffer"))

    def fact(self, name: str) -> Any:
        """What our exporter wrote about the model under a name; None in a foreign file."""
        return self.facts.get(name)

    def types(self) -> dict[str, dict[str, int]]:
        """Stored type -> tensors, parameters (stored elements) and bytes; shared bytes count once."""
        stored = {t.place or (t.name, 0): t for t in self.tensors}.values()
        return by_type((tensor.type, math.prod(tensor.shape), tensor.nbytes) for tensor in stored)


def read_onnx(path: Path) -> OnnxHeader:
    """Read a model.onnx and check that its data files hold what it refers to.

    Raises:
        EdgeError: a file is missing, truncated or no ONNX model, or data lies outside the directory.
    """
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header = _header(path, _fields(memoryview(data)))
    except OSError as error:
        raise os_error(error, path) from error
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, TypeError, BufferError) as error:
        raise EdgeError(f"{path} is not a whole ONNX model ({error})", _AGAIN) from error
    _check_data(header)
    return header


def _header(path: Path, model: dict[int, list[Any]]) -> OnnxHeader:
    if 7 not in model or 8 not in model:
        raise ValueError("it has no graph")
    graph = _fields(model[7][0])
    operators: Counter[str] = Counter()
    for node in graph.get(1, []):
        fields = _fields(node)
        domain = _text(fields, 7)
        operators[(f"{domain}." if domain not in ("", "ai.onnx") else "") + _text(fields, 4)] += 1
    written = {name.partition(".")[::2]: value for name, value in _pairs(model.get(14, [])).items()}
    return OnnxHeader(
        path,
        operators,
        {_text(f, 1): int(f.get(2, [0])[0]) for f in map(_fields, model[8])},
        [_tensor(_fields(value)) for value in graph.get(5, [])],
        {_text(f, 1): _shape(f) for f in map(_fields, graph.get(11, []))},
        {_text(f, 1): _shape(f) for f in map(_fields, graph.get(12, []))},
        {name: json.loads(value) for (owner, name), value in written.items() if owner == "minigpt_edge"},
        _config(path.parent / CONFIG),
    )


def _config(path: Path) -> dict[str, Any]:
    """onnxruntime-genai's settings, {} without the file; EdgeError if they are not what it writes."""
    config = read_json(path) if path.is_file() else {}
    try:
        model, search = (dict(config.get(name, {})) for name in ("model", "search"))
        ends = model.get("eos_token_id", [])
        numbers = [model.get("context_length", 1), *(ends if isinstance(ends, list) else [ends])]
        if not all(isinstance(number, int) for number in numbers) or numbers[0] < 1:
            raise ValueError("a number is none")
    except (AttributeError, TypeError, ValueError) as error:
        raise EdgeError(f"{path} is damaged ({error})", _AGAIN) from error
    return {**config, "model": model, "search": search}


def _check_data(header: OnnxHeader) -> None:
    sizes: dict[str, int] = {}
    for tensor in header.tensors:
        if tensor.place is None:
            continue
        name, offset = tensor.place
        if Path(name).name != name:
            raise EdgeError(f"{header.path} keeps weights outside its directory, in {name!r}", _AGAIN)
        path = header.path.parent / name
        if name not in sizes:
            if not path.is_file():
                raise EdgeError(f"{path}, which holds the weights of {header.path.name}, is missing", _AGAIN)
            sizes[name] = path.stat().st_size
        if offset + tensor.nbytes > sizes[name]:
            raise EdgeError(
                f"{path} is truncated: it has {sizes[name]:,} bytes, {tensor.name} ends at "
                f"{offset + tensor.nbytes:,}",
                _AGAIN,
            )


def _tensor(fields: dict[int, list[Any]]) -> OnnxTensor:
    shape: list[int] = []
    for value in fields.get(1, []):
        shape += [value] if isinstance(value, int) else list(_varints(value))
    kind, bits = _TYPES.get(fields.get(2, [0])[0], ("other", 8))
    nbytes, place = math.prod(shape) * bits // 8, None
    if fields.get(14, [0])[0] == 1:
        where = _pairs(fields.get(13, []))
        place = (where["location"], int(where.get("offset", 0)))
        if int(where.get("length", nbytes)) != nbytes:
            raise ValueError(f"the length of {_text(fields, 8)} does not fit its shape")
    return OnnxTensor(_text(fields, 8), kind, tuple(shape), nbytes, place)


def _shape(value_info: dict[int, list[Any]]) -> list[int | str]:
    """The dimensions of a graph's input or output, numbers or names; none if it does not say."""
    tensor = _fields(_fields(value_info[2][0])[1][0])
    dimensions = [_fields(value) for value in _fields(tensor[2][0]).get(1, [])] if 2 in tensor else []
    return [fields[1][0] if 1 in fields else _text(fields, 2) for fields in dimensions]


def _pairs(entries: list[Any]) -> dict[str, str]:
    return {_text(fields, 1): _text(fields, 2) for fields in map(_fields, entries)}


def _text(fields: dict[int, list[Any]], number: int) -> str:
    return str(fields[number][-1], "utf-8") if number in fields else ""


def _fields(data: memoryview) -> dict[int, list[Any]]:
    """The fields of a protobuf message: number -> values, integers or bytes."""
    found: dict[int, list[Any]] = {}
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        value: Any
        if kind == 0:
            value, at = _varint(data, at)
        elif kind in (1, 2, 5):
            length, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            if at + length > len(data):
                raise ValueError("it is truncated")
            value, at = data[at : at + length], at + length
        else:
            raise ValueError("it is no protobuf message")
        found.setdefault(number, []).append(value)
    return found


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return (value if value < 1 << 63 else value - (1 << 64)), at
        if shift > 63:
            raise ValueError("it is no protobuf message")


def _varints(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value
