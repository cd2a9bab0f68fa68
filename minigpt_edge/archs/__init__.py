"""The architectures that are known, by `config.model_type`: one explicit map, one small file each.

An architecture's module says where the parts of a block are. It offers:
    build(config) -> model            an uninitialised model, blocks of equal size
    blocks(model) -> list             its transformer blocks
    embed(model, ids), head(model, hidden), positions(model, hidden)
    mix(block, hidden, positions)     the attention's mixed values, input of `attention_out(block)`
    neurons(block, hidden)            the FFN's activated neurons, input of `ffn_out(block)`
    attention_input, ffn_input        the normalised hidden states that enter each half
    cut(block, sizes, kv_groups, neurons)   slice the tensors to what is kept
"""

from __future__ import annotations

import importlib
from types import ModuleType

from minigpt_edge_runtime.errors import EdgeError

_MODULES = {"llama": "minigpt_edge.archs.llama"}
KNOWN = tuple(_MODULES)


def check_known(model_type: str) -> None:
    """Raise EdgeError with the list of known architectures unless `model_type` is one of them."""
    if model_type not in KNOWN:
        raise EdgeError(
            f"the architecture {model_type!r} is not known", f"known architectures: {', '.join(KNOWN)}"
        )


def load_arch(model_type: str) -> ModuleType:
    """The module of an architecture, imported on demand (it needs torch)."""
    check_known(model_type)
    return importlib.import_module(_MODULES[model_type])
