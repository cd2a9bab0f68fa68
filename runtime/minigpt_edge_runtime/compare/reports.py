"""The reports of a comparison: read, cleaned of control characters, and named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from minigpt_edge_runtime.formats.latency_report import read_report

_LONGEST = 24
Data = dict[str, Any]  # a latency report


@dataclass(frozen=True)
class Report:
    """A latency report with its name in the comparison."""

    label: str
    path: str
    data: Data

    @property
    def model(self) -> str:
        """The model and its quantization, in a few words."""
        artefact = self.data["artefact"]
        return " · ".join(filter(None, (artefact["name"] or artefact["file"], artefact["quantization"])))

    @property
    def setup(self) -> str:
        """The engine, profile and threads, in a few words."""
        threads = self.data["settings"]["n_threads"]
        plural = "" if threads == 1 else "s"
        return f"{self.data['runtime']['name']} · {self.data['profile']}, {threads} thread{plural}"


def at(place: str) -> Callable[[Data], Any]:
    """Reads what is at "part.name" of a report; None where the part is null."""
    part, _, name = place.partition(".")
    return lambda report: None if report[part] is None else report[part][name] if name else report[part]


def read_reports(paths: Sequence[Path]) -> list[Report]:
    """Read and name the reports.

    Raises:
        EdgeError: a file is missing, is no report, is damaged, or is one of another schema version.
    """
    return [
        Report(label, _clean(str(path)), _clean(read_report(path)))
        for label, path in zip(labels(paths), paths, strict=True)
    ]


def labels(paths: Sequence[Path]) -> list[str]:
    """A short, different name for each path: the file's name, with folders where those tell them apart."""
    resolved = [
        path.resolve().with_suffix("") if path.suffix == ".json" else path.resolve() for path in paths
    ]
    names = []
    for path in resolved:
        rivals = {other for other in resolved if other.name == path.name}
        depth = 1
        while len({other.parts[-depth:] for other in rivals}) < len(rivals):
            depth += 1
        names.append(_short(_clean("/".join(path.parts[-depth:]))))
    different: list[str] = []
    for name in names:
        numbered = (f"{name} ({number})" for number in count(2))
        different.append(name if name not in different else next(n for n in numbered if n not in different))
    return different


def _short(name: str) -> str:
    """At most 24 characters: the middle is left out, since names differ at either end."""
    if len(name) <= _LONGEST:
        return name
    half = (_LONGEST - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def _clean(value: Any) -> Any:
    """The value with every character that could steer a terminal or turn a line round replaced."""
    if isinstance(value, str):
        return "".join(character if character.isprintable() else "�" for character in value)
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    return value
