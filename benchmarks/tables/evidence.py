"""docs/evidence.md and its pictures, from the results of `make bench-methods`; used by tables.py.

What has no result yet is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import every_domain
from benchmarks.tables.evidence_plots import OURS, front_picture, one_shot_picture, time_picture
from minigpt_edge.report.tables import MISSING, Table, duration, markdown, megabytes, number, percent

Rows = list[dict[str, Any]]
RIVALS = {"dense": "dense", "fine-tuned": "dense, fine-tuned"}


def outputs(results: Path, docs: Path) -> dict[Path, str]:
    """Generated file -> text, for whatever results there are."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in results.glob("*.json")}
    parts = [text for name, make in _SECTIONS.items() if name in found for text in make(found[name])]
    if not parts:
        return {}
    head = "# Evidence\n\nWritten by `benchmarks/tables/tables.py` from `benchmarks/results/*.json`.\n"
    made = {docs / "evidence.md": head + "\n" + "\n\n".join(parts) + "\n"}
    if "methods-one-shot" in found:
        made[docs / "one-shot.svg"] = one_shot_picture(found["methods-one-shot"])
    if lines := every_domain.learning(found.get("every_domain", {}).get("rows", ())):
        made[docs / "time.svg"] = time_picture(lines)
    if "front" in found:
        made[docs / "front.svg"] = front_picture(found["front"]["rows"])
    return made


def _origin(result: dict[str, Any]) -> str:
    """What a result was measured on."""
    machine = result.get("device") or {}
    where = machine.get("cpu", "machine not recorded")
    missing = f" Incomplete: {result['incomplete']}." if result.get("incomplete") else ""
    return (
        f"{where}, {result.get('threads', '?')} threads, {result.get('date', '')}, commit "
        f"{str(result.get('commit'))[:9]}.{missing}"
    )


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> str:
    return f"## {title}\n\n{markdown(Table('', title, columns, list(rows), note))}"


def _bits(quality: dict[str, Any] | None) -> str:
    return number(quality and quality["bits_per_byte"], 4)


def _one_shot(result: dict[str, Any]) -> list[str]:
    """Perplexity by method and sparsity as a multiple of the dense model's, and what it cost."""
    dense = result["dense"]["perplexity_per_base_token"]
    asked = sorted({row["asked"] for row in result["rows"]})
    methods = list(dict.fromkeys(row["method"] for row in result["rows"]))
    cells, costs = [], []
    for method in methods:
        rows = {row["asked"]: row for row in result["rows"] if row["method"] == method}
        ratios = [
            number(rows[share]["test"]["perplexity_per_base_token"] / dense, 2)
            if share in rows and "test" in rows[share]
            else MISSING
            for share in asked
        ]
        cells.append([method, *ratios])
        last = next((rows[share] for share in (0.42, 0.5) if "test" in rows.get(share, {})), None)
        if last:
            peak = 1e6 * last["peak_rss_mb"]
            costs.append([method, _bits(last["test"]), duration(last["seconds"]), megabytes(peak, 0)])
    note = (
        f'{result["model"]}, {result["domain"]}, test windows; the dense model has {dense:.2f}. "published": '
        "whole vocabulary and no refit, as the method's paper has it; masks make no file smaller. "
    )
    title = "After pruning: perplexity per base-model token ÷ dense, by share of the parameters removed"
    return [
        _table(title, ["", *(f"{share:.0%}" for share in asked)], cells, note + _origin(result)),
        _table(
            "The same at 42 % (n:m masks at 50 %): quality and cost",
            ["", "bits per byte", "pruning with calibration", "peak memory"],
            costs,
            result.get("note", ""),
        ),
    ]


def _medicine(result: dict[str, Any]) -> list[str]:
    dense, *rows = result["rows"]
    base = dense["test"]["perplexity_per_base_token"]
    cells = [
        [row["method"], _bits(row["test"]), number(row["test"]["perplexity_per_base_token"] / base, 2)]
        for row in [dense, *rows]
        if "test" in row
    ]
    note = "Abstracts of medical papers, 42 % of the parameters removed, no recovery. "
    columns = ["", "bits per byte", "perplexity ÷ dense"]
    return [_table("A second domain", columns, cells, note + _origin(result))]


