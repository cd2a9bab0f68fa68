"""A comparison of latency reports as one HTML page that loads nothing; what reports say is escaped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from minigpt_edge.report.compare_charts import SERIES, make_charts, sign
from minigpt_edge_runtime._version import __version__
from minigpt_edge_runtime.compare.comparison import Comparison
from minigpt_edge_runtime.compare.metrics import Row, value_text
from minigpt_edge_runtime.compare.ratio import RULES, interval_text, ratio_text, verdict_text
from minigpt_edge_runtime.compare.reports import Data, at
from minigpt_edge_runtime.files import understanding
from minigpt_edge_runtime.formats.latency_report import AGAIN


def render_page(comparison: Comparison) -> str:
    """The whole page; the same text for the same reports.

    Raises:
        EdgeError: a report is damaged.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("minigpt_edge.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["value"] = value_text
    environment.filters |= {"ratio": ratio_text, "interval": interval_text, "verdict": verdict_text}
    names = [report.label for report in comparison.reports]
    rows = {row.metric.limit: row for row in comparison.rows}
    with understanding("one of the reports", AGAIN):
        return environment.get_template("compare.html").render(
            title=f"{names[1]} against {names[0]}"
            if len(names) == 2
            else f"{len(names)} reports, against {names[0]}",
            signs=[(number % len(SERIES), sign(number)) for number in range(len(names))],
            reports=comparison.reports,
            tiles=[rows[key] for key in _TILES if key in rows] if len(names) == 2 else [],
            words=_WORDS,
            best=_best(rows, names) if len(names) > 2 else "",
            caveats=comparison.caveats,
            charts=make_charts(comparison),
            rows=comparison.rows,
            rules=RULES,
            facts=[
                (name, [_fact(read(r.data)) for r in comparison.reports]) for name, read in _FACTS.items()
            ],
            series=SERIES,
            version=__version__,
        )


_TILES = ("decode", "ttft", "prefill", "memory", "size", "bits_per_byte")
_WORDS = {
    "better": "better",
    "worse": "worse",
    "noise": "≈ noise",
    "same": "the same",
    "unknown": "can't tell",
}
_BEST: tuple[tuple[str, str, Callable[[Iterable[float]], float]], ...] = (
    ("decode", "fastest at decoding", max),
    ("ttft", "first to answer", min),
    ("memory", "smallest in memory", min),
)


def _best(rows: Mapping[str | None, Row], names: Sequence[str]) -> str:
    """Who of many is best at what, in a sentence."""
    best = []
    for key, superlative, choose in _BEST:
        known = [value for value in rows[key].values if value is not None] if key in rows else []
        if len(known) > 1:
            row, value = rows[key], choose(known)
            name = names[row.values.index(value)]
            best.append(f"{superlative} is {name} ({value_text(value, row.metric.unit)})")
    sentence = "; ".join(best)
    return f"{sentence[:1].upper()}{sentence[1:]}." if best else ""


def _fact(value: Any) -> str:
    if value is None or value == "":
        return "unknown"
    if isinstance(value, list):
        return ", ".join(_fact(item) for item in value) or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _bytes(value: int | None) -> str | None:
    return None if value is None else f"{value / 1e6:,.1f} MB" if value < 1e9 else f"{value / 1e9:,.1f} GB"


def _sample(report: Data) -> str | None:
    if report["quality"] is None:
        return "not scored"
    sample = report["quality"]["sample_sha256"]
    return None if sample is None else f"sha256 {sample[:16]}…"


_FACTS: dict[str, Callable[[Data], Any]] = {
    "model": at("artefact.name"),
    "file": at("artefact.file"),
    "sha256": lambda report: f"{report['artefact']['sha256'][:16]}…",
    "quantization": at("artefact.quantization"),
    "parameters": at("artefact.parameters"),
    "file size": lambda report: _bytes(report["artefact"]["bytes"]),
    "domain": lambda report: report["artefact"]["domain"] or "–",
    "base model": lambda report: report["artefact"]["base_model"] or "–",
    "engine": lambda report: f"{report['runtime']['name']}, {report['runtime']['package']}",
    "profile": at("profile"),
    "threads": at("settings.n_threads"),
    "pinned to CPU": lambda report: report["settings"]["pinned_cpus"] or "not pinned",
    "repetitions": at("settings.repetitions"),
    "warm-up runs": at("settings.warmup"),
    "prompt lengths": at("settings.prompt_lengths"),
    "depths": at("settings.depths"),
    "tokens generated": at("settings.n_gen"),
    "context length": at("settings.context_length"),
    "memory limit": lambda report: _bytes(report["settings"]["memory_limit_bytes"]) or "none",
    "CPU": at("device.cpu"),
    "CPU features": lambda report: [name for name, has in report["device"]["features"].items() if has],
    "cores": at("device.cores"),
    "physical cores": at("device.physical_cores"),
    "usable cores": at("device.cores_usable"),
    "memory": lambda report: _bytes(report["device"]["memory_bytes"]),
    "system": at("device.system"),
    "governor": at("device.governor"),
    "power source": at("device.power_source"),
    "read bandwidth": lambda r: f"{r['roofline']['read_bandwidth_bytes_per_second'] / 1e9:,.1f} GB/s",
    "held-out sample": _sample,
    "Python": at("device.python"),
    "minigpt-edge-runtime": at("runtime.minigpt_edge_runtime"),
    "libraries": lambda report: [f"{name} {v}" for name, v in sorted(report["runtime"]["libraries"].items())],
    "measured": at("created"),
}
