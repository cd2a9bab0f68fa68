"""What `evaluate` found as a table: every figure with its interval and its n."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minigpt_edge.report.tables import Table

_NOTE = (
    "Texts: bits per byte, ± twice the standard error over windows. Questions: right answers by summed "
    "log-likelihood, and by that per byte. chrF is of 0 to 100. In brackets 95 % intervals."
)


def results_table(found: Mapping[str, Any]) -> Table:
    """A row per task and way of scoring it; the base model's figures beside the model's where asked for."""
    base = found.get("base_model")
    rows = []
    for name, result in found["tasks"].items():
        both = [result, *([base["tasks"][name]] if base else [])]
        if "bits_per_byte" in result:
            rows.append([name, *map(_bits, both), f"{result['windows']:,} windows"])
            continue
        asked = f"{result['sum']['questions']:,}, chance {result['sum']['chance']:.0%}"
        rows.append([name, *(_right(one["sum"]) for one in both), asked])
        rows.append(["  per byte", *(_right(one["per_byte"]) for one in both), ""])
        if "paper" in result:
            rows.append(["  as Mini-GPTs", *(_right(one["paper"]) for one in both), ""])
        if written := result.get("translations"):
            rows.append(
                ["  chrF", *(_chrf(one["translations"]) for one in both), f"{written['pairs']} written"]
            )
    columns = ("task", "model", *(["base model"] if base else []), "n")
    return Table("evaluate", "Results", columns, rows, _NOTE)


def _bits(text: Mapping[str, Any]) -> str:
    return f"{text['bits_per_byte']:.3f} ± {2 * (text.get('stderr') or 0):.3f}"


def _right(scored: Mapping[str, Any]) -> str:
    low, high = scored["interval"]
    return f"{100 * scored['accuracy']:.1f} % ({100 * low:.0f} to {100 * high:.0f})"


def _chrf(written: Mapping[str, Any]) -> str:
    low, high = written["interval"]
    return f"{written['chrf']:.1f} ({low:.1f} to {high:.1f})"
