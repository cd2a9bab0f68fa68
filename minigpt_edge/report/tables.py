"""A report's figures as sentences and small tables of text, for terminal, HTML page and model card."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minigpt_edge.data.reading import READ_KEYS, read_lines
from minigpt_edge.report.build_report import BuildReport, ModelFile, Sparsity, Window

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


def markdown(table: Table) -> str:
    """A table as Markdown, its note below."""
    rows = [
        [cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (table.columns, *table.rows)
    ]
    rows.insert(1, ["---"] + ["--:"] * (len(table.columns) - 1))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + (f"\n\n{table.note}" if table.note else "")


def number(value: Any, digits: int = 0, unit: str = "") -> str:
    """A figure with thousands separators, fixed digits and a unit; a dash for None."""
    if value is None:
        return MISSING
    text = f"{value:,.{digits}f}"
    return f"{text} {unit}" if unit else text


def signed(change: float) -> str:
    """A change in bits per byte; one too small to show is +0.000."""
    return f"{round(change, 3) + 0.0:+.3f}"


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


def headline(report: BuildReport) -> str:
    """One sentence on the first shipped file against the dense model, of whatever was measured."""
    shipped, dense, twin = report.compared()
    if not shipped.role:
        return "Nothing has been shipped."
    parts = []
    if shipped.bytes is not None:
        text = megabytes(shipped.bytes)
        if dense.bytes:
            text += f" in place of {megabytes(dense.bytes)} ({percent(shipped.bytes / dense.bytes, 0)})"
        parts.append(text)
    if (bits := shipped.quality.bits_per_byte) is not None:
        text = f"{bits:.3f} bits per byte on held-out {report.domain + ' ' if report.domain else ''}text"
        if dense.quality.bits_per_byte:
            text += f" where the dense model has {dense.quality.bits_per_byte:.3f}"
        parts.append(text)
    if (rate := shipped.speed.decode_tokens_per_second) is not None:
        text = f"{rate:.0f} tokens per second"
        if slower := twin.speed.decode_tokens_per_second:
            text += f", {rate / slower:.2f} × the dense model at {shipped.quantization}"
        parts.append(text)
    return "; ".join(parts) + "." if parts else f"{shipped.label} has not been measured."


def tables(report: BuildReport) -> list[Table]:
    """All tables that the report has figures for, in reading order."""
    made = [_models(report), _waterfall(report), _ratios(report), _speed(report), _way(report)]
    made += [_pruned(report.sparsity)]
    corpus = {"domain": report.domain, **report.corpus.to_json()}
    if "sources" in corpus:
        bare = [{k: v for k, v in one.items() if k not in READ_KEYS} for one in corpus["sources"]]
        corpus |= {"sources": bare, "read": " · ".join(read_lines(corpus["sources"])) or None}
    environment = {"minigpt-edge": report.minigpt_edge, "command": report.command, **report.environment}
    made += [
        _facts("corpus", "Corpus", corpus),
        _parity(report),
        _files(report),
        _time(report),
        _stages(report),
    ]
    made += [_facts("environment", "Environment", environment)]
    return [table for table in made if table.rows]


def _shipped_rows(models: Sequence[ModelFile]) -> frozenset[int]:
    return frozenset(index for index, model in enumerate(models) if model.role == "shipped")


def _models(report: BuildReport) -> Table:
    models = report.models
    largest = max((model.bytes or 0 for model in models), default=0)
    rows = []
    for model in models:
        size, quality, parameters = model.bytes, model.quality, model.parameters
        error = "" if quality.stderr is None else f" ± {quality.stderr:.3f}"
        rows.append(
            [
                model.label,
                megabytes(size),
                percent(size / largest, 0) if size else MISSING,
                MISSING if parameters is None else number(parameters / 1e6, 1, "M"),
                number(quality.bits_per_byte, 3) + error,
                number(quality.perplexity_per_base_token, 2),
            ]
        )
    text = next((model.quality for model in models if model.quality), None)
    counts = {"windows": text.windows, "tokens": text.tokens} if text else {}
    known = ", ".join(f"{number(count)} {what}" for what, count in counts.items() if count is not None)
    note = f"Held-out test text{f' ({known})' if known else ''}; lower is better. "
    note += "The dense model is as published: not fine-tuned, quantized without an importance matrix. "
    note += "± is one standard error over the windows. "
    note += _differences(report) or "All have the same windows: differences are surer than ± suggests."
    columns = ["", "file size", "of the largest", "parameters", "bits per byte", "perplexity per base token"]
    return Table("models", "Size and quality", columns, rows, note, _shipped_rows(models))


def _differences(report: BuildReport) -> str:
    """The shipped files against the dense F16 file window by window, where the windows' scores were kept."""
    _, dense, _ = report.compared()
    found = {
        model.label: paired_difference(model.quality.per_window, dense.quality.per_window)
        for model in report.by_role("shipped")
    }
    return " ".join(
        f"{label} − {dense.label}, window by window: {signed(pair[0])} ± {pair[1]:.3f} bits per byte."
        for label, pair in found.items()
        if pair
    )


