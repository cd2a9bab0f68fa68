"""Two or more latency reports against the first of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minigpt_edge_runtime.compare.caveats import Caveat, find_caveats
from minigpt_edge_runtime.compare.metrics import Row, compare_rows
from minigpt_edge_runtime.compare.ratio import RULES
from minigpt_edge_runtime.compare.reports import Report, read_reports
from minigpt_edge_runtime.errors import UsageError
from minigpt_edge_runtime.files import understanding
from minigpt_edge_runtime.formats.latency_report import AGAIN

FORMAT = 1


@dataclass(frozen=True)
class Comparison:
    """The reports (the first is the reference), what to know before reading, and the rows."""

    reports: list[Report]
    caveats: list[Caveat]
    rows: list[Row]

    def to_json(self) -> dict[str, Any]:
        """Everything the table says, and the raw values behind it (times in ms, sizes in bytes)."""
        return {
            "format": FORMAT,
            "kind": "comparison",
            "reference": self.reports[0].label,
            "reports": [
                {
                    "label": report.label,
                    "path": report.path,
                    **{
                        key: report.data[key]
                        for key in ("created", "profile", "artefact", "device", "runtime")
                    },
                    "settings": report.data["settings"],
                }
                for report in self.reports
            ],
            "warnings": [asdict(caveat) for caveat in self.caveats],
            "rows": [self._row(row) for row in self.rows],
            "rules": list(RULES),
        }

    def _row(self, row: Row) -> dict[str, Any]:
        ratios = [None, *(asdict(ratio) for ratio in row.ratios)]
        return {
            "key": row.metric.key,
            "label": row.metric.label,
            "unit": _RAW_UNITS.get(row.metric.unit, row.metric.unit),
            "better": row.metric.better,
            "fail_if": row.metric.limit,
            "reports": [
                {"label": report.label, "value": value, "ratio": ratio}
                for report, value, ratio in zip(self.reports, row.values, ratios, strict=True)
            ],
        }


_RAW_UNITS = {"tok/s": "tokens/s", "MB": "bytes", "%": "fraction", "mJ": "J", "": "bits"}


def compare_files(paths: Sequence[Path]) -> Comparison:
    """Read reports and compare all with the first.

    Raises:
        UsageError: fewer than two are given.
        EdgeError: one is missing, damaged, no latency report, or is one of another schema version.
    """
    if len(paths) < 2:
        raise UsageError(
            "compare needs two or more reports", "give the reference first: compare cpu.json laptop.json"
        )
    reports = read_reports(paths)
    for report in reports:
        with understanding(report.path, AGAIN):  # compared with itself, so that a damaged one can be named
            _compare([report, report]).to_json()
    return _compare(reports)


def _compare(reports: list[Report]) -> Comparison:
    return Comparison(reports, find_caveats(reports), compare_rows(reports))
