"""The pruning methods by name: every module of this folder that has a `METHOD`.

Listing them imports no torch: methods import it inside the functions that compute.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from minigpt_edge.prune import methods
from minigpt_edge.prune.context import PruneSettings
from minigpt_edge.prune.method import Method, Pruner
from minigpt_edge_runtime.errors import UsageError

DEFAULT_METHOD = "least_squares"


def _found() -> dict[str, Method]:
    """The methods of this folder by name, the default one first."""
    modules = [module.name for module in pkgutil.iter_modules(methods.__path__) if module.name != "registry"]
    found = [import_module(f"{methods.__name__}.{name}").METHOD for name in modules]
    return {method.name: method for method in sorted(found, key=lambda m: (m.name != DEFAULT_METHOD, m.name))}


METHODS = _found()


def get_method(name: str) -> Method:
    """The method of that name; UsageError listing the known ones."""
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}", f"known methods: {', '.join(METHODS)}")
    return METHODS[name]


def pruner_of(settings: PruneSettings) -> Pruner:
    """The pruner that the settings name; UsageError if the method has none for the pattern."""
    return get_method(settings.method).pruner(settings.pattern)