def paired_difference(ours: Sequence[Window], theirs: Sequence[Window]) -> tuple[float, float] | None:
    """Difference in bits per byte, and its standard error, over windows that both models were scored on.

    Returns:
        None where either is missing, they are not the same windows, or there is only one.
    """
    if len(ours) < 2 or [window.bytes for window in ours] != [window.bytes for window in theirs]:
        return None
    size, count = sum(window.bytes for window in ours), len(ours)
    gains = [a.nll - b.nll for a, b in zip(ours, theirs, strict=True)]
    rate = sum(gains) / size
    squares = sum((gain - rate * window.bytes) ** 2 for gain, window in zip(gains, ours, strict=True))
    return rate / math.log(2), math.sqrt(squares * count / (count - 1)) / size / math.log(2)


def _speed(report: BuildReport) -> Table:
    models = [model for model in report.models if model.speed]
    rows = [
        [
            model.label,
            number(model.speed.decode_tokens_per_second, 1),
            number(model.speed.prefill_tokens_per_second),
            " / ".join(map(number, (first.p50, first.p90, first.p99))),
            f"{number(gap.p50, 1)} / {number(gap.p99, 1)}",
            number(model.speed.load_seconds, 2, "s"),
            number(model.speed.peak_rss_mb, 0, "MB"),
        ]
        for model in models
        for first, gap in [(model.speed.ttft_ms, model.speed.itl_ms)]
    ]
    columns = ["", "decode tokens/s", "prefill tokens/s", "TTFT ms p50 / p90 / p99", "ITL ms p50 / p99"]
    columns += ["load", "peak RSS"]
    threads = sorted({model.speed.threads for model in models if model.speed.threads})
    note = "Each file in a fresh process without torch"
    note += f", {'/'.join(map(str, threads))} threads. " if threads else ". "
    note += "TTFT: time to first token; ITL: time between tokens."
    return Table("speed", "Speed and memory", columns, rows, note, _shipped_rows(models))


def _ratios(report: BuildReport) -> Table:
    rows = [[name.replace("_", " "), number(value, 3)] for name, value in report.ratios.items()]
    return Table("ratios", "Ratios to the dense model", ["", "ratio"], rows)


def _pruned(sparsity: Sparsity) -> Table:
    pairs: dict[str, tuple[Any, Any]] = {
        "parameters": (sparsity.parameters_before, sparsity.parameters_after),
        "vocabulary": sparsity.vocabulary or (None, None),
    }
    for name, widths in (("FFN neurons", sparsity.ffn_width), ("KV groups", sparsity.kv_groups)):
        if widths and widths[1]:
            before = widths[0] if isinstance(widths[0], int) else sum(widths[0]) / len(widths[0])
            pairs[f"{name} per block (mean)"] = (before, sum(widths[1]) / len(widths[1]))
    rows = [
        [
            name,
            number(before, int(isinstance(before, float))),
            number(after, int(isinstance(after, float))),
            percent(1 - after / before),
        ]
        for name, (before, after) in pairs.items()
        if before and after is not None
    ]
    return Table("pruned", "What was pruned", ["", "before", "after", "removed"], rows, _asked(sparsity))


