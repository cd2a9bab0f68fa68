"""Latency reports on disk: their form, and reading one with everything checked that this package uses.

The form is the JSON Schema in latency-report-1.json. Where the package `jsonschema` is installed (the extra
`schema`), reports are checked against all of it; elsewhere against the parts that no reader can do without.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json, understanding

SCHEMA = "minigpt-edge/latency-report"
VERSION = 1
_LARGEST = 1e18  # bytes, nanoseconds or anything per second
AGAIN = "measure again with: bench BUNDLE -o report.json"
_RECORDS = ("artefact", "device", "runtime", "settings", "load", "memory", "roofline", "summary")


def load_schema() -> dict[str, Any]:
    """The JSON Schema of a latency report (draft 2020-12)."""
    return json.loads(Path(__file__).with_name("latency-report-1.json").read_text(encoding="utf-8"))


def read_report(path: Path) -> dict[str, Any]:
    """Read a latency report.

    Raises:
        EdgeError: it is missing, damaged, something else, or of a schema version that is not known.
    """
    report = read_json(path)
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise EdgeError(f"{path} is not a latency report", AGAIN)
    if report.get("schema_version") != VERSION:
        raise EdgeError(
            f"{path} has schema version {report.get('schema_version')}, known is {VERSION}",
            "measure again, or use the version of minigpt-edge that wrote it",
        )
    check(report, str(path), AGAIN)
    return report


def check(report: Mapping[str, Any], what: str, hint: str) -> None:
    """EdgeError with the JSON path of the worst place where `report` is not a whole latency report."""
    with understanding(what, hint):
        problem = _number(report) or _problem(report)
    if problem:
        raise EdgeError(f"{what} is damaged: {problem}", hint)


def _problem(report: Mapping[str, Any]) -> str | None:
    try:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import best_match
    except ImportError:
        return _missing_part(report)
    error = best_match(Draft202012Validator(load_schema()).iter_errors(report))
    return None if error is None else f"{error.json_path}: {_short(error.message)}"


def _missing_part(report: Mapping[str, Any]) -> str | None:
    """The first part that has not the kind every reader relies on."""
    for name in _RECORDS:
        if not isinstance(report.get(name), dict):
            return f"$.{name} is {_short(repr(report.get(name)))}, not an object"
    for name in ("energy", "quality"):
        if not isinstance(report.get(name, ""), dict | None):
            return f"$.{name} is neither an object nor null"
    for name in ("prefill", "decode"):
        entries = report.get(name)
        if not (isinstance(entries, list) and entries and all(isinstance(entry, dict) for entry in entries)):
            return f"$.{name} is not a list of one object or more"
    return None


def _number(value: Any, at: str = "$") -> str | None:
    """The first number that is infinite, no number, or beyond what a measurement can give."""
    if isinstance(value, int | float) and not abs(value) < _LARGEST:
        shown = f"{value:.3g}" if isinstance(value, float) else "a giant number"
        return f"{at} is {shown}, which nothing here can measure"
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        if problem := _number(one, f"{at}[{key}]" if isinstance(key, int) else f"{at}.{key}"):
            return problem
    return None


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:60]} … {text[-50:]}"