def _recovery(result: dict[str, Any]) -> list[str]:
    bar = next((row["test"] for row in result["rows"] if row["method"] == "dense"), None)
    cells = [
        [
            row["method"],
            row["recovery"],
            percent(row["sparsity"]),
            _bits(row["test"]),
            number(bar and row["test"]["bits_per_byte"] / bar["bits_per_byte"], 3),
            duration(row["pruning_seconds"]),
            duration(row["seconds"]),
        ]
        for row in result["rows"]
    ]
    columns = ["", "recovery", "removed", "bits per byte", "÷ dense fine-tuned", "pruning", "recovery takes"]
    note = f"Each on {result['rows'][0]['tokens']:,} tokens, where nothing else is said with the dense model "
    note += "as teacher; one run each. "
    return [_table("After recovery", columns, cells, note + _origin(result))]


def _front(result: dict[str, Any]) -> list[str]:
    models = list(dict.fromkeys(row["model"] for row in result["rows"]))
    kinds = list(dict.fromkeys(row["type"] for row in result["rows"]))
    known = {(row["model"], row["type"]): row for row in result["rows"]}

    def cell(model: str, kind: str) -> str:
        row = known.get((model, kind))
        return f"{row['bytes'] / 1e6:.1f} · {row['bits_per_byte']:.4f}" if row else MISSING

    cells = [[kind.upper(), *(cell(model, kind) for model in models)] for kind in kinds]
    error = max(row["stderr"] for row in result["rows"])
    note = f"Each cell: MB · bits per byte on test windows, one standard error at most {error:.3f}. "
    parts = [_table("Size and quality, type by type", ["", *models], cells, note + _origin(result))]
    rows = []
    for name, rival in RIVALS.items():
        for point in pareto(result["rows"], rival):
            ours = bytes_at(pareto(result["rows"], *OURS), point["bits_per_byte"])
            ratio = number(ours / point["bytes"], 2) if ours else "not reached"
            rows.append([f"{name} {point['type'].upper()}", megabytes(point["bytes"]), _bits(point), ratio])
    note = (
        "Our size is read off the line between our own best files at 20, 42 and 60 % removed, in the "
        "logarithm of bytes."
    )
    columns = ["best dense files", "size", "bits per byte", "our bytes ÷ theirs"]
    return [*parts, _table("Bytes at equal bits per byte", columns, rows, note)]


def pareto(rows: Rows, *models: str) -> Rows:
    """The files of some models that none of them beats in both size and quality, smallest first."""
    best: Rows = []
    for row in sorted((row for row in rows if row["model"] in models), key=lambda row: row["bytes"]):
        if not best or row["bits_per_byte"] < best[-1]["bits_per_byte"]:
            best.append(row)
    return best


def bytes_at(front: Rows, bits: float) -> float | None:
    """Size of the smallest file of a front with so many bits per byte; None where none is so good."""
    if not front or front[-1]["bits_per_byte"] > bits:
        return None
    if front[0]["bits_per_byte"] <= bits:
        return float(front[0]["bytes"])
    for worse, better in zip(front, front[1:], strict=False):
        if better["bits_per_byte"] <= bits:
            way = (worse["bits_per_byte"] - bits) / (worse["bits_per_byte"] - better["bits_per_byte"])
            low, high = math.log(worse["bytes"]), math.log(better["bytes"])
            return math.exp(low + way * (high - low))
    return None


def _equal_time(result: dict[str, Any]) -> list[str]:
    cells = []
    for name in ("ours", "dense"):
        row = result[name]
        removed = percent(row.get("sparsity", 0.0))
        cells.append([name, removed, f"{row['tokens']:,}", duration(row["seconds"]), _bits(row["test"])])
    columns = ["", "removed", "tokens", "time, pruning counted", "bits per byte"]
    note = f"Ours ÷ dense {number(result['bits_ratio'], 3)}, one run each on an idle machine. "
    return [_table("Fine-tuned for the same time", columns, cells, note + _origin(result))]


