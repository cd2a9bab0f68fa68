"""The architectures that are known, by `config.model_type`: one explicit map, one small file each.

What a module's `Arch` offers is in `base`; what its checkpoints call the parts of a block, and what can be
exported, is in `minigpt_edge_export.families`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from minigpt_edge_runtime.errors import EdgeError

if TYPE_CHECKING:
    from minigpt_edge.models.archs.base import Arch

_ARCHS = {
    "llama": "llama.ARCH",
    "qwen2": "qwen.QWEN2",
    "qwen3": "qwen.QWEN3",
    "phi": "phi.ARCH",
    "gpt_neox": "gpt_neox.ARCH",
    "gpt2": "gpt2.ARCH",
    "opt": "opt.ARCH",
    "stablelm": "stablelm.ARCH",
}
KNOWN = tuple(_ARCHS)


def check_known(model_type: str) -> None:
    """Raise EdgeError with the list of known architectures unless `model_type` is one of them."""
    if model_type not in KNOWN:
        raise EdgeError(
            f"the architecture {model_type!r} is not known", f"known architectures: {', '.join(KNOWN)}"
        )


def load_arch(model_type: str) -> Arch:
    """An architecture, imported on demand (it needs torch)."""
    check_known(model_type)
    module, _, name = _ARCHS[model_type].partition(".")
    found: Arch = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return found
