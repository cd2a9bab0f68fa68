"""Where a build computes: the processor, or an accelerator that torch knows (CUDA, ROCm, Metal, XPU).

A stage computes inside `computing_on`, which makes the accelerator torch's default device: tensors that code
makes are made there. What comes from outside, from files and numpy, is moved by `here`. On the processor both
do nothing, so that its results stay what they are to the bit. The device that files run on is another matter:
`minigpt_edge_runtime.device`.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from minigpt_edge.stages import parallel
from minigpt_edge_runtime.errors import EdgeError, UsageError

if TYPE_CHECKING:
    import torch

CPU, AUTO = "cpu", "auto"
_FORM = re.compile(r"[a-z]+(:\d{1,3})?")
_KINDS = "auto, cpu, cuda, cuda:1, mps or xpu"
# Results that do not depend on the order in which threads add need cuBLAS to know its workspace (NVIDIA's
# documentation, "Results reproducibility"), before it starts.
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
# Operations that Metal lacks are computed on the processor; torch reads it when it is imported, and says so.
_FALLBACK = "PYTORCH_ENABLE_MPS_FALLBACK", "1"


def check_form(name: str) -> str:
    """The name of a device as it was given; UsageError for what can't be one."""
    if _FORM.fullmatch(name):
        return name
    raise UsageError(f"{name!r} is not a device", f"such as {_KINDS}")


def resolve(name: str) -> str:
    """The device of a name, as torch writes it: "cpu", "cuda:0", "mps:0".

    Args:
        name: "auto" is the accelerator with the most free memory, or the processor.

    Raises:
        UsageError: there is no such kind of device, or several processes share it.
        EdgeError: this machine, or this torch, does not have it.
    """
    if name == CPU:
        return CPU
    os.environ.setdefault(*_FALLBACK)
    import torch

    there = torch.accelerator.current_accelerator(check_available=True)
    wanted = there if name == AUTO else _parse(name)
    if wanted is None or wanted.type == CPU:
        return CPU
    if there is None or there.type != wanted.type:
        raise EdgeError(f"this machine has no device {name} that torch can use{_because()}", _remedy())
    if parallel.started() > 1:
        raise UsageError(
            "several processes compute on processors only so far",
            "start one process with --device, or leave --device out",
        )
    count = torch.accelerator.device_count()
    index = wanted.index
    if index is None:
        index = max(range(count), key=lambda one: (_free(torch.device(wanted.type, one)), -one))
    if index >= count:
        raise EdgeError(f"there is no {name}: torch counts {count} {wanted.type}", f"give {wanted.type}:0")
    return f"{wanted.type}:{index}"


def describe(device: str, asked: str) -> str:
    """A resolved device in words, with its name and free memory; why it is no accelerator, if "auto" was
    asked for."""
    if device == CPU:
        return f"cpu{_because() or ': torch finds no accelerator'}" if asked == AUTO else CPU
    import torch

    kind = torch.device(device)
    module: Any = torch.get_device_module(kind)
    title = module.get_device_name(kind) if hasattr(module, "get_device_name") else kind.type
    free = f", {_free(kind) / 2**30:.1f} GiB free" if _free(kind) else ""
    return f"{device}, {title}{free}; not verified on such a device yet: see docs/devices.md"


@contextmanager
def computing_on(device: str) -> Iterator[None]:
    """Compute on a device that `resolve` gave: torch's default device inside the context.

    Raises:
        EdgeError: the device's memory is full.
    """
    if device == CPU:
        yield
        return
    os.environ.setdefault(*_WORKSPACE)
    import torch

    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.device(device):
            yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; Metal's is no more than that
        first = str(error).partition("\n")[0]
        if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in first:
            raise
        raise EdgeError(
            f"the memory of {device} is full ({first})",
            "close what else uses it, give fewer --calibration-tokens, --max-memory or --device cpu",
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.accelerator.empty_cache()


def here(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor on the device that is computed on."""
    import torch

    return tensor.to(torch.get_default_device())


def device_setting(device: str) -> dict[str, str]:
    """The kind of device as a setting of a stage, since each rounds sums otherwise; nothing for the
    processor."""
    return {} if device == CPU else {"device": device.partition(":")[0]}


def free_memory() -> int | None:
    """Bytes that are free on the accelerator that is computed on; None on the processor, or where it is not
    known."""
    torch: Any = sys.modules.get("torch")
    if torch is None or torch.get_default_device().type == CPU:
        return None
    return _free(torch.get_default_device()) or None


def wait() -> None:
    """Until the accelerator that is computed on has done what it was asked, for clocks."""
    import torch

    if torch.get_default_device().type != CPU:
        torch.accelerator.synchronize()


def _parse(name: str) -> torch.device:
    import torch

    try:
        return torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"torch knows no device {name!r}", f"such as {_KINDS}") from error


def _free(device: torch.device) -> int:
    """Free bytes; 0 where torch can't tell."""
    import torch

    try:
        return int(torch.accelerator.get_memory_info(device)[0])
    except (RuntimeError, NotImplementedError, AttributeError):
        return 0


def _because() -> str:
    """Why an accelerator that is there can't be used, where that is known."""
    if _nvidia_without_cuda():
        import torch

        return f": there is an NVIDIA driver, but torch {torch.__version__} was built without CUDA"
    return ""


def _remedy() -> str:
    if _nvidia_without_cuda():
        return "install torch with CUDA: rm -r .venv, then make setup TORCH=cuda"
    return "give --device auto, which takes what is there, or --device cpu"


def _nvidia_without_cuda() -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and torch.version.cuda is None and shutil.which("nvidia-smi") is not None