def _learning(result: dict[str, Any]) -> list[str]:
    lines = every_domain.learning(result["rows"])
    cells = [
        [domain, model, number(minutes), number(bits, 4)]
        for domain, models in lines.items()
        for model, points in models.items()
        for minutes, bits in points
    ]
    if not cells:
        return []
    cpus = dict.fromkeys(f"{row['device']['cpu']}, {row['threads']} threads" for row in result["rows"])
    note = (
        "Each line is a model of its own, 42 % removed, pruned and recovered with more tokens, or the dense "
        "model fine-tuned on more; evaluations on validation windows are counted, files are not. Made one "
        f"after another ({'; '.join(cpus)}; commits and dates in results.md), on machines that may differ in "
        "speed."
    )
    table = _table(
        "Bits per byte over time",
        ["domain", "", "minutes", "bits per byte, F16"],
        cells,
        note,
    )
    return [f"{table}\n\n![Bits per byte over minutes](time.svg)"]


def _peers(result: dict[str, Any]) -> list[str]:
    cells = [["ours", "", percent(result["ours"]["sparsity"]), _bits(result["ours"]["test"]), MISSING]]
    for row in result["rows"]:
        if "failed" in row:
            cells.append([row["peer"], row["variant"], f"failed: {row['failed']}", MISSING, MISSING])
            continue
        removed = (
            percent(row["sparsity"]) if row["zeros"] < 0.01 else f"{row['zeros']:.0%} of weights are zero"
        )
        spent = duration(row.get("work_seconds"))
        cells.append([row["peer"], row["variant"], removed, _bits(row["test"]), spent])
    columns = ["", "variant", "removed", "bits per byte", "time"]
    note = (
        "Masks of llm-compressor make no file smaller; in those called 42 as many weights are zero as ours "
        "removes of all parameters. Other programs ran beside, so times are upper bounds. "
    )
    before = _table("Other pruning tools, before recovery", columns, cells, note + _origin(result))
    rows = [[row["peer"], row.get("variant", ""), _bits(row["test"])] for row in result["recovered"]]
    return [
        before,
        _table("Other pruning tools, after recovery on equal tokens", columns[:2] + columns[3:4], rows),
    ]


def _thresholds(result: dict[str, Any]) -> list[str]:
    cells = []
    for row in result["rows"]:
        if "failed" in row:
            cells.append([f"{row['threshold']:.0e}", f"failed: {row['failed']}", *[MISSING] * 5])
            continue
        before, after = row["before"], row["after"]
        points = [point for point in after["curve"] if "training" in point]
        cells.append(
            [
                f"{row['threshold']:.0e}",
                f"{before['parameters'] / 1e6:.1f} M",
                number(before["test"]["perplexity_per_base_token"], 2),
                number(after["test"]["perplexity_per_base_token"], 2),
                " ".join(number(point["training"], 3) for point in points),
                " ".join(number(point["validation"], 3) for point in points),
            ]
        )
    columns = ["ε", "parameters", "perplexity", "after training", "training loss", "held-out loss"]
    note = (
        "Losses in bits per byte, epoch by epoch over the same small text; where the first falls and the "
        "second does not, the model overfits. "
    )
    return [_table("Mini-GPTs' thresholds", columns, cells, note + _origin(result))]


def _calibration(result: dict[str, Any]) -> list[str]:
    cells = [
        [
            row["method"],
            number(row["calibration_tokens"]),
            number(row["test"]["perplexity_per_base_token"], 2),
            duration(row["seconds"]),
        ]
        for row in result["rows"]
    ]
    columns = ["", "tokens", "perplexity after pruning", "pruning"]
    return [_table("How much text calibration needs", columns, cells, _origin(result))]


def _training(result: dict[str, Any]) -> list[str]:
    cells = [
        [
            number(row["distinct_tokens"]),
            number(row["tokens"]),
            _bits(row["test"]),
            " ".join(number(point.get("training"), 3) for point in row["curve"][1:]),
            " ".join(number(point["validation"], 3) for point in row["curve"][1:]),
        ]
        for row in result["rows"]
    ]
    columns = ["distinct tokens", "trained on", "test bits per byte", "training loss", "held-out loss"]
    return [_table("How much text training needs", columns, cells, _origin(result))]


