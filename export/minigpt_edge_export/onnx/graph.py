"""An ONNX graph that is written node by node; its weights go to a data file as they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from onnx import TensorProto, helper

OPSET, IR_VERSION = 23, 10  # the first with RMSNormalization; onnxruntime 1.23 reads it
_PAGE, _LINE = 4096, 64  # large weights begin on a page, so that they can be mapped
_INLINE = 1024  # bytes up to which a weight stays in the graph


class Graph:
    """Collects nodes and weights; `save` writes the model file. Use it as a context manager.

    Args:
        path: model.onnx to be; weights go to `path` + ".data" at once.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._data = open(path.with_name(path.name + ".data"), "wb")  # noqa: SIM115 (closed on exit)
        self._nodes: list[Any] = []
        self._weights: dict[str, Any] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._data.close()

    def input(self, name: str, kind: str, shape: Sequence[int | str]) -> str:
        """Declare an input of a numpy type, with numbers or names as dimensions."""
        self._inputs.append(_value(name, kind, shape))
        return name

    def optional_input(self, name: str, default: int) -> str:
        """Declare an input int64 [1] that may be left out."""
        self.input(name, "int64", [1])
        return self.weight(name, np.array([default], dtype=np.int64))

    def output(self, name: str, kind: str, shape: Sequence[int | str]) -> None:
        """Declare an output."""
        self._outputs.append(_value(name, kind, shape))

    def node(self, operator: str, inputs: Sequence[str], *outputs: str, **attributes: Any) -> str:
        """Add a node, "Op" or "domain.Op", with one or more outputs; the first one's name."""
        return self.nodes(operator, inputs, outputs, **attributes)[0]

    def nodes(
        self, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> Sequence[str]:
        """Add a node; the names of its outputs, "" for one that is not wanted."""
        domain, _, kind = operator.rpartition(".")
        self._nodes.append(
            helper.make_node(kind, list(inputs), list(outputs), name=outputs[0], domain=domain, **attributes)
        )
        return outputs

    def integers(self, value: int | list[int]) -> str:
        """A constant int64 scalar or vector."""
        name = f"int64.{value}".replace(" ", "")
        return name if name in self._weights else self.weight(name, np.array(value, dtype=np.int64))

    def weight(self, name: str, array: np.ndarray) -> str:
        """Store an array under a name."""
        array = np.asarray(array, order="C")
        tensor = TensorProto(
            name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype)
        )
        if array.nbytes <= _INLINE:
            tensor.raw_data = array.tobytes()
        else:
            at = self._data.tell()
            self._data.write(b"\0" * (-at % (_PAGE if array.nbytes >= _PAGE else _LINE)))
            offset = self._data.tell()
            self._data.write(array.data.cast("B"))
            tensor.data_location = TensorProto.EXTERNAL
            where = {"location": f"{self._path.name}.data", "offset": offset, "length": array.nbytes}
            for key, value in where.items():
                tensor.external_data.add(key=key, value=str(value))
        self._weights[name] = tensor
        return name

    def alias(self, name: str, of: str, shape: Sequence[int]) -> str:
        """The same bytes under another name and shape: two operators want them in different ones."""
        tensor = TensorProto()
        tensor.CopyFrom(self._weights[of])
        tensor.name = name
        tensor.dims[:] = shape
        self._weights[name] = tensor
        return name

    def save(self, metadata: Mapping[str, str]) -> None:
        """Write the model file."""
        graph = helper.make_graph(
            self._nodes, "decoder", self._inputs, self._outputs, list(self._weights.values())
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="minigpt-edge"
        )
        helper.set_model_props(model, dict(metadata))
        self._data.flush()
        self._path.write_bytes(model.SerializeToString(deterministic=True))


def _value(name: str, kind: str, shape: Sequence[int | str]) -> Any:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), shape)
