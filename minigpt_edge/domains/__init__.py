"""Domains: one TOML file each, naming where the domain's text comes from and under which licence."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

from minigpt_edge.corpus import FileSource, HubSource, PackageSource, Source
from minigpt_edge_runtime.errors import UsageError

_KINDS: dict[str, type[Source]] = {"package": PackageSource, "hub": HubSource, "files": FileSource}


@dataclass(frozen=True)
class Domain:
    """A domain and its sources.

    Attributes:
        default: the source that is used where none is chosen.
        questions: names of question sets about it, see `tasks`.
    """

    name: str
    title: str
    default: str
    sources: dict[str, Source]
    questions: tuple[str, ...] = ()

    def source(self, name: str | None = None) -> Source:
        """The source of that name, or the default one; UsageError if there is none such."""
        chosen = name or self.default
        if chosen not in self.sources:
            raise UsageError(
                f"domain {self.name} has no source {chosen!r}", f"sources: {', '.join(self.sources)}"
            )
        return self.sources[chosen]


def list_domains() -> list[str]:
    """The names of the known domains, sorted."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load_domain(name: str) -> Domain:
    """A domain by name; UsageError that lists the known ones if there is none such."""
    known = list_domains()
    if name not in known:
        raise UsageError(
            f"there is no domain {name!r}", f"known domains: {', '.join(known)}; or give --corpus"
        )
    data = tomllib.loads(resources.files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8"))
    sources = {key: _source(dict(entry)) for key, entry in data["sources"].items()}
    return Domain(name, data["title"], data["default"], sources, tuple(data.get("questions", ())))


def _source(entry: dict[str, Any]) -> Source:
    return _KINDS[entry.pop("kind")](**entry)
