"""A report's figures as sentences and small tables of text, for terminal, HTML page and model card."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MISSING = "–"


@dataclass(frozen=True)
class Table:
    """A small table of formatted text; the first column names the row, the others hold figures.

    Attributes:
        key: stable name, such as "models".
        columns: headings.
        rows: cells, one list per row, as long as `columns`.
        note: what a reader has to know to read it rightly; may be empty.
        emphasis: indices of the rows to set off.
        facts: the cells are words, not figures to compare.
    """

    key: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    emphasis: frozenset[int] = frozenset()
    facts: bool = False


def number(value: Any, digits: int = 0, unit: str = "") -> str:
    """A figure with thousands separators, fixed digits and a unit; a dash for None."""
    if value is None:
        return MISSING
    text = f"{value:,.{digits}f}"
    return f"{text} {unit}" if unit else text


def percent(value: Any, digits: int = 1) -> str:
    """A fraction as a percentage; a dash for None."""
    return MISSING if value is None else f"{100 * value:.{digits}f} %"


def megabytes(value: Any, digits: int = 1) -> str:
    """Bytes as MB of 10^6 bytes; a dash for None."""
    return MISSING if value is None else number(value / 1e6, digits, "MB")


def duration(seconds: Any) -> str:
    """Seconds as "12.3 s" below two minutes, else as "4 min 05 s"; a dash for None."""
    if seconds is None:
        return MISSING
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def get(value: Any, *path: str) -> Any:
    """The value at a path of keys in nested mappings; None where a step is missing."""
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def by_role(report: Mapping[str, Any], role: str) -> list[Mapping[str, Any]]:
    """The report's models in a role: "dense-f16", "dense-quantized" or "shipped"."""
    return [model for model in report["models"] if model.get("role") == role]


def compared(report: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]:
    """The first shipped model, the dense one at F16, the dense one at its quantization; {} where missing."""
    shipped = (by_role(report, "shipped") or [{}])[0]
    dense = (by_role(report, "dense-f16") or [{}])[0]
    kind = shipped.get("quantization")
    twins = [
        model for model in by_role(report, "dense-quantized") if kind and model.get("quantization") == kind
    ]
    return shipped, dense, (twins or [{}])[0]


def headline(report: Mapping[str, Any]) -> str:
    """One sentence on the first shipped file against the dense model, of whatever was measured."""
    shipped, dense, twin = compared(report)
    if not shipped:
        return "Nothing has been shipped."
    parts = []
    if (size := shipped.get("bytes")) is not None:
        text = megabytes(size)
        if dense.get("bytes"):
            text += f" in place of {megabytes(dense['bytes'])} ({percent(size / dense['bytes'], 0)})"
        parts.append(text)
    ours, theirs = get(shipped, "quality", "bits_per_byte"), get(dense, "quality", "bits_per_byte")
    if ours is not None:
        where = f"held-out {report['domain']} text" if report.get("domain") else "held-out text"
        text = f"{ours:.3f} bits per byte on {where}"
        if theirs:
            text += f" where the dense model has {theirs:.3f}"
        parts.append(text)
    speed = get(shipped, "speed", "decode_tokens_per_second")
    if speed is not None:
        text, slower = f"{speed:.0f} tokens per second", get(twin, "speed", "decode_tokens_per_second")
        if slower:
            text += f", {speed / slower:.2f} × the dense model at {shipped['quantization']}"
        parts.append(text)
    if not parts:
        return f"{shipped.get('label', 'The shipped file')} has not been measured."
    return "; ".join(parts) + "."


def tables(report: Mapping[str, Any]) -> list[Table]:
    """All tables that the report has figures for, in reading order."""
    made = [_models(report), _ratios(report), _speed(report), _way(report), _pruned(report), _corpus(report)]
    made += [_parity(report), _files(report), _stages(report), _environment(report)]
    return [table for table in made if table is not None and table.rows]


def _shipped_rows(models: Sequence[Mapping[str, Any]]) -> frozenset[int]:
    return frozenset(i for i, model in enumerate(models) if model.get("role") == "shipped")