def _asked(sparsity: Sparsity) -> str:
    """What was asked for: a fraction, or what a limit was; nothing where a plan was followed."""
    parts = []
    if sparsity.asked is not None:
        structured = sparsity.pattern in ("structured", "blocks")
        what = "the parameters removed" if structured else "the blocks' weights zero"
        parts.append(f"{percent(sparsity.asked, 2)} of {what}")
    texts = {
        "max_size": "a file of at most {:,} bytes",
        "max_params": "at most {:,} parameters",
        "min_speedup": "decoding at least {:g} times as fast",
        "threshold": "neurons and KV groups of mean |activation| up to {:g} removed",
    }
    parts += [text.format(sparsity.limits[name]) for name, text in texts.items() if name in sparsity.limits]
    return f"Asked for: {', '.join(parts)}." if parts else ""


def _way(report: BuildReport) -> Table:
    stations, recovery = report.quality_torch, report.recovery
    dense, rows = stations.dense.bits_per_byte, []
    for name, quality in (
        ("dense model", stations.dense),
        ("after pruning", stations.pruned),
        ("after recovery", stations.recovered),
    ):
        if quality:
            bits = quality.bits_per_byte
            ratio = bits / dense if bits is not None and dense else None
            rows.append(
                [name, number(bits, 3), number(quality.perplexity_per_base_token, 2), number(ratio, 3)]
            )
    note = "Validation text, in torch, before export."
    if recovery.tokens is not None:
        note += f" Recovery: {number(recovery.tokens)} tokens in {duration(recovery.seconds)}."
        if recovery.grid:
            note += f" It trained the numbers that {recovery.grid} can hold."
        if share := recovery.teacher_share:
            note += f" Its teacher was the dense model: {percent(share, 0)} of the target"
            taught = recovery.taught_tokens
            note += ", falling to 0." if taught is None else f" at first, over {number(taught)} tokens."
    columns = ["", "bits per byte", "perplexity per base token", "bits ÷ dense"]
    return Table("way", "Quality after each stage", columns, rows, note)


def _waterfall(report: BuildReport) -> Table:
    found = report.waterfall
    bits = [step.bits_per_byte for step in found.steps]
    changes = [MISSING, *(signed(change) for _, change in found.changes())]
    rows = [
        [step.name, number(step.bits_per_byte, 3), change, number(step.bits_per_byte / bits[0], 3)]
        for step, change in zip(found.steps, changes, strict=False)
    ]
    columns = ["", "bits per byte", "change", "bits ÷ dense"]
    same = f", on the same {found.windows:,} validation windows" if found.windows else ""
    note = f"After each step{same}; lower is better. The last is the first shipped file in its own runtime."
    if found.together:
        note += f" {', '.join(found.together)}: one step, since the model was on disk or its refit ties them."
    elif any(step.name == "KV groups" for step in found.steps):
        note += " Neurons: the pruned model with all of the dense attention, which its refit did not expect."
    expected = [step.estimated for step in found.steps]
    if any(value is not None for value in expected):
        columns.insert(3, "expected change")
        for row, value in zip(rows, expected, strict=True):
            row.insert(3, MISSING if value is None else signed(value))
        note += (
            " Expected: estimated on the training text before anything was cut; pruning weighs it by kind."
        )
    emphasis = frozenset({len(rows) - 1})
    return Table("waterfall", "What each step costs", columns, rows, note, emphasis)


