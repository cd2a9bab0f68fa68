"""What `evaluate` found as a table: every figure with its interval and its n."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minigpt_edge.report_tables import MISSING, Table

_NOTE = (
    "Texts: bits per byte, ± twice the standard error over windows. Questions: right answers by summed "
    "log-likelihood, and per byte; chrF of 0 to 100; 95 % intervals in brackets."
)


def results_table(found: Mapping[str, Any]) -> Table:
    """A row per task; the base model's figures beside the model's where they were asked for."""
    base = found.get("base_model")
    rows = []
    for name, result in found["tasks"].items():
        other = base["tasks"][name] if base else None
        rows.append([name, *_cells(result, other, bool(base)), _count(result)])
        if written := result.get("translations"):
            theirs = other["translations"] if other else None
            shown = [_chrf(written), *([_chrf(theirs)] if theirs else [])]
            rows.append([f"chrF of {name}", *shown, f"{written['pairs']} translations"])
    columns = ("task", "model", *(["base model"] if base else []), "n")
    return Table("evaluate", "Results", columns, rows, _NOTE)


def _cells(result: Mapping[str, Any], other: Mapping[str, Any] | None, beside: bool) -> list[str]:
    show = _bits if "bits_per_byte" in result else _right
    return [show(result), *([show(other) if other else MISSING] if beside else [])]


def _bits(text: Mapping[str, Any]) -> str:
    return f"{text['bits_per_byte']:.3f} ± {2 * (text.get('stderr') or 0):.3f}"


def _right(result: Mapping[str, Any]) -> str:
    low, high = result["sum"]["interval"]
    return (
        f"{100 * result['sum']['accuracy']:.1f} % ({100 * low:.0f} to {100 * high:.0f}), "
        f"{100 * result['per_byte']['accuracy']:.1f} % per byte"
    )


def _chrf(written: Mapping[str, Any]) -> str:
    low, high = written["interval"]
    return f"{written['chrf']:.1f} ({low:.1f} to {high:.1f})"


def _count(result: Mapping[str, Any]) -> str:
    if "bits_per_byte" in result:
        return f"{result['windows']:,} windows"
    return f"{result['sum']['questions']:,}, guessing {result['sum']['chance']:.0%}"