def _models(report: Mapping[str, Any]) -> Table:
    models = report["models"]
    largest = max((model.get("bytes") or 0 for model in models), default=0)
    rows = []
    for model in models:
        quality, size = model.get("quality") or {}, model.get("bytes")
        error = quality.get("stderr")
        bits = number(quality.get("bits_per_byte"), 3) + (f" ± {error:.3f}" if error is not None else "")
        share = percent(size / largest, 0) if size and largest else MISSING
        parameters = model.get("parameters")
        millions = MISSING if parameters is None else number(parameters / 1e6, 1, "M")
        rows.append(
            [
                model["label"],
                megabytes(size),
                share,
                millions,
                bits,
                number(quality.get("perplexity_per_base_token"), 2),
            ]
        )
    columns = ["", "file", "of largest", "parameters", "bits per byte", "perplexity per base token"]
    text: Mapping[str, Any] = next((m["quality"] for m in models if m.get("quality")), {})
    parts = [f"{number(text[key])} {key}" for key in ("windows", "tokens") if text.get(key) is not None]
    note = "Held-out test text" + (f" ({', '.join(parts)})" if parts else "") + "; lower is better. "
    note += "The dense model is as published, not fine-tuned, quantized without an importance matrix. "
    note += "± is one standard error over the windows. "
    note += (
        _compared(report)
        or "The files are scored on the same windows: differences are surer than ± suggests."
    )
    return Table("models", "Size and quality", columns, rows, note, _shipped_rows(models))


def _compared(report: Mapping[str, Any]) -> str:
    """The shipped files against the dense F16 file window by window, where the windows' scores were kept."""
    _, dense, _ = compared(report)
    sentences = []
    for model in by_role(report, "shipped"):
        found = paired_difference(get(model, "quality", "per_window"), get(dense, "quality", "per_window"))
        if found is not None:
            sentences.append(
                f"{model['label']} − {dense['label']}, window by window: {found[0]:+.3f} ± {found[1]:.3f}."
            )
    return " ".join(sentences)


def paired_difference(ours: Any, theirs: Any) -> tuple[float, float] | None:
    """Difference in bits per byte, and its standard error, over windows that both models were scored on.

    Args:
        ours, theirs: per window {"nll" (nats), "bytes"}, in the same order.

    Returns:
        None where either is missing, they are not the same windows, or there is only one.
    """
    if not ours or not theirs or len(ours) < 2 or [w["bytes"] for w in ours] != [w["bytes"] for w in theirs]:
        return None
    size, count = sum(w["bytes"] for w in ours), len(ours)
    gains = [a["nll"] - b["nll"] for a, b in zip(ours, theirs, strict=True)]
    rate = sum(gains) / size
    squares = sum((gain - rate * w["bytes"]) ** 2 for gain, w in zip(gains, ours, strict=True))
    return rate / math.log(2), math.sqrt(squares * count / (count - 1)) / size / math.log(2)


def _speed(report: Mapping[str, Any]) -> Table | None:
    models = [model for model in report["models"] if model.get("speed")]
    rows = []
    for model in models:
        speed = model["speed"]
        delays = [get(speed, "ttft_ms", p) for p in ("p50", "p90", "p99")]
        gaps = [get(speed, "itl_ms", p) for p in ("p50", "p99")]
        rows.append(
            [
                model["label"],
                number(speed.get("decode_tokens_per_second"), 1),
                number(speed.get("prefill_tokens_per_second"), 0),
                " / ".join(number(value, 0) for value in delays),
                " / ".join(number(value, 1) for value in gaps),
                number(speed.get("load_seconds"), 2, "s"),
                number(speed.get("peak_rss_mb"), 0, "MB"),
            ]
        )
    columns = [
        "",
        "decode tokens/s",
        "prefill tokens/s",
        "first token ms p50 / p90 / p99",
        "between tokens ms p50 / p99",
        "load",
        "peak memory",
    ]
    threads = {model["speed"].get("threads") for model in models} - {None}
    note = "Each file in a fresh process without torch"
    note += f", {'/'.join(map(str, sorted(threads)))} threads." if threads else "."
    return Table("speed", "Speed and memory", columns, rows, note, _shipped_rows(models)) if rows else None


def _ratios(report: Mapping[str, Any]) -> Table | None:
    ratios = report.get("ratios") or {}
    rows = [[name.replace("_", " "), number(value, 3)] for name, value in ratios.items() if value is not None]
    return Table("ratios", "Ratios", ["", "ratio"], rows) if rows else None


def _pruned(report: Mapping[str, Any]) -> Table | None:
    sparsity = report.get("sparsity")
    if not sparsity:
        return None
    rows = []

    def row(name: str, before: Any, after: Any, digits: int = 0) -> None:
        if before and after is not None:
            rows.append([name, number(before), number(after, digits), percent(1 - after / before)])

    row("parameters", sparsity.get("parameters_before"), sparsity.get("parameters_after"))
    row("vocabulary", *(sparsity.get("vocabulary") or (None, None)))
    for key, name in (
        ("ffn_width", "FFN neurons per block (mean)"),
        ("kv_groups", "KV groups per block (mean)"),
    ):
        before, after = sparsity.get(key) or (None, None)
        if before and after:
            row(name, before, sum(after) / len(after), 1)
    return Table("pruned", "What was pruned", ["", "before", "after", "removed"], rows, _asked(sparsity))


