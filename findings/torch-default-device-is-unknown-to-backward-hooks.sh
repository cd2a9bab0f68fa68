#!/usr/bin/env bash
# Expected: inside `with torch.device("cuda"):` tensors are made on that device unless another is named ("with torch.device(device)" changes the default
#   device, documentation of torch.set_default_device), and a hook that Tensor.register_hook leaves is run by backward() inside that block. So
#   torch.zeros(3) in the hook is beside the gradient. autograd hands a thread's state on to the threads that it starts (grad mode, dispatch keys).
# What happens: the default device is not handed on. On a CPU the hook runs in the caller's thread and all is well; for any other device backward runs in a
#   thread of the device's own, where torch.get_default_device() is the CPU. The hook's new tensor then does not meet the gradient, or, worse, code
#   that asks for the default device to choose a dtype chooses the CPU's, without a word. Code that was tried on a CPU alone never shows it.
#   (torch 2.13.0, Linux x86-64. No GPU is needed to see it: torch lets a backend be written in Python. Source: torch/utils/_device.py, DeviceContext,
#   which is a TorchFunctionMode, and torch/utils/backend_registration.py)
set -euo pipefail
place=$(mktemp -d) && trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet 'torch==2.13.0+cpu' 2>/dev/null ||
    "$place/venv/bin/pip" install --quiet --extra-index-url https://download.pytorch.org/whl/cpu 'torch==2.13.0+cpu'
cd "$place"
venv/bin/python - 2>/dev/null <<'PYTHON'
import threading

import torch
from torch.utils import _pytree as tree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend


class Elsewhere(torch.Tensor):
    """A tensor on the device "elsewhere", whose numbers a CPU tensor holds."""

    @staticmethod
    def __new__(cls, numbers):
        made = torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=numbers.dtype, device="elsewhere:0")
        made.numbers = numbers
        return made

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return compute(operation, *args, **(kwargs or {}))


def compute(operation, *args, **kwargs):
    args, kwargs = tree.tree_map_only(Elsewhere, lambda one: one.numbers, (args, kwargs))
    kwargs = tree.tree_map_only(torch.device, lambda _: torch.device("cpu"), kwargs)
    return tree.tree_map_only(torch.Tensor, Elsewhere, operation(*args, **kwargs))


_setup_privateuseone_for_python_backend("elsewhere")
library = torch.library.Library("_", "IMPL")
library.fallback(compute, "PrivateUse1")


def seen(device):
    """Thread and default device in a hook, and where a tensor is made that names none."""
    found = {}

    def hook(gradient):
        found["caller's thread"] = threading.current_thread() is threading.main_thread()
        found["default device"] = str(torch.get_default_device())
        found["new tensor"] = str(torch.zeros(3).device)
        found["gradient"] = str(gradient.device)

    with torch.device(device):
        outside = str(torch.zeros(3).device)
        leaf = torch.ones(3, requires_grad=True)
        product = leaf * 2
        product.register_hook(hook)
        product.sum().backward()
    print(f"with torch.device({device!r}): a new tensor is on {outside}; in the hook:", found)
    return found


print("torch", torch.__version__)
cpu, other = seen("cpu"), seen("elsewhere:0")
surprise = cpu["caller's thread"] and not other["caller's thread"]
surprise = surprise and other["new tensor"] == other["default device"] == "cpu" and other["gradient"] == "elsewhere:0"
raise SystemExit(0 if surprise else "backward hands the default device on now: remove this finding")
PYTHON
