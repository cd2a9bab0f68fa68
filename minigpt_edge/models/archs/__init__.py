"""Models in torch, by the file of their architecture in `minigpt_edge_export.architectures`.

`base` computes what that file says; `joined` also splits the one matrix of query, key and value that some
checkpoints have. An architecture of which transformers' code wants something else has a file here, called
after its `model_type`, with a class `Arch` that derives from one of the two.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minigpt_edge_export.architectures import architecture_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from minigpt_edge.models.archs.base import Arch


def load_arch(config: Mapping[str, Any] | PreTrainedConfig) -> Arch:
    """The architecture of a model by its config, imported on demand (it needs torch).

    Raises:
        EdgeError: it is not known, or the config asks for something that can't be computed.
    """
    settings = config if isinstance(config, Mapping) else config.to_dict()
    name = str(settings.get("model_type"))
    joined = architecture_of(name).joined
    if importlib.util.find_spec(f"{__name__}.{name}") is None:
        name = "joined" if joined else "base"
    found: Arch = importlib.import_module(f"{__name__}.{name}").Arch(settings)
    return found
