"""A second kind of device for machines that have none: tensors claim to be on it, and the CPU computes.

An operation on tensors of both kinds raises, as it would on a GPU. So a tensor that is made in the wrong
place is found, and results have to be those of the CPU. torch registers backends written in Python for a
whole process (torch/utils/backend_registration.py): `pretended.py` is the program that does.
"""

from __future__ import annotations

from typing import Any

import torch  # noqa: TID253
from torch.overrides import TorchFunctionMode  # noqa: TID253
from torch.utils import _pytree as tree  # noqa: TID253
from torch.utils import backend_registration  # noqa: TID253

NAME = "pretend"
FREE = 8 * 2**30  # bytes of its memory
MOVES = ("copy_", "_to_copy")  # operations that take tensors of both kinds


class Held(torch.Tensor):
    """A tensor on the device; `content` has its numbers, on the CPU."""

    content: torch.Tensor

    @staticmethod
    def __new__(cls, content: torch.Tensor) -> Held:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            content.shape,
            strides=content.stride(),
            storage_offset=content.storage_offset(),
            dtype=content.dtype,
            device=f"{NAME}:0",
        )
        made.content = content
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(operation, *args, **(kwargs or {}))

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        return Held(self.content.detach())

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.content = value.content  # type: ignore[attr-defined]

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        made = Held(self.content.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, self.requires_grad)
        memo[id(self)] = made
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.content.__reduce_ex__(protocol)  # as a checkpoint is read again: onto the CPU

    def tolist(self) -> Any:
        return self.content.tolist()


def compute(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """What an operation gives, computed on the CPU; RuntimeError where it takes tensors of both kinds."""
    own: dict[int, torch.Tensor] = {}  # an operation in place gives back what it was given

    def plain(value: Any) -> Any:
        if isinstance(value, Held):
            own[id(value.content)] = value
            return value.content
        if isinstance(value, torch.Tensor):
            if value.dim() and operation.overloadpacket.__name__ not in MOVES:
                raise RuntimeError(f"{operation} of tensors on {NAME} and on {value.device}")
            own[id(value)] = value
        return torch.device("cpu") if isinstance(value, torch.device) else value

    given, named = tree.tree_map(plain, (args, kwargs))
    found = operation(*given, **named)
    for one in own.values():
        if isinstance(one, Held) and one.shape != one.content.shape:  # the operation has resized it
            torch.Tensor.data.__set__(one, Held(one.content))  # type: ignore[attr-defined]
    if (target := kwargs.get("device")) is not None and torch.device(target).type == "cpu":
        return found
    # A view of a tensor is one for inference only if that is, whatever the mode it is made in.
    inference = torch.is_inference_mode_enabled() and all(one.is_inference() for one in own.values())
    with torch.inference_mode(inference):
        return tree.tree_map_only(
            torch.Tensor, lambda one: own[id(one)] if id(one) in own else Held(one), found
        )


class Made(TorchFunctionMode):
    """`torch.tensor` on the device, which torch can't do for backends written in Python."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        wanted = torch.device(kwargs.get("device") or "cpu")
        if function in (torch.tensor, torch.as_tensor, torch.asarray) and wanted.type == NAME:
            return function(*args, **{**kwargs, "device": "cpu"}).to(NAME)
        return function(*args, **kwargs)


class Module(backend_registration._DummyBackendModule):  # type: ignore[misc]
    """What torch asks of a backend."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def is_bf16_supported(self) -> bool:
        return False

    def get_device_name(self, device: Any = None) -> str:
        return "a pretended accelerator"


def register() -> None:
    """Make the device known to this process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(compute, "PrivateUse1")  # type: ignore[no-untyped-call]
    globals()["_library"] = library  # what it registers goes with it
    torch.accelerator.get_memory_info = lambda device=None: (FREE, FREE)
    torch.accelerator.empty_cache = lambda: None
    torch.accelerator.synchronize = lambda device=None: None
    torch.accelerator.device_count = lambda: 1