def waterfall_line(report: BuildReport) -> str | None:
    """The waterfall in one line: "dense 0.988, vocabulary +0.153, …, shipped 1.098"; None without."""
    found = report.waterfall
    if not found.steps:
        return None
    first, last = found.steps[0], found.steps[-1]
    parts = [f"{first.name} {first.bits_per_byte:.3f}"]
    parts += [f"{name} {signed(change)}" for name, change in found.changes()]
    windows = f" on {found.windows:,} validation windows" if found.windows else ""
    return f"Bits per byte{windows}: {', '.join(parts)}, shipped {last.bits_per_byte:.3f}."


def _facts(key: str, title: str, facts: Mapping[str, Any]) -> Table:
    rows = [[name.replace("_", " "), _fact(value)] for name, value in facts.items() if value is not None]
    return Table(key, title, ["", ""], rows, facts=True)


def _fact(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, Mapping):
        facts = {name.replace("_", " "): part for name, part in value.items()}
        if any(isinstance(part, Mapping) for part in facts.values()):
            return "; ".join(f"{name}: {_fact(part)}" for name, part in facts.items())
        return ", ".join(f"{name} {_fact(part)}" for name, part in facts.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(map(_fact, value))
    return MISSING if value is None else str(value)


def _parity(report: BuildReport) -> Table:
    rows = [
        [
            target,
            f"{parity.kl_mean:.1e}",
            f"{parity.kl_max:.1e}",
            percent(parity.argmax_agreement),
            number(parity.bits_ratio, 3),
        ]
        for target, parity in report.parity.items()
    ]
    columns = ["", "KL mean", "KL max", "argmax agreement", "bits ÷ checkpoint"]
    tokens = next((parity.tokens for parity in report.parity.values()), 0)
    note = f"Each file against its checkpoint in float32, {tokens:,} validation tokens; KL in nats."
    return Table("parity", "Parity with the checkpoint", columns, rows, note)


def _files(report: BuildReport) -> Table:
    rows = [[model.label, model.file or MISSING, model.sha256] for model in report.models if model.sha256]
    return Table("files", "Files", ["", "file", "sha256"], rows, facts=True)


def _time(report: BuildReport) -> Table:
    """What `--time` planned and what it came to, cached stages counted as when they were made."""
    budget, took = report.time, dict[str, float]()
    for stage in report.stages:
        part = _PARTS.get(stage.name, "files and measurements")
        took[part] = took.get(part, 0.0) + (stage.seconds or 0.0)
    rows = [[name, duration(planned), duration(took.get(name))] for name, planned in budget.seconds.items()]
    if rows:
        rows.append(["total", duration(sum(budget.seconds.values())), duration(sum(took.values()))])
    note = (
        f"Asked for: {duration(budget.asked)}. Chosen: {number(budget.calibration_tokens)} tokens of "
        f"calibration and {number(budget.recovery_tokens)} of recovery ({number(budget.passes, 1)} passes "
        f"over the text), since the dense model read {number(budget.reading_tokens_per_second)} tokens/s "
        f"and the pruned one trained on {number(budget.training_tokens_per_second)}."
    )
    return Table("time", "Time", ["", "planned", "took"], rows, note, frozenset({len(rows) - 1}))


_PARTS = {
    **dict.fromkeys(("corpus", "dense", "pace-dense"), "text and dense model"),
    "prune": "pruning",
    **dict.fromkeys(("pace-recovery", "recover"), "recovery"),
}


def _stages(report: BuildReport) -> Table:
    stages = report.stages
    rows = [
        [s.name, "cached" if s.reused else duration(s.seconds), number(s.peak_rss_mb, 0, "MB")]
        for s in stages
    ]
    if len(rows) > 1:
        rows.append(["total", duration(sum(s.seconds or 0 for s in stages if not s.reused)), MISSING])
    return Table("stages", "Stages", ["", "time", "peak RSS"], rows, "", frozenset({len(stages)}))
