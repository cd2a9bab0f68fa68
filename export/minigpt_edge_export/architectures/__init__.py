"""The architectures that are known: one file each, called after the `model_type` of their config.json.

To add one (phi3, gemma, mamba, …), write NAME.py here with an `ARCHITECTURE`: names, style and GGUF layout as
data, see `base`. The file is its own registration, imported when a model asks for it. It can say what blocks
of norms, attention and an MLP may do; docs/add-an-architecture.md has the steps, and where to begin if blocks
compute something else (Mamba's state space).
"""

from __future__ import annotations

import importlib
import pkgutil

from minigpt_edge_export.architectures.base import Architecture
from minigpt_edge_runtime.errors import EdgeError

KNOWN = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base"))


def architecture_of(model_type: object, where: object = "") -> Architecture:
    """The architecture called `model_type`.

    Raises:
        EdgeError: it is not known; the message says that it was found in `where`.
    """
    if model_type not in KNOWN:
        place = f" in {where}" if where else ""
        raise EdgeError(
            f"the architecture {model_type!r}{place} is not known",
            f"known architectures: {', '.join(KNOWN)}",
        )
    found: Architecture = importlib.import_module(f"{__name__}.{model_type}").ARCHITECTURE
    return found
