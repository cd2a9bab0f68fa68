"""The comparison as one HTML page that loads nothing. Everything that comes from a report is escaped."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from minigpt_edge_runtime import __version__
from minigpt_edge_runtime.compare.charts import Chart, make_charts
from minigpt_edge_runtime.compare.comparison import Comparison
from minigpt_edge_runtime.compare.metrics import Row, value_text
from minigpt_edge_runtime.compare.ratio import RULES, Ratio, interval_text, ratio_text, verdict_text
from minigpt_edge_runtime.compare.reports import Report
from minigpt_edge_runtime.compare.svg import SERIES, mark

_HAVE_LABELS = {"itl", "memory"}  # charts that name the reports themselves


def render_page(comparison: Comparison) -> str:
    """The whole page; the same text for the same reports."""
    template = Template(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    names = [report.label for report in comparison.reports]
    title = (
        f"{names[1]} against {names[0]}" if len(names) == 2 else f"{len(names)} reports, against {names[0]}"
    )
    key = "".join(f"<li>{_symbol(n)}<span>{escape(name)}</span></li>" for n, name in enumerate(names))
    return template.substitute(
        title=escape(title),
        headline=_headline(comparison),
        reports="".join(_card(number, report) for number, report in enumerate(comparison.reports)),
        warnings=_warnings(comparison),
        charts="".join(_figure(chart, key) for chart in make_charts(comparison)),
        figures=_figures(comparison),
        rules="".join(f'<p class="note">{escape(rule)}</p>' for rule in RULES),
        facts=_facts(comparison),
        series="\n".join(f".s{n} {{ --c: var(--s{n}); }}" for n in range(SERIES)),
        version=escape(__version__),
    )


def _headline(comparison: Comparison) -> str:
    """Of two reports the ratios that matter most, large; of many who is best in a sentence."""
    rows = {row.metric.limit: row for row in comparison.rows if row.metric.limit}
    names = [report.label for report in comparison.reports]
    if len(names) == 2:
        return f'<div class="tiles">{"".join(_tile(rows[key]) for key in _TILES if key in rows)}</div>'
    best = []
    for key, superlative, choose in _BEST:
        row = rows.get(key)
        known = [value for value in row.values if value is not None] if row else []
        if row and len(known) > 1:
            figure = value_text(choose(known), row.metric.unit)
            best.append(f"{superlative} is {names[row.values.index(choose(known))]} ({figure})")
    sentence = "; ".join(best)
    return f'<p class="lead">{escape(sentence[:1].upper() + sentence[1:])}.</p>' if best else ""


_TILES = ("decode", "ttft", "prefill", "memory", "size", "bits_per_byte")


def _tile(row: Row) -> str:
    ratio, metric = row.ratios[0], row.metric
    interval = interval_text(ratio)
    judged = f"{interval} · {_WORDS[ratio.verdict]}" if interval else _WORDS[ratio.verdict]
    shown = judged if ratio.value is not None else ratio.note or ""
    before, after = (value_text(figure, metric.unit) for figure in row.values)
    figures = f"{before.removesuffix(f' {metric.unit}')} → {after}"
    condition = f"<small>{escape(metric.condition)}</small>" if metric.condition else ""
    return (
        f'<div class="tile"><span>{escape(metric.name)}</span><b>{ratio_text(ratio)}</b>'
        f'<em class="{ratio.verdict}">{escape(shown)}</em><small>{escape(figures)}</small>{condition}</div>'
    )


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


def _symbol(number: int) -> str:
    return f'<svg viewBox="0 0 16 16" aria-hidden="true">{mark(number, 8, 8.5)}</svg>'


def _card(number: int, report: Report) -> str:
    role = "" if number else " <em>reference</em>"
    cpu = report.data["device"]["cpu"] or f"unknown CPU, {report.data['device']['architecture']}"
    lines = "".join(f"<small>{escape(line)}</small>" for line in (report.model, report.setup, cpu))
    return f"<li>{_symbol(number)}<div><b>{escape(report.label)}{role}</b>{lines}</div></li>"


def _warnings(comparison: Comparison) -> str:
    if not comparison.caveats:
        return ""
    entries = "".join(
        f"<dt>{escape(c.about)}</dt><dd>{escape(c.values)}<br><small>{escape(c.meaning)}</small></dd>"
        for c in comparison.caveats
    )
    heading = "Before you read the numbers: what differs"
    return f'<section class="warnings"><h2>{heading}</h2><dl>{entries}</dl></section>'


def _figure(chart: Chart, key: str) -> str:
    shown = "" if chart.svg is None or chart.key in _HAVE_LABELS else f'<ul class="key">{key}</ul>'
    svg = chart.svg or ""
    caption = f"<figcaption>{escape(chart.caption)}</figcaption>"
    return f"<section><h2>{escape(chart.title)}</h2><figure>{shown}{svg}{caption}</figure></section>"


def _table(caption: str, kind: str, head: str, rows: Iterable[str]) -> str:
    """A table that scrolls on its own where it is too wide, by keys too."""
    parts = f'<thead><tr><th scope="col"></th>{head}</tr></thead><tbody>{"".join(rows)}</tbody>'
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f'<table class="{kind}">{parts}</table></div>'
    )


def _figures(comparison: Comparison) -> str:
    reference, *others = (escape(report.label) for report in comparison.reports)
    head = f'<th scope="col">{reference}</th>'
    head += "".join(f'<th scope="col">{label}<small>× {reference}</small></th>' for label in others)
    kind = "figures roomy" if len(comparison.reports) < 4 else "figures"
    return _table("Figures of all reports, and their ratios", kind, head, map(_figure_row, comparison.rows))


def _figure_row(row: Row) -> str:
    cells = [f"<td>{escape(value_text(row.values[0], row.metric.unit))}</td>"]
    for value, ratio in zip(row.values[1:], row.ratios, strict=True):
        shown = escape(value_text(value, row.metric.unit))
        cells.append(f"<td>{shown}<small>{_judged(ratio)}</small></td>")
    return f'<tr><th scope="row">{escape(row.metric.label)}</th>{"".join(cells)}</tr>'


def _judged(ratio: Ratio) -> str:
    note = escape(ratio.note or "")
    if ratio.value is None:
        return note
    interval = f'<span class="interval">({interval_text(ratio)})</span> ' if interval_text(ratio) else ""
    verdict = f'<span class="{ratio.verdict}" title="{note}">{verdict_text(ratio)}</span>'
    return f"{ratio_text(ratio)} {interval}{verdict}"


def _facts(comparison: Comparison) -> str:
    head = "".join(f'<th scope="col">{escape(report.label)}</th>' for report in comparison.reports)
    rows = []
    for name, read in _FACTS.items():
        values = [_fact(read(report.data)) for report in comparison.reports]
        kind = ' class="differs"' if len(set(values)) > 1 else ""
        cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        rows.append(f'<tr{kind}><th scope="row">{escape(name)}</th>{cells}</tr>')
    return _table("Model, settings and device of all reports", "facts", head, rows)


def _fact(value: Any) -> str:
    if value is None or value == "":
        return "unknown"
    if isinstance(value, list):
        return ", ".join(_fact(item) for item in value) or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _bytes(value: int | None) -> str | None:
    return None if value is None else f"{value / 1e6:,.1f} MB" if value < 1e9 else f"{value / 1e9:,.1f} GB"


def _at(part: str, name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda report: report[part][name]


def _sample(report: dict[str, Any]) -> str | None:
    if report["quality"] is None:
        return "not scored"
    sample = report["quality"]["sample_sha256"]
    return None if sample is None else f"sha256 {sample[:16]}…"


_FACTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "model": _at("artefact", "name"),
    "file": _at("artefact", "file"),
    "sha256": lambda report: f"{report['artefact']['sha256'][:16]}…",
    "quantization": _at("artefact", "quantization"),
    "parameters": _at("artefact", "parameters"),
    "file size": lambda report: _bytes(report["artefact"]["bytes"]),
    "domain": lambda report: report["artefact"]["domain"] or "–",
    "base model": lambda report: report["artefact"]["base_model"] or "–",
    "engine": lambda report: f"{report['runtime']['name']}, {report['runtime']['package']}",
    "profile": lambda report: report["profile"],
    "threads": _at("settings", "n_threads"),
    "pinned to CPU": lambda report: report["settings"]["pinned_cpus"] or "not pinned",
    "repetitions": _at("settings", "repetitions"),
    "warm-up runs": _at("settings", "warmup"),
    "prompt lengths": _at("settings", "prompt_lengths"),
    "depths": _at("settings", "depths"),
    "tokens generated": _at("settings", "n_gen"),
    "context length": _at("settings", "context_length"),
    "memory limit": lambda report: _bytes(report["settings"]["memory_limit_bytes"]) or "none",
    "CPU": _at("device", "cpu"),
    "CPU features": lambda report: [name for name, has in report["device"]["features"].items() if has],
    "cores": lambda report: (
        f"{_fact(report['device']['cores'])}, {_fact(report['device']['physical_cores'])} physical, "
        f"{_fact(report['device']['cores_usable'])} usable"
    ),
    "memory": lambda report: _bytes(report["device"]["memory_bytes"]),
    "system": _at("device", "system"),
    "governor": _at("device", "governor"),
    "power source": _at("device", "power_source"),
    "read bandwidth": lambda report: (
        f"{report['roofline']['read_bandwidth_bytes_per_second'] / 1e9:,.1f} GB/s"
        if report["roofline"]
        else None
    ),
    "held-out sample": _sample,
    "Python": _at("device", "python"),
    "minigpt-edge-runtime": _at("runtime", "minigpt_edge_runtime"),
    "libraries": lambda report: [f"{name} {v}" for name, v in sorted(report["runtime"]["libraries"].items())],
    "measured": lambda report: report["created"],
}