def _terms(result: dict[str, Any]) -> list[str]:
    cells = [
        [
            row["terms"],
            when,
            number(row[when]["vocabulary"]),
            number(row[when]["nats_per_occurrence"], 3),
            number(row[when]["other_bits_per_byte"], 4),
        ]
        for when in ("before", "after")
        for row in result["rows"]
    ]
    first = result["rows"][0]
    note = f"{first['count']:,} words, {first['before']['occurrences']} occurrences in the test windows. "
    columns = [
        "rare terms' tokens",
        "training",
        "vocabulary",
        "nats per occurrence",
        "bits per byte elsewhere",
    ]
    return [_table("Rare terms", columns, cells, note + _origin(result))]


def _families(result: dict[str, Any]) -> list[str]:
    cells = []
    for row in result["rows"]:
        parity = row["parity"]
        cells.append(
            [
                row["family"],
                row["target"],
                row["architecture"],
                f"{parity['kl_mean']:.1e}",
                percent(parity["argmax_agreement"]),
                number(parity["bits_ratio"], 4),
                _bits(row),
            ]
        )
    columns = ["architecture", "target", "in the file", "KL", "arg-max", "bits ÷ checkpoint", "bits per byte"]
    note = (
        "Small models trained for this on the law texts, a quarter removed. KL (nats per token), arg-max "
        "agreement and ratio of bits per byte are against the checkpoint; bits per byte the file's on test. "
    )
    return [_table("Every architecture in every format", columns, cells, note + _origin(result))]


def _laser(result: dict[str, Any]) -> list[str]:
    cells = []
    for name, found in result["sets"].items():
        for chosen, test in found["test"].items():
            reductions = ", ".join(test.get("reductions", [])) or MISSING
            cells.append(
                [name, chosen, reductions, *(_with_error(test[key]) for key in ("accuracy", "log_loss"))]
            )
    columns = ["questions", "chosen by", "reductions", "accuracy", "nats per token of the answer"]
    note = f"{result['questions']} of each: chosen on a fifth, scored on the others; ± one standard error. "
    return [_table("Rank reduction and facts (LASER)", columns, cells, note + _origin(result))]


def _sizes(result: dict[str, Any]) -> list[str]:
    cells = []
    for row in result["rows"]:
        took = {name: row["stages"][name]["seconds"] for name in ("prune", "export")}
        cells.append(
            [
                row["shape"],
                f"{row['parameters'] / 1e9:.2f} B",
                f"{row['calibration_tokens']:,}",
                duration(took["prune"]),
                number(row["prune_seconds_per_1e12"], 1),
                duration(took["export"]),
                duration(row["seconds"]),
                f"{row['peak_gib']:.1f} GiB",
                f"{row['pruning_estimated_gib']:.1f} GiB",
                f"{row['bound_gib']} GiB" if row["bound_gib"] else MISSING,
            ]
        )
    columns = ["shape", "parameters", "tokens", "pruning", "s ÷ 10¹² parameters × tokens", "export"]
    columns += ["whole build", "peak memory", "estimated", "wanted"]
    note = "Random weights of each shape, 42 % removed, no fine-tuning; each build in its own process. "
    note += "Commits: " + ", ".join(dict.fromkeys(str(row["commit"])[:9] for row in result["rows"])) + ". "
    last = max(result["rows"], key=lambda row: row["date"])
    note += f"{last['device']['cpu']}, {last['threads']} threads, to {last['date']}."
    return [_table("Time and memory by size", columns, cells, note)]


def _with_error(value: dict[str, float]) -> str:
    return f"{value['mean']:.3f} ± {value['stderr']:.3f}"


_SECTIONS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "front": _front,
    "methods-one-shot": _one_shot,
    "methods-medicine": _medicine,
    "methods-recovery": _recovery,
    "equal_time": _equal_time,
    "every_domain": _learning,
    "pruning_peers": _peers,
    "questions-thresholds": _thresholds,
    "questions-calibration": _calibration,
    "questions-training": _training,
    "questions-terms": _terms,
    "laser": _laser,
    "families": _families,
    "sizes": _sizes,
}