def _asked(sparsity: Mapping[str, Any]) -> str:
    """What was asked for: a fraction, or what a limit was; nothing where a plan was followed."""
    asked, limits = sparsity.get("asked"), sparsity.get("limits") or {}
    masks = sparsity.get("pattern", "structured") not in ("structured", "blocks")
    parts = []
    if asked is not None:
        parts.append(
            f"{percent(asked, 2)} of " + ("the blocks' weights zero" if masks else "the parameters removed")
        )
    for name, text in {
        "max_size": "a file of at most {:,} bytes",
        "max_params": "at most {:,} parameters",
        "min_speedup": "decoding at least {:g} times as fast",
        "threshold": "units of mean |activation| up to {:g} removed",
    }.items():
        if limits.get(name) is not None:
            parts.append(text.format(limits[name]))
    return f"Asked for: {', '.join(parts)}." if parts else ""


def _way(report: Mapping[str, Any]) -> Table | None:
    stations = report.get("quality_torch") or {}
    names = {"dense": "dense model", "pruned": "after pruning", "recovered": "after recovery"}
    dense = get(stations, "dense", "bits_per_byte")
    rows = []
    for key, name in names.items():
        quality = stations.get(key)
        if quality:
            bits = quality.get("bits_per_byte")
            ratio = bits / dense if bits is not None and dense else None
            rows.append(
                [name, number(bits, 3), number(quality.get("perplexity_per_base_token"), 2), number(ratio, 3)]
            )
    note = "Validation text, in torch, before export."
    if (recovery := report.get("recovery") or {}).get("tokens") is not None:
        note += f" Recovery: {number(recovery['tokens'])} tokens in {duration(recovery.get('seconds'))}."
        if share := recovery.get("teacher_share"):
            note += f" The dense model's predictions: {percent(share, 0)} of its target, falling to 0."
    columns = ["", "bits per byte", "perplexity per base token", "bits ÷ dense"]
    return Table("way", "Quality on the way", columns, rows, note) if rows else None


def _facts(key: str, title: str, facts: Mapping[str, Any] | None, note: str = "") -> Table | None:
    if not facts:
        return None
    rows = [[name.replace("_", " "), _fact(value)] for name, value in facts.items() if value is not None]
    return Table(key, title, ["", ""], rows, note, facts=True)


def _fact(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {_fact(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(map(_fact, value))
    return MISSING if value is None else str(value)


def _corpus(report: Mapping[str, Any]) -> Table | None:
    return _facts("corpus", "Corpus", {"domain": report.get("domain"), **(report.get("corpus") or {})})


def _parity(report: Mapping[str, Any]) -> Table:
    rows = [
        [
            target,
            f"{found['kl_mean']:.1e}",
            f"{found['kl_max']:.1e}",
            percent(found["argmax_agreement"]),
            number(found["bits_ratio"], 3),
        ]
        for target, found in (report.get("parity") or {}).items()
    ]
    columns = ["", "KL mean", "KL largest", "arg-max agrees", "bits ÷ checkpoint"]
    tokens = next((found["tokens"] for found in (report.get("parity") or {}).values()), 0)
    note = f"Each file against the recovered checkpoint in float32, {tokens:,} validation tokens; KL in nats."
    return Table("parity", "Proof of each file", columns, rows, note)


def _files(report: Mapping[str, Any]) -> Table:
    rows = [
        [m["label"], str(m.get("file") or MISSING), m["sha256"]] for m in report["models"] if m.get("sha256")
    ]
    return Table("files", "Files", ["", "file", "sha256"], rows, facts=True)


def _stages(report: Mapping[str, Any]) -> Table | None:
    stages = report.get("stages") or []
    rows = [
        [
            s["name"],
            "cached" if s.get("reused") else duration(s.get("seconds")),
            number(s.get("peak_rss_mb"), 0, "MB"),
        ]
        for s in stages
    ]
    spent = [s["seconds"] for s in stages if s.get("seconds") is not None and not s.get("reused")]
    if len(rows) > 1:
        rows.append(["total", duration(sum(spent)), MISSING])
    return (
        Table("stages", "Stages", ["", "time", "peak memory"], rows, "", frozenset({len(rows) - 1}))
        if rows
        else None
    )


def _environment(report: Mapping[str, Any]) -> Table | None:
    made = {
        "minigpt-edge": report.get("minigpt_edge"),
        "command": report.get("command"),
        **(report.get("environment") or {}),
    }
    return _facts("environment", "Environment", made)
